"""Official language-model configs, old and new spellings, in and out."""

import math
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
        "architectures": ["Qwen2ForCausalLM"],
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
    for config in (evolve(TINY_DECODERS[family], tied=tied, rope=rope), evolve(TINY_DECODERS[family], tied=tied)):
        assert read_decoder(write_decoder(config), tied=tied) == config
        native = read_decoder(write_decoder(config, native=True), tied=tied)
        assert native == evolve(config, family=FAMILIES[family].native or family)


def test_phi_3_mini_128k_as_published() -> None:
    """Its first release says "su"; the factor of cos and sin follows from both lengths."""
    official = {
        **QWEN3_8B, "architectures": ["Phi3ForCausalLM"], "model_type": "phi3", "hidden_size": 3072,
        "num_key_value_heads": 32, "intermediate_size": 8192, "vocab_size": 32020, "sliding_window": 262144,
        "max_position_embeddings": 131072, "original_max_position_embeddings": 4096, "rope_theta": 10000.0,
        "rope_scaling": {"type": "su", "short_factor": [1.1] * 48, "long_factor": [2.0] * 48},
    }  # fmt: skip
    del official["head_dim"]
    config = read_decoder(official, tied=False)
    assert (config.head_size, config.window, config.rope.trained_position) == (96, 262144, 4096)
    assert config.rope.kind == "longrope" and config.rope.attention_factor == pytest.approx(1.19024, abs=1e-5)


def test_gpt_oss_20b_as_published() -> None:
    official = {
        "architectures": ["GptOssForCausalLM"], "model_type": "gpt_oss", "attention_bias": True, "head_dim": 64,
        "hidden_size": 2880, "intermediate_size": 2880, "num_attention_heads": 64, "num_hidden_layers": 24,
        "num_key_value_heads": 8, "num_local_experts": 32, "num_experts_per_tok": 4, "sliding_window": 128,
        "layer_types": ["sliding_attention", "full_attention"] * 12, "swiglu_limit": 7.0, "vocab_size": 201088,
        "max_position_embeddings": 131072, "rope_theta": 150000, "rms_norm_eps": 1e-5,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": False,
        },
    }  # fmt: skip
    config = read_decoder(official, tied=False)
    assert [config.layer_window(index) for index in range(4)] == [128, None, 128, None]
    assert config.sinks and config.out_bias and config.experts is not None and config.experts.clamp == 7.0
    assert config.rope.attention_factor == pytest.approx(0.1 * math.log(32) + 1) and not config.rope.truncate
    with pytest.raises(CheckpointError, match="layer_types that do not alternate"):
        read_decoder({**official, "layer_types": ["full_attention"] * 24}, tied=False)


def test_every_family_has_a_tiny_member() -> None:
    assert TINY_DECODERS.keys() == FAMILIES.keys()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model_type": "mamba"}, "type 'mamba'. Supported: llama, internlm2, .*qwen3_moe, gpt_oss"),
        ({"use_sliding_window": True}, "sliding windows"),
        ({"hidden_act": "gelu"}, "hidden_act 'gelu'; expected 'silu'"),
        ({"rope_scaling": {"type": "llama3", "factor": 2.0, "original_max_position_embeddings": 9}}, "'llama3' is not"),
        ({"rope_scaling": {"type": "yarn", "factor": 2.0}}, "'yarn' is incomplete"),
        ({"rope_scaling": {"type": "dynamic"}}, "'dynamic' is incomplete .'factor'."),
        ({"model_type": "llama", "architectures": None, "attention_bias": True}, "switches attention_bias on"),
        ({"model_type": "llama"}, "contradicts itself: 'llama' and 'Qwen3ForCausalLM'"),
        ({"partial_rotary_factor": 0.5}, "a part of each head"),
        ({"hidden_size": ...}, "lacks 'hidden_size'"),
        ({"vocab_size": ...}, "lacks 'vocab_size'"),
    ],
)
def test_what_cannot_be_read_is_refused_by_name(changes: dict[str, Any], message: str) -> None:
    official = {key: value for key, value in {**QWEN3_8B, **changes}.items() if value is not ...}
    with pytest.raises(CheckpointError, match=message):
        read_decoder(official, tied=False)
