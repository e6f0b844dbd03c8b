"""Full-model logits against transformers: fp32, one thread, every family, every layout.

The bound is 2e-5 on logits of order 5. It shrinks with the logits, so that weights small enough for every
epsilon to matter are held to the same number of digits.
"""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import InternVLConfig, InternVLForConditionalGeneration

import cascadevl
from cascadevl.checkpoints.layouts import layouts
from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.checkpoints.weights import entries
from cascadevl.ops.rope import Rope

BOUND = 2e-5 / 5
SIX_B = {"norm": "rms_norm", "qk_norm": True, "qkv_bias": False}
"""What distinguishes the 6B tower from the 300M."""

Oracle = Callable[..., Any]


def _error(ours: Tensor, theirs: Tensor) -> float:
    """Greatest difference relative to the greatest logit."""
    assert ours.shape == theirs.shape
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("family", TINY_DECODERS)
@pytest.mark.parametrize("std", [0.002, 0.02, 0.2])
def test_logits_equal(
    family: str, std: float, conversation: list, make_member: Oracle, read_oracle: Oracle, oracle_logits: Oracle
) -> None:
    folder = make_member(family, std=std).folder
    bundle = cascadevl.load(folder)
    ids, logits = bundle.logits(conversation)
    inputs = bundle.preprocess(conversation)
    assert torch.equal(ids, inputs.token_ids)
    assert _error(logits, oracle_logits(read_oracle(folder), inputs, bundle.spec)) < BOUND


@pytest.mark.parametrize("std", [0.002, 0.2])
def test_logits_equal_with_the_6b_tower(
    std: float, several_pictures: list, make_member: Oracle, read_oracle: Oracle, oracle_logits: Oracle
) -> None:
    folder = make_member(std=std, vision=SIX_B).folder
    bundle = cascadevl.load(folder)
    theirs = oracle_logits(read_oracle(folder), bundle.preprocess(several_pictures), bundle.spec)
    assert _error(bundle.logits(several_pictures)[1], theirs) < BOUND


def _wrong_epsilon(bundle: cascadevl.Bundle) -> None:
    for module in bundle.model.modules():
        if hasattr(module, "eps"):
            module.eps = 1e-5  # type: ignore[assignment]


def _tanh_gelu(bundle: cascadevl.Bundle) -> None:
    bundle.model.mlp1[2] = torch.nn.GELU(approximate="tanh")


def _swapped_norms(bundle: cascadevl.Bundle) -> None:
    block = bundle.model.vision_model.encoder.layers[0]
    block.norm1, block.norm2 = block.norm2, block.norm1


@pytest.mark.parametrize(("std", "spoil"), [(0.002, _wrong_epsilon), (0.2, _tanh_gelu), (0.002, _swapped_norms)])
def test_the_bound_sees_small_mistakes(
    std: float,
    spoil: Callable[[cascadevl.Bundle], None],
    one_picture: list,
    make_member: Oracle,
    read_oracle: Oracle,
    oracle_logits: Oracle,
) -> None:
    folder = make_member(std=std).folder
    bundle = cascadevl.load(folder)
    theirs = oracle_logits(read_oracle(folder), bundle.preprocess(one_picture), bundle.spec)
    spoil(bundle)
    assert _error(bundle.logits(one_picture)[1], theirs) > 3 * BOUND


SCALED = {
    "dynamic": Rope(theta=1e4, kind="dynamic", factor=2.0, max_position=64),
    "linear": Rope(theta=1e4, kind="linear", factor=2.0, max_position=64),
    "yarn": Rope(theta=1e4, kind="yarn", factor=4.0, max_position=256, trained_position=64, attention_factor=1.14),
    "yarn, uneven": TINY_DECODERS["gpt_oss"].rope,
}


@pytest.mark.parametrize("kind", SCALED)
@pytest.mark.parametrize("text", ["short", "long " * 30])
def test_scaled_rope_equals_within_and_beyond_the_trained_length(
    kind: str, text: str, make_member: Oracle, read_oracle: Oracle
) -> None:
    folder = make_member(rope=SCALED[kind]).folder
    bundle = cascadevl.load(folder)
    ids = torch.tensor(bundle.tokenizer.encode(text))
    with torch.inference_mode():
        theirs = read_oracle(folder)(input_ids=ids[None]).logits[0]
        assert _error(bundle.model(ids), theirs) < BOUND


@pytest.mark.parametrize("family", TINY_DECODERS)
def test_every_layout_and_any_sharding_holds_the_same_model(
    family: str, several_pictures: list, make_member: Oracle, read_oracle: Oracle
) -> None:
    _, expected = make_member(family).bundle.logits(several_pictures)
    for layout in layouts():
        for shard_bytes in (5_000_000_000, 20_000):
            folder = make_member(family, layout=layout, max_shard_bytes=shard_bytes).folder
            assert (len(list(folder.glob("*.safetensors"))) > 3) == (shard_bytes < 1e9)
            assert torch.equal(cascadevl.load(folder).logits(several_pictures)[1], expected)


def test_transformers_reads_our_shards(
    one_picture: list, make_member: Oracle, read_oracle: Oracle, oracle_logits: Oracle
) -> None:
    whole, sharded = make_member(), make_member(max_shard_bytes=20_000)
    inputs, spec = whole.bundle.preprocess(one_picture), whole.bundle.spec
    theirs = [oracle_logits(read_oracle(member.folder), inputs, spec) for member in (whole, sharded)]
    assert torch.equal(*theirs)


def _copy_with_weights(folder: Path, to: Path, tensors: dict[str, Tensor], config: dict[str, Any]) -> Path:
    shutil.copytree(folder, to)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    raw = json.loads((to / "config.json").read_text())
    (to / "config.json").write_text(json.dumps({**raw, **config}))
    return to


def _name_of_the_first_release(name: str) -> str:
    if name == "lm_head.weight":
        return "language_model.lm_head.weight"
    name = name.removeprefix("model.")
    return name.replace("language_model.", "language_model.model.", 1) if name.startswith("language") else name


def test_names_of_the_first_transformers_release_are_read(
    one_picture: list, make_member: Oracle, tmp_path: Path
) -> None:
    """4.52: no outer `model.`, the output matrix inside `language_model`."""
    member = make_member()
    tensors = load_file(member.folder / "model.safetensors")
    renamed = {_name_of_the_first_release(name): tensor for name, tensor in tensors.items()}
    assert {"vision_tower.embeddings.cls_token", "language_model.model.norm.weight"} <= renamed.keys()
    old = _copy_with_weights(member.folder, tmp_path / "old", renamed, {})
    assert torch.equal(cascadevl.load(old).logits(one_picture)[1], member.bundle.logits(one_picture)[1])


@pytest.mark.parametrize("layout", layouts())
def test_a_tied_checkpoint_has_no_output_matrix_and_uses_the_embeddings(
    layout: str, one_picture: list, make_member: Oracle, read_oracle: Oracle, oracle_logits: Oracle
) -> None:
    member = make_member(tied=True, layout=layout)
    assert not any("lm_head" in name for name in entries(member.folder))
    bundle = cascadevl.load(member.folder)
    assert bundle.model.language_model.lm_head is None
    assert torch.equal(bundle.logits(one_picture)[1], member.bundle.logits(one_picture)[1])
    if layout == "hf":
        theirs = oracle_logits(read_oracle(member.folder), bundle.preprocess(one_picture), bundle.spec)
        assert _error(bundle.logits(one_picture)[1], theirs) < BOUND


@pytest.mark.parametrize("family", TINY_DECODERS)
@pytest.mark.parametrize("tied", [False, True])
def test_a_folder_that_transformers_wrote_is_read(
    family: str, tied: bool, one_picture: list, make_member: Oracle, oracle_logits: Oracle, tmp_path: Path
) -> None:
    """Their config and their names, after their own initialisation; tokenizer and template are ours."""
    folder = make_member(family).folder
    raw = json.loads((folder / "config.json").read_text())
    text = {**raw["text_config"], "tie_word_embeddings": tied}
    torch.manual_seed(0)
    model = InternVLForConditionalGeneration(
        InternVLConfig(**{**raw, "text_config": text, "tie_word_embeddings": tied}, attn_implementation="eager")  # type: ignore[call-arg]
    ).eval()
    with torch.no_grad():
        for p in model.parameters():
            p.add_(torch.randn(p.shape) * 0.1)
    written = tmp_path / "theirs"
    model.save_pretrained(written)
    for name in os.listdir(folder):
        if not (written / name).exists():
            shutil.copy(folder / name, written / name)
    bundle = cascadevl.load(written)
    assert (bundle.model.language_model.lm_head is None) == tied
    theirs = oracle_logits(model, bundle.preprocess(one_picture), bundle.spec)
    assert _error(bundle.logits(one_picture)[1], theirs) < BOUND


def test_bf16_weights_are_those_of_transformers_too(
    make_member: Oracle, one_picture: list, oracle_logits: Oracle, tmp_path: Path
) -> None:
    """A bf16 folder asked for in fp32: the same rounded weights, computed in fp32."""
    member = make_member()
    tensors = {name: t.bfloat16() for name, t in load_file(member.folder / "model.safetensors").items()}
    short = _copy_with_weights(member.folder, tmp_path / "bf16", tensors, {"dtype": "bfloat16"})
    bundle = cascadevl.load(short, dtype="float32")
    model = InternVLForConditionalGeneration.from_pretrained(short, dtype=torch.float32, attn_implementation="eager")
    theirs = oracle_logits(model.eval(), bundle.preprocess(one_picture), bundle.spec)
    assert _error(bundle.logits(one_picture)[1], theirs) < BOUND
