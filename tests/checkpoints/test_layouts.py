"""Names of every tensor in both official layouts, as lists written out from the published tables."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from cascadevl.checkpoints.hf_layout import modern_name
from cascadevl.checkpoints.layouts import MODEL_TYPES, layouts, locate, recognise
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, TINY_VISION, assemble, tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.preprocessing.spec_file import FILE_NAME, Spec
from cascadevl.preprocessing.tokenizer import train_tokenizer

PARTS = assemble(
    "tiny",
    evolve(TINY_VISION, num_layers=1, qk_norm=True),
    evolve(TINY_DECODERS["qwen2"], num_layers=1),
    train_tokenizer([], 256),
    Spec(),
    seed=0,
    std=0.2,
)
LINEAR = ("weight", "bias")

CHAT = {
    *(f"vision_model.embeddings.{name}" for name in ("class_embedding", "position_embedding")),
    *(f"vision_model.embeddings.patch_embedding.{kind}" for kind in LINEAR),
    *(
        f"vision_model.encoder.layers.0.{module}.{kind}"
        for module in ("attn.qkv", "attn.proj", "mlp.fc1", "mlp.fc2", "norm1", "norm2")
        for kind in LINEAR
    ),
    *(f"vision_model.encoder.layers.0.{name}" for name in ("ls1", "ls2", "attn.q_norm.weight", "attn.k_norm.weight")),
    *(f"mlp1.{index}.{kind}" for index in (0, 1, 3) for kind in LINEAR),
    *(f"language_model.model.{name}.weight" for name in ("embed_tokens", "norm")),
    *(f"language_model.model.layers.0.self_attn.{x}_proj.{kind}" for x in "qkv" for kind in LINEAR),
    "language_model.model.layers.0.self_attn.o_proj.weight",
    *(f"language_model.model.layers.0.mlp.{x}_proj.weight" for x in ("gate", "up", "down")),
    *(f"language_model.model.layers.0.{x}_layernorm.weight" for x in ("input", "post_attention")),
    "language_model.lm_head.weight",
}
HF = {
    *(f"model.vision_tower.embeddings.{name}" for name in ("cls_token", "position_embeddings")),
    *(f"model.vision_tower.embeddings.patch_embeddings.projection.{kind}" for kind in LINEAR),
    *(
        f"model.vision_tower.encoder.layer.0.{module}.{kind}"
        for module in (
            *("attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.projection_layer"),
            *("mlp.fc1", "mlp.fc2", "layernorm_before", "layernorm_after"),
        )
        for kind in LINEAR
    ),
    *(
        f"model.vision_tower.encoder.layer.0.{name}"
        for name in ("lambda_1", "lambda_2", "attention.q_norm.weight", "attention.k_norm.weight")
    ),
    *(
        f"model.multi_modal_projector.{name}.{kind}"
        for name in ("layer_norm", "linear_1", "linear_2")
        for kind in LINEAR
    ),
    *(
        name.replace("language_model.model.", "model.language_model.")
        for name in CHAT
        if name.startswith("language_model.model.")
    ),
    "lm_head.weight",
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("layouts")
    return {layout: save_parts(PARTS, root / layout, layout=layout) for layout in layouts()}


@pytest.mark.parametrize(("layout", "names"), [("chat", CHAT), ("hf", HF)])
def test_files_have_the_official_names(layout: str, names: set[str], folders: dict[str, Path]) -> None:
    assert load_file(folders[layout] / "model.safetensors").keys() == names


def test_q_k_and_v_are_the_thirds_of_the_rows(folders: dict[str, Path]) -> None:
    chat, hf = (load_file(folders[layout] / "model.safetensors") for layout in ("chat", "hf"))
    for kind in LINEAR:
        parts = [hf[f"model.vision_tower.encoder.layer.0.attention.{x}_proj.{kind}"] for x in "qkv"]
        assert torch.equal(torch.cat(parts), chat[f"vision_model.encoder.layers.0.attn.qkv.{kind}"])


def test_other_tensors_are_the_same_under_their_two_names(folders: dict[str, Path]) -> None:
    chat, hf = (load_file(folders[layout] / "model.safetensors") for layout in ("chat", "hf"))
    pairs = {
        "vision_model.embeddings.class_embedding": "model.vision_tower.embeddings.cls_token",
        "vision_model.encoder.layers.0.norm1.weight": "model.vision_tower.encoder.layer.0.layernorm_before.weight",
        "vision_model.encoder.layers.0.ls2": "model.vision_tower.encoder.layer.0.lambda_2",
        "vision_model.encoder.layers.0.attn.proj.bias": (
            "model.vision_tower.encoder.layer.0.attention.projection_layer.bias"
        ),
        "mlp1.1.weight": "model.multi_modal_projector.linear_1.weight",
        "mlp1.3.bias": "model.multi_modal_projector.linear_2.bias",
        "language_model.lm_head.weight": "lm_head.weight",
    }
    for name, other in pairs.items():
        assert torch.equal(chat[name], hf[other])


def test_names_of_the_first_release_lead_to_those_of_today() -> None:
    def first(name: str) -> str:
        if name == "lm_head.weight":
            return "language_model.lm_head.weight"
        bare = name.removeprefix("model.")
        return bare.replace("language_model.", "language_model.model.") if bare.startswith("language_model.") else bare

    assert {modern_name(first(name)) for name in HF} == HF
    assert {modern_name(name) for name in HF} == HF


def test_the_chat_config_says_what_the_released_ones_say(folders: dict[str, Path]) -> None:
    raw = json.loads((folders["chat"] / "config.json").read_text())
    expected = {
        "model_type": "internvl_chat",
        "architectures": ["InternVLChatModel"],
        "force_image_size": 56,
        "downsample_ratio": 0.5,
        "select_layer": -1,
        "ps_version": "v2",
        "dynamic_image_size": True,
        "use_thumbnail": True,
        "min_dynamic_patch": 1,
        "max_dynamic_patch": 12,
        "template": "internvl2_5",
    }
    assert expected.items() <= raw.items()
    assert raw["vision_config"]["qk_normalization"] is True
    assert raw["llm_config"]["architectures"] == ["Qwen2ForCausalLM"]


def test_the_tables_of_layouts_agree() -> None:
    assert set(MODEL_TYPES.values()) == layouts().keys()
    for layout in layouts().values():
        names = [
            piece.name
            for name, _ in PARTS.model.named_parameters()
            for piece in layout.pieces(name, PARTS.model.config, ())
        ]
        assert len(names) == len(set(names)), "no two parameters share a place"
        assert all(layout.current_name(name) == name for name in names)


def test_tiny_members_are_the_same_for_the_same_seed_and_others_for_another() -> None:
    one, same, other = (tiny_parts("qwen3", seed=seed).model.state_dict() for seed in (0, 0, 1))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert not torch.equal(one["mlp1.1.weight"], other["mlp1.1.weight"])


def test_intern_s1_is_internvl_under_another_name(folders: dict[str, Path], tmp_path: Path) -> None:
    """`interns1` and `interns1_vision` bear the same fields and tensors (transformers' InternS1 configs)."""
    folder = Path(shutil.copytree(folders["hf"], tmp_path / "s1"))
    raw = json.loads((folder / "config.json").read_text())
    raw["vision_config"] |= {"model_type": "interns1_vision", "drop_path_rate": 0.1}
    (folder / "config.json").write_text(json.dumps({**raw, "model_type": "interns1"}))
    parts = load_parts(folder)
    assert parts.model.config.vision.drop_path == 0.1
    expected = PARTS.model.state_dict()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.model.state_dict().items())


@pytest.mark.parametrize("kind", ["interns1_pro", "interns1_pro_moe", "interns2_preview", "intern_s1_pro"])
def test_successors_of_intern_s1_are_refused_with_the_reason(kind: str) -> None:
    with pytest.raises(CheckpointError, match=r"share the name with Intern-S1, not the architecture.*16 px"):
        recognise({"model_type": kind}, Path("folder"))


@pytest.mark.parametrize(
    ("layout", "changes", "message"),
    [
        ("chat", {"force_image_size": 112}, "contradicts itself: force_image_size is 112, .*image_size is 56"),
        ("chat", {"pad2square": True}, "has pad2square True; every released InternVL has False"),
        ("chat", {"ps_version": "v3"}, "pixel shuffle 'v3'"),
        (
            "chat",
            {"vision_config": {"hidden_act": "silu"}},
            "has hidden_act 'silu'; every released .* 'gelu'",
        ),
        ("chat", {"llm_config": {"architectures": ["LlamaForCausalLM"]}}, "contradicts itself: 'qwen2' and 'Llama"),
        ("hf", {"vision_feature_select_strategy": "full"}, "has vision_feature_select_strategy 'full'"),
        ("hf", {"vision_config": {"use_mean_pooling": False}}, "has use_mean_pooling False"),
        ("hf", {"image_seq_length": 5}, "visual tokens per tile is 5 in one file and 4 in another"),
        ("hf", {"text_config": {"num_key_value_heads": 3}}, "4 query heads cannot share 3 key heads"),
    ],
)
def test_a_config_that_contradicts_itself_or_the_releases_is_refused(
    layout: str, changes: dict, message: str, folders: dict[str, Path], tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(folders[layout], tmp_path / "model"))
    (folder / FILE_NAME).unlink()
    raw = json.loads((folder / "config.json").read_text())
    for key, value in changes.items():
        raw[key] = {**raw[key], **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(raw))
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_parts(folder)


def test_an_adapter_is_no_model_and_says_what_to_do(tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{}")
    with pytest.raises(CheckpointError, match=r"is an adapter, not a model\. Name its base: .*--adapter NAME"):
        locate(tmp_path)
