"""Official language-model configs, old and new spellings, in and out."""

from typing import Any

import pytest

from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError
from cascadevl.models.families import FAMILIES, read_decoder, write_decoder
from cascadevl.ops.rope import Rope

QWEN3_8B: dict[str, Any] = {
    "architectures": ["Qwen3ForCausalLM"],
    "model_type": "qwen3",
    "attention_bias": False,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 12288,
    "max_position_embeddings": 40960,
    "num_attention_heads": 32,
    "num_hidden_layers": 36,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-6,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "vocab_size": 151936,
}


def test_qwen3_8b_as_published() -> None:
    config = read_decoder(QWEN3_8B, tied=False)
    assert (config.head_size, config.num_heads, config.num_kv_heads, config.qkv_bias, config.qk_norm) == (
        128,
        32,
        8,
        False,
        True,
    )
    assert config.rope == Rope(theta=1e6, max_position=40960)


def test_internvl3_carries_dynamic_scaling() -> None:
    """[qwen2, rope_scaling {dynamic, 2.0}, 32768]: the head size follows from width and heads."""
    official = {
        **QWEN3_8B,
        "model_type": "qwen2",
        "hidden_size": 3584,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
    }
    official |= {
        "rope_scaling": {"factor": 2.0, "rope_type": "dynamic", "type": "dynamic"},
        "max_position_embeddings": 32768,
    }
    del official["head_dim"], official["attention_bias"]
    config = read_decoder(official, tied=False)
    assert (config.head_size, config.qkv_bias, config.qk_norm) == (128, True, False)
    assert config.rope == Rope(theta=1e6, kind="dynamic", factor=2.0, max_position=32768)


def test_dynamic_scaling_starts_behind_max_position_as_in_transformers() -> None:
    """An `original_max_position_embeddings` beside it is read by other kinds of scaling alone."""
    scaling = {"rope_type": "dynamic", "factor": 2.0, "original_max_position_embeddings": 8192}
    assert read_decoder({**QWEN3_8B, "rope_scaling": scaling}, tied=False).rope.max_position == 40960


@pytest.mark.parametrize(
    "spelling",
    [
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 4}},
        {"rope_theta": 5e5, "rope_scaling": {"rope_type": "linear", "factor": 4.0}},
        {
            "rope_theta": None,
            "rope_scaling": None,
            "rope_parameters": {"rope_type": "linear", "factor": 4.0, "rope_theta": 5e5},
        },
    ],
)
def test_old_and_new_spellings_of_the_rotary_settings_agree(spelling: dict[str, Any]) -> None:
    expected = Rope(theta=5e5, kind="linear", factor=4.0, max_position=40960)
    assert read_decoder({**QWEN3_8B, **spelling}, tied=False).rope == expected


def test_the_family_may_follow_from_the_architecture() -> None:
    official = {key: value for key, value in QWEN3_8B.items() if key != "model_type"}
    assert read_decoder(official, tied=False) == read_decoder(QWEN3_8B, tied=False)


@pytest.mark.parametrize("family", TINY_DECODERS)
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("kind", ["default", "linear", "dynamic"])
def test_written_and_read_is_the_same(family: str, tied: bool, kind: str) -> None:
    factor = 1.0 if kind == "default" else 2.0
    rope = Rope(theta=5e5, kind=kind, factor=factor, max_position=77)  # type: ignore[arg-type]
    config = evolve(TINY_DECODERS[family], tied=tied, rope=rope)
    assert read_decoder(write_decoder(config), tied=tied) == config


def test_every_family_has_a_tiny_member() -> None:
    assert TINY_DECODERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "type 'mamba'. Supported: qwen2, qwen3"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; expected 'silu'"),
        (
            {"rope_scaling": {"type": "yarn", "factor": 2.0}},
            "'yarn' is not supported here; supported: default, linear, dynamic",
        ),
        ({"rope_scaling": {"type": "dynamic"}}, "lacks 'factor'"),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
        ({"vocab_size": ...}, "lacks 'vocab_size'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    official = {key: value for key, value in {**QWEN3_8B, **changes}.items() if value is not ...}
    with pytest.raises(CheckpointError, match=message):
        read_decoder(official, tied=False)
