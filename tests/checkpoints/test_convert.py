"""Every family through both layouts and back: weights bit for bit, the same prompt, the same logits."""

from pathlib import Path

import pytest

from cascadevl.checkpoints.convert import convert
from cascadevl.checkpoints.tiny import TINY_DECODERS, write_tiny
from cascadevl.checkpoints.weights import entries


@pytest.mark.parametrize("family", TINY_DECODERS)
def test_there_and_back_is_the_same_model(family: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "chat", family, layout="chat", std=0.2)
    there = convert(source, tmp_path / "hf", "hf")
    back = convert(tmp_path / "hf", tmp_path / "again", "chat")
    for report in (there, back):
        assert report["weights_equal"] and report["spec_equal"] and report["token_ids_equal"] and report["tiles_equal"]
        assert report["logits_max_abs_difference"] == 0 < report["logits_max_abs"]
    assert there["fingerprint"] == back["fingerprint"]


@pytest.mark.parametrize(
    ("family", "layout", "name"),
    [
        ("internlm2", "chat", "language_model.model.layers.0.attention.wqkv.weight"),
        ("internlm2", "hf", "model.language_model.layers.0.self_attn.q_proj.weight"),
        ("phi3", "chat", "language_model.model.layers.0.self_attn.qkv_proj.weight"),
        ("phi3", "hf", "model.language_model.layers.0.mlp.gate_up_proj.weight"),
        ("qwen3_moe", "chat", "language_model.model.layers.0.mlp.experts.7.up_proj.weight"),
        ("qwen3_moe", "hf", "model.language_model.layers.0.mlp.experts.0.down_proj.weight"),
        ("gpt_oss", "hf", "model.language_model.layers.1.mlp.experts.gate_up_proj_bias"),
        ("gpt_oss", "chat", "language_model.model.layers.1.self_attn.sinks"),
    ],
)
def test_files_bear_the_names_of_the_family(family: str, layout: str, name: str, tmp_path: Path) -> None:
    assert name in entries(write_tiny(tmp_path / "model", family, layout=layout))
