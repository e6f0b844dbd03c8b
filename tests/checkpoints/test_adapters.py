"""PEFT folders: what is read, what its arithmetic is, and what is refused by name."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import cascadevl
from cascadevl.checkpoints.adapters import attach, merge, read_adapter, unmerge
from cascadevl.checkpoints.convert import convert, fingerprint
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts, write_tiny
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.models.internvl import InternVL
from cascadevl.models.linear import adapted, adapter_names, detach, use
from tests.checkpoints.adapter_folders import ALPHA, RANK, SCALE, delta, random_lora, write

MODEL = tiny_parts("qwen3", std=0.2).model
LAYERS = "language_model.model.layers"
Q0, Q1 = (f"{LAYERS}.{i}.self_attn.q_proj" for i in range(2))
SHAPE = MODEL.get_parameter(f"{Q0}.weight").shape
BOTH = {Q0: SHAPE, Q1: SHAPE}
IDS = torch.arange(20, 60)


def _merged(folder: Path, model: InternVL = MODEL) -> InternVL:
    model = copy.deepcopy(model)
    merge(model, read_adapter(folder, model))
    return model


def _changed(before: InternVL, after: InternVL) -> set[str]:
    now = dict(after.named_parameters())
    return {name for name, parameter in before.named_parameters() if not torch.equal(parameter, now[name])}


def test_merging_adds_alpha_over_rank_times_b_a_and_nothing_else(tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    merged = _merged(write(tmp_path, tensors))
    assert _changed(MODEL, merged) == {f"{Q0}.weight", f"{Q1}.weight"}
    for module in BOTH:
        expected = MODEL.get_parameter(f"{module}.weight") + 7 / 3 * (
            tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]
        )
        assert torch.allclose(merged.get_parameter(f"{module}.weight"), expected, rtol=0, atol=1e-6)


def test_ranks_and_scales_go_by_patterns(tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    tensors[f"{Q1}.lora_A.weight"] = torch.ones(5, SHAPE[1])
    tensors[f"{Q1}.lora_B.weight"] = torch.ones(SHAPE[0], 5)
    folder = write(
        tmp_path, tensors, use_rslora=True, rank_pattern={r"layers\.1\.self_attn\.q_proj": 5}, alpha_pattern={"1.*": 4}
    )
    merged = _merged(folder)
    scales = {Q0: ALPHA / math.sqrt(RANK), Q1: 4 / math.sqrt(5)}
    for module, scale in scales.items():
        change = merged.get_parameter(f"{module}.weight") - MODEL.get_parameter(f"{module}.weight")
        assert torch.allclose(change, delta(tensors, module, scale), rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "names",
    [
        pytest.param(lambda n: n, id="the whole of the original layout"),
        pytest.param(lambda n: n.removeprefix("language_model."), id="the language model alone"),
        pytest.param(lambda n: n.replace("language_model.model.", "model.language_model."), id="transformers"),
    ],
)
def test_names_of_every_kind_find_the_same_modules(names: Any, tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    expected = _merged(write(tmp_path / "expected", tensors))
    renamed = {names(name): tensor for name, tensor in tensors.items()}
    assert not _changed(expected, _merged(write(tmp_path / "renamed", renamed)))


def test_the_tower_alone_is_found_too(tmp_path: Path) -> None:
    tensors = random_lora({"encoder.layers.1.attn.qkv": (96, 32)})
    assert _changed(MODEL, _merged(write(tmp_path, tensors))) == {"vision_model.encoder.layers.1.attn.qkv.weight"}


@pytest.mark.parametrize("dora", [False, True])
def test_unmerging_leaves_the_model_as_it_was_but_for_rounding(dora: bool, tmp_path: Path) -> None:
    model = copy.deepcopy(MODEL)
    adapter = read_adapter(write(tmp_path, random_lora(BOTH, dora=dora), use_dora=dora), model)
    merge(model, adapter)
    assert _changed(MODEL, model)
    unmerge(model, adapter)
    for name, parameter in model.named_parameters():
        assert torch.allclose(parameter, MODEL.get_parameter(name), rtol=0, atol=5e-7), name


def test_a_dora_whose_magnitude_is_the_norm_is_a_lora(tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    plain = _merged(write(tmp_path / "lora", tensors))
    for module in BOTH:
        norms = (MODEL.get_parameter(f"{module}.weight") + delta(tensors, module)).norm(dim=1)
        tensors[f"{module}.lora_magnitude_vector"] = norms
    merged = _merged(write(tmp_path / "dora", tensors, use_dora=True))
    for module in BOTH:
        name = f"{module}.weight"
        assert torch.allclose(merged.get_parameter(name), plain.get_parameter(name), rtol=0, atol=1e-6)


def test_half_precision_is_rounded_once(tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    half = copy.deepcopy(MODEL).bfloat16()
    merged = _merged(write(tmp_path, tensors), half)
    weight = half.get_parameter(f"{Q0}.weight")
    assert torch.equal(merged.get_parameter(f"{Q0}.weight"), (weight.float() + delta(tensors, Q0)).bfloat16())


def test_modules_trained_in_full_take_the_place_of_ours(tmp_path: Path) -> None:
    full = {name: torch.randn_like(p) for name, p in MODEL.named_parameters() if name.startswith("mlp1.")}
    folder = write(tmp_path, {**random_lora({Q0: SHAPE}), **full}, modules_to_save=["mlp1"])
    merged = _merged(folder)
    assert _changed(MODEL, merged) == {f"{Q0}.weight", *full}
    for name, tensor in full.items():
        assert torch.equal(merged.get_parameter(name), tensor)
    with pytest.raises(ConfigError, match=r"replaced whole modules \(mlp1\.0\.bias.*load the model again"):
        unmerge(merged, read_adapter(folder, MODEL))
    with pytest.raises(ConfigError, match=r"changes mlp1\.\S+, which is no linear layer by itself: merge it instead"):
        attach(merged, read_adapter(folder, MODEL), "style")


def test_several_adapters_stand_side_by_side_and_are_taken_off(tmp_path: Path) -> None:
    model = copy.deepcopy(MODEL)
    expected = {}
    for seed, name in enumerate(("first", "second")):
        folder = write(tmp_path / name, random_lora(BOTH if seed else {Q0: SHAPE}, seed=seed))
        expected[name] = _merged(folder)(IDS)
        attach(model, read_adapter(folder, model), name)
    assert adapter_names(model) == ("first", "second")
    assert torch.equal(model(IDS), MODEL(IDS))
    for name, logits in expected.items():
        use(model, name)
        assert torch.allclose(model(IDS), logits, rtol=0, atol=2e-5)
        assert float((logits - MODEL(IDS)).abs().max()) > 0.1
    detach(model, "second")
    detach(model, "first")
    assert not adapted(model) and torch.equal(model(IDS), MODEL(IDS))


def test_what_is_attached_stays_whole_beside_a_half_precision_model(tmp_path: Path) -> None:
    model = copy.deepcopy(MODEL).bfloat16()
    adapter = read_adapter(write(tmp_path, random_lora(BOTH)), model)
    attach(model, adapter, "style")
    use(model, "style")
    assert adapted(model)[Q0].changes_in_use()[0].a.dtype == torch.float32
    assert adapted(model)[Q0](torch.ones(1, SHAPE[1], dtype=torch.bfloat16)).dtype == torch.bfloat16
    assert torch.equal(adapter.changes[f"{Q0}.weight"][0].delta(), adapted(model)[Q0].changes_in_use()[0].delta())
    assert model(IDS).isfinite().all()


def test_a_model_with_something_attached_is_not_saved_without_it(tmp_path: Path) -> None:
    parts = tiny_parts("qwen3")
    attach(parts.model, read_adapter(write(tmp_path / "adapter", random_lora(BOTH)), parts.model), "style")
    with pytest.raises(ConfigError, match=r"adapters attached \(style\): merge them or take them off first"):
        save_parts(parts, tmp_path / "model")
    assert not (tmp_path / "model").exists()
    detach(parts.model, "style")
    save_parts(parts, tmp_path / "model")


@pytest.mark.parametrize("layout", ["hf", "chat"])
def test_loading_and_converting_with_an_adapter_merge_it(layout: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "model", "internlm2", layout="chat", std=0.2)
    adapter = write(tmp_path / "adapter", random_lora({f"{LAYERS}.{i}.attention.wqkv": (48, 32) for i in range(2)}))
    report = convert(source, tmp_path / "merged", layout, adapter=adapter)
    assert report["adapter"] == str(adapter) and report["logits_max_abs_difference"] == 0
    loaded, plain = cascadevl.load(source, adapter=adapter), cascadevl.load(source)
    assert fingerprint(loaded.model) == report["fingerprint"] != fingerprint(plain.model)
    assert fingerprint(cascadevl.load(tmp_path / "merged").model) == report["fingerprint"]


def test_an_adapter_that_does_not_fit_leaves_nothing_written(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "model", "internlm2", layout="chat")
    with pytest.raises(CheckpointError, match="adapter for another model"):
        convert(source, tmp_path / "merged", "hf", adapter=write(tmp_path / "adapter", random_lora({"x.y": (3, 4)})))
    assert not (tmp_path / "merged").exists()


@pytest.mark.parametrize("name", ["", "a.b", "keys", "style"])
def test_names_that_cannot_be_given_are_refused(name: str, tmp_path: Path) -> None:
    model = copy.deepcopy(MODEL)
    adapter = read_adapter(write(tmp_path, random_lora(BOTH)), model)
    attach(model, adapter, "style")
    with pytest.raises(ConfigError, match=f"cannot be called {name!r}"):
        attach(model, adapter, name)


def test_an_output_matrix_is_merged_but_not_attached(tmp_path: Path) -> None:
    """Its weight is taken without calling it, so that a change beside it would go unseen."""
    shape = MODEL.get_parameter("language_model.lm_head.weight").shape
    folder = write(tmp_path, random_lora({"language_model.lm_head": shape}))
    assert _changed(MODEL, _merged(folder)) == {"language_model.lm_head.weight"}
    with pytest.raises(ConfigError, match=r"language_model\.lm_head\.weight, which is no linear layer by itself"):
        attach(copy.deepcopy(MODEL), read_adapter(folder, MODEL), "style")


def test_tied_embeddings_do_not_change_alone(tmp_path: Path) -> None:
    tied = tiny_parts("qwen3", tied=True).model
    name = "language_model.model.embed_tokens"
    size, width = tied.get_parameter(f"{name}.weight").shape
    tensors = {f"{name}.lora_embedding_A": torch.ones(RANK, size), f"{name}.lora_embedding_B": torch.ones(width, RANK)}
    folder = write(tmp_path, tensors)
    with pytest.raises(CheckpointError, match="the output matrix is the same one"):
        read_adapter(folder, tied)
    change = _merged(folder).get_parameter(f"{name}.weight") - MODEL.get_parameter(f"{name}.weight")
    assert torch.allclose(change, torch.full((size, width), SCALE * RANK), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"peft_type": "IA3"}, "peft_type 'IA3'; only 'LORA'"),
        ({"bias": "all"}, "bias 'all': trained biases"),
        ({"fan_in_fan_out": True}, "fan_in_fan_out True: not supported"),
        ({"lora_bias": True}, "lora_bias True: not supported"),
        ({"alora_invocation_tokens": [1, 2]}, "alora_invocation_tokens"),
        ({"trainable_token_indices": [3]}, "trainable_token_indices"),
        ({"target_parameters": ["experts.down_proj"]}, "target_parameters"),
        ({"layer_replication": [[0, 2]]}, "layer_replication"),
        ({"a_setting_of_the_future": 1}, "a_setting_of_the_future 1: not supported"),
        ({"init_lora_weights": "pissa_niter_4"}, "'pissa_niter_4', which changes the base model"),
        ({"r": 0}, "the rank 0 is not possible"),
        ({"r": "8"}, "r is '8'; expected int"),
        ({"target_modules": 3}, "target_modules is 3"),
        ({"target_modules": "(q_proj"}, "no regular expression"),
        ({"rank_pattern": {"q_proj": "x"}}, "rank_pattern"),
    ],
)
def test_settings_that_would_compute_something_else_are_refused(
    settings: dict[str, Any], message: str, tmp_path: Path
) -> None:
    folder = write(tmp_path, random_lora(BOTH), **settings)
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder, MODEL)
    assert message in str(caught.value) and "adapter_config.json" in str(caught.value)


def _refused(folder: Path, model: InternVL = MODEL) -> str:
    with pytest.raises(CheckpointError) as caught:
        read_adapter(folder, model)
    return str(caught.value)


def test_an_adapter_of_another_model_is_refused(tmp_path: Path) -> None:
    """By its names where they differ, by its shapes where only these do."""
    folder = write(tmp_path / "packed", random_lora({f"{LAYERS}.0.attention.wqkv": (64, 32)}))
    message = _refused(folder)
    assert (
        "adapter for another model: 1 of its 1 modules do not exist in this qwen3" in message
        and "attention.wqkv" in message
    )
    message = _refused(write(tmp_path / "shapes", random_lora({Q0: (SHAPE[0] + 8, SHAPE[1])}), target_modules=[Q0]))
    assert f"has the shape [{SHAPE[0] + 8}, 3], this model needs [{SHAPE[0]}, 3]" in message
    deeper = random_lora({**BOTH, f"{LAYERS}.7.self_attn.q_proj": SHAPE})
    assert "1 of its 3 modules do not exist" in _refused(write(tmp_path / "deeper", deeper))


def test_ranks_must_be_those_of_the_config(tmp_path: Path) -> None:
    message = _refused(write(tmp_path, random_lora(BOTH), r=4))
    assert f"{Q0}.lora_A' has the shape [3, {SHAPE[1]}], this model needs [4, {SHAPE[1]}] (rank 4 by" in message


def test_tensors_that_are_missing_or_too_many_are_named(tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    half = {name: tensor for name, tensor in tensors.items() if name != f"{Q1}.lora_B.weight"}
    assert f"'{Q1}' has ['lora_A']; expected ['lora_A', 'lora_B']" in _refused(write(tmp_path / "half", half))
    one = {name: tensor for name, tensor in tensors.items() if Q0 in name}
    message = _refused(write(tmp_path / "one", one, target_modules=["q_proj"]))
    assert f"lacks 1 tensors that adapter_config.json targets ({Q1}.weight)" in message
    message = _refused(write(tmp_path / "more", tensors, target_modules=[Q0]))
    assert "has 2 tensors that adapter_config.json does not speak of" in message and f"{Q1}.lora_A.weight" in message
    message = _refused(write(tmp_path / "dora", random_lora(BOTH, dora=True)))
    assert "has ['lora_A', 'lora_B', 'lora_magnitude_vector']; expected ['lora_A', 'lora_B']" in message
    message = _refused(write(tmp_path / "loose", {**tensors, "mlp1.1.bias": torch.ones(32)}))
    assert "1 tensors that adapter_config.json does not speak of (base_model.model.mlp1.1.bias)" in message


def test_the_oldest_names_of_transformers_are_told_from_the_original_ones(tmp_path: Path) -> None:
    """Only in transformers' tower does q_proj exist as well."""
    tower = {f"vision_tower.encoder.layer.{i}.attention.q_proj": (32, 32) for i in range(2)}
    both = write(tmp_path / "both", random_lora({**BOTH, **tower}), target_modules=["q_proj"])
    assert len(_changed(MODEL, _merged(both))) == 4
    original = write(tmp_path / "original", random_lora(BOTH), target_modules=["q_proj"])
    assert len(_changed(MODEL, _merged(original))) == 2
    tower.popitem()
    message = _refused(write(tmp_path / "less", random_lora({**BOTH, **tower}), target_modules=["q_proj"]))
    assert "lacks 1 tensors" in message and "model.vision_tower.encoder.layer.1.attention.q_proj" in message


def test_chosen_layers_and_exclusions_are_understood(tmp_path: Path) -> None:
    one = {name: tensor for name, tensor in random_lora(BOTH).items() if Q1 in name}
    for settings in ({"layers_to_transform": [1]}, {"layers_to_transform": 1, "layers_pattern": "layers"}):
        assert _changed(MODEL, _merged(write(tmp_path, one, target_modules=["q_proj"], **settings))) == {f"{Q1}.weight"}
    folder = write(tmp_path, one, target_modules=["q_proj"], exclude_modules=["layers.0.self_attn.q_proj"])
    assert _changed(MODEL, _merged(folder)) == {f"{Q1}.weight"}


def test_pickles_and_empty_files_are_refused(tmp_path: Path) -> None:
    folder = write(tmp_path, random_lora(BOTH))
    save_file({}, folder / "adapter_model.safetensors")
    assert "has no tensors" in _refused(folder)
    (folder / "adapter_model.safetensors").rename(folder / "adapter_model.bin")
    assert "adapter_model.bin is a pickle, which is never opened" in _refused(folder)
    (folder / "adapter_config.json").unlink()
    assert "adapter_config.json" in _refused(folder)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    tensors = random_lora(BOTH)
    tensors[f"{Q0}.lora_B.weight"][3, 1] = math.nan
    assert f"{Q0}.lora_B" in _refused(write(tmp_path, tensors))


def test_an_embedding_trained_over_a_changed_base_is_refused(tmp_path: Path) -> None:
    name = "language_model.model.embed_tokens"
    base = MODEL.get_parameter(f"{name}.weight").detach().clone()
    tensors = {
        f"{name}.lora_embedding_A": torch.ones(RANK, len(base)),
        f"{name}.lora_embedding_B": torch.ones(base.shape[1], RANK),
        f"{name}.base_layer.weight": base,
    }
    assert _changed(MODEL, _merged(write(tmp_path / "same", tensors, target_modules=["embed_tokens"])))
    tensors[f"{name}.base_layer.weight"] = base + 1
    message = _refused(write(tmp_path / "other", tensors, target_modules=["embed_tokens"]))
    assert "trained over another 'language_model.model.embed_tokens'" in message
