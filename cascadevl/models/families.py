"""Official language-model configs <-> `DecoderConfig`. A further family is a row.

What a family's tensors are called, where that differs, stands in `checkpoints/language_names.py`.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from cascadevl.core.errors import CheckpointError
from cascadevl.models.config import DecoderConfig, ExpertsConfig
from cascadevl.models.rope_config import read_rope, write_rope

Official = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What the config of a family leaves unsaid."""

    architecture: str
    qkv_bias: bool | None = False
    """None: the config's `attention_bias` says it."""
    qk_norm: bool = False
    native: str = ""
    """The family that the transformers layout takes it for; empty: itself."""
    more: Callable[[Official], dict[str, Any]] = lambda official: {}
    """Official config -> further fields of DecoderConfig."""
    write: Callable[[DecoderConfig], dict[str, Any]] = lambda config: {}
    """And back."""


def _phi3(official: Official) -> dict[str, Any]:
    return {"window": official.get("sliding_window")}


def _write_phi3(config: DecoderConfig) -> dict[str, Any]:
    # transformers would else take the ids of Phi-3's own tokenizer, which a smaller one does not have.
    return {"sliding_window": config.window, "pad_token_id": None, "bos_token_id": None, "eos_token_id": None}


def _qwen3_moe(official: Official) -> dict[str, Any]:
    if official.get("decoder_sparse_step", 1) != 1 or official.get("mlp_only_layers"):
        raise CheckpointError("The qwen3_moe config mixes dense layers with experts; no released InternVL does.")
    experts = ExpertsConfig(
        num_experts=official.get("num_local_experts") or official["num_experts"],  # newer and older name
        num_per_token=official["num_experts_per_tok"],
        mlp_size=official["moe_intermediate_size"],
        normalise=official.get("norm_topk_prob", False),
    )
    return {"experts": experts}


def _write_qwen3_moe(config: DecoderConfig) -> dict[str, Any]:
    assert config.experts is not None
    return {
        "num_experts": config.experts.num_experts,
        "num_experts_per_tok": config.experts.num_per_token,
        "moe_intermediate_size": config.experts.mlp_size,
        "norm_topk_prob": config.experts.normalise,
        "decoder_sparse_step": 1,
        "mlp_only_layers": [],
    }


def _gpt_oss(official: Official) -> dict[str, Any]:
    """Sinks, alternating windows (every second layer sees all), biased experts with a clamped SwiGLU."""
    num_layers = official["num_hidden_layers"]
    alternating = ["full_attention" if i % 2 else "sliding_attention" for i in range(num_layers)]
    if official.get("layer_types", alternating) != alternating:
        raise CheckpointError("The gpt_oss config has layer_types that do not alternate, sliding_attention first.")
    if official.get("swiglu_alpha", 1.702) != 1.702:
        raise CheckpointError(f"The gpt_oss config has swiglu_alpha {official['swiglu_alpha']}; expected 1.702.")
    experts = ExpertsConfig(
        num_experts=official["num_local_experts"],
        num_per_token=official.get("num_experts_per_tok", official.get("experts_per_token")),
        mlp_size=official["intermediate_size"],
        normalise=True,
        clamp=official.get("swiglu_limit", 7.0),
    )
    window = official.get("sliding_window", 128)
    return {"experts": experts, "sinks": True, "out_bias": True, "window": window, "full_every": 2}


def _write_gpt_oss(config: DecoderConfig) -> dict[str, Any]:
    assert config.experts is not None
    return {
        "num_local_experts": config.experts.num_experts,
        "num_experts_per_tok": config.experts.num_per_token,
        "experts_per_token": config.experts.num_per_token,
        "swiglu_limit": config.experts.clamp,
        "sliding_window": config.window,
        "layer_types": [
            "full_attention" if config.layer_window(i) is None else "sliding_attention"
            for i in range(config.num_layers)
        ],
        "attention_bias": True,
    }


FAMILIES: dict[str, Family] = {
    "llama": Family(architecture="LlamaForCausalLM"),
    "internlm2": Family(architecture="InternLM2ForCausalLM", native="llama"),
    "internlm3": Family(architecture="InternLM3ForCausalLM", native="llama"),
    "phi3": Family(architecture="Phi3ForCausalLM", more=_phi3, write=_write_phi3),
    "qwen2": Family(architecture="Qwen2ForCausalLM", qkv_bias=True),
    "qwen3": Family(architecture="Qwen3ForCausalLM", qkv_bias=None, qk_norm=True),
    "qwen3_moe": Family(
        architecture="Qwen3MoeForCausalLM", qkv_bias=None, qk_norm=True, more=_qwen3_moe, write=_write_qwen3_moe
    ),
    "gpt_oss": Family(architecture="GptOssForCausalLM", qkv_bias=True, more=_gpt_oss, write=_write_gpt_oss),
}
"""Keys are transformers' `model_type`. Yi is a llama; so is Llama-3."""

UNBIASED = ("bias", "mlp_bias", "qkv_bias", "attention_bias")
"""Switches for biases that only families without them have."""


def read_decoder(official: Official, *, tied: bool) -> DecoderConfig:
    """From `llm_config` or `text_config`; an unknown family is refused with what is supported."""
    kind = _model_type(official)
    family = FAMILIES[kind]
    _refuse_what_no_release_has(kind, official)
    try:
        hidden, heads = official["hidden_size"], official["num_attention_heads"]
        bias = bool(official.get("attention_bias", False)) if family.qkv_bias is None else family.qkv_bias
        return DecoderConfig(
            family=kind,
            hidden_size=hidden,
            mlp_size=official["intermediate_size"],
            num_layers=official["num_hidden_layers"],
            num_heads=heads,
            num_kv_heads=official.get("num_key_value_heads") or heads,
            head_size=official.get("head_dim") or hidden // heads,
            vocab_size=official["vocab_size"],
            rope=read_rope(official),
            norm_eps=official.get("rms_norm_eps", 1e-6),
            qkv_bias=bias,
            qk_norm=family.qk_norm,
            tied=tied,
            **family.more(official),
        )
    except KeyError as error:
        raise CheckpointError(f"The {kind} config lacks {error}: it is no complete language-model config.") from error


def write_decoder(config: DecoderConfig, *, native: bool = False) -> dict[str, Any]:
    """The official config, with both the old and the new spelling of the rotary settings.

    `native`: as transformers knows the family, which takes some for llamas.
    """
    kind = native_family(config.family) if native else config.family
    official = {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "use_sliding_window": False,
        **write_rope(config.rope),
        **FAMILIES[kind].write(config),
    }
    if FAMILIES[kind].qkv_bias is None:
        official["attention_bias"] = config.qkv_bias
    return official


def native_family(family: str) -> str:
    """The family that the transformers layout takes this one for."""
    return FAMILIES[family].native or family


def _model_type(official: Official) -> str:
    """By `model_type`, else by `architectures`; both must speak of the same family."""
    by_architecture = {family.architecture: name for name, family in FAMILIES.items()}
    architecture = str((official.get("architectures") or [""])[0])
    kind = str(official.get("model_type") or by_architecture.get(architecture, architecture))
    if kind not in FAMILIES:
        raise CheckpointError(f"The language model is of type {kind!r}. Supported: {', '.join(FAMILIES)}.")
    if by_architecture.get(architecture, kind) != kind:
        raise CheckpointError(f"The language-model config contradicts itself: {kind!r} and {architecture!r}.")
    return kind


def _refuse_what_no_release_has(kind: str, official: Official) -> None:
    if official.get("use_sliding_window"):
        raise CheckpointError(f"The {kind} config switches sliding windows on; no released InternVL does.")
    if official.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"The {kind} config has hidden_act {official['hidden_act']!r}; expected 'silu'.")
    if official.get("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(f"The {kind} config turns a part of each head only; no released InternVL does.")
    switched = [name for name in UNBIASED if official.get(name)]
    if switched and FAMILIES[kind].qkv_bias is False:
        raise CheckpointError(f"The {kind} config switches {', '.join(switched)} on; released ones have no biases.")
