"""Official language-model configs <-> `DecoderConfig`. A further Llama-shaped family is a row."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cascadevl.core.errors import CheckpointError
from cascadevl.models.config import DecoderConfig
from cascadevl.ops.rope import Rope


@dataclass(frozen=True, kw_only=True, slots=True)
class Family:
    """What the config of a family leaves unsaid."""

    architecture: str
    qkv_bias: bool | None
    """None: the config's `attention_bias` says it."""
    qk_norm: bool


FAMILIES: dict[str, Family] = {
    "qwen2": Family(architecture="Qwen2ForCausalLM", qkv_bias=True, qk_norm=False),
    "qwen3": Family(architecture="Qwen3ForCausalLM", qkv_bias=None, qk_norm=True),
}
"""Keys are transformers' `model_type`."""


def read_decoder(official: Mapping[str, Any], *, tied: bool) -> DecoderConfig:
    """From `llm_config` or `text_config`; an unknown family is refused with what is supported."""
    kind = _model_type(official)
    if kind not in FAMILIES:
        raise CheckpointError(f"The language model is of type {kind!r}. Supported: {', '.join(FAMILIES)}.")
    family = FAMILIES[kind]
    if official.get("use_sliding_window"):
        raise CheckpointError(f"The {kind} config switches sliding windows on; no released InternVL does.")
    if official.get("hidden_act", "silu") != "silu":
        raise CheckpointError(f"The {kind} config has hidden_act {official['hidden_act']!r}; expected 'silu'.")
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
            rope=_read_rope(official),
            norm_eps=official.get("rms_norm_eps", 1e-6),
            qkv_bias=bias,
            qk_norm=family.qk_norm,
            tied=tied,
        )
    except KeyError as error:
        raise CheckpointError(f"The {kind} config lacks {error}: it is no complete language-model config.") from error


def write_decoder(config: DecoderConfig) -> dict[str, Any]:
    """The official config, with both the old and the new spelling of the rotary settings."""
    rope = config.rope
    scaling = None if rope.kind == "default" else {"rope_type": rope.kind, "factor": rope.factor}
    if scaling and rope.kind == "dynamic":
        scaling["original_max_position_embeddings"] = rope.max_position
    official = {
        "architectures": [FAMILIES[config.family].architecture],
        "model_type": config.family,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.mlp_size,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.num_kv_heads,
        "head_dim": config.head_size,
        "vocab_size": config.vocab_size,
        "max_position_embeddings": rope.max_position,
        "rope_theta": rope.theta,
        "rope_scaling": scaling,
        "rope_parameters": {"rope_type": rope.kind, "rope_theta": rope.theta, **(scaling or {})},
        "rms_norm_eps": config.norm_eps,
        "hidden_act": "silu",
        "tie_word_embeddings": config.tied,
        "use_cache": True,
        "use_sliding_window": False,
    }
    if FAMILIES[config.family].qkv_bias is None:
        official["attention_bias"] = config.qkv_bias
    return official


def _model_type(official: Mapping[str, Any]) -> str:
    if "model_type" in official:
        return str(official["model_type"])
    architectures = official.get("architectures") or ["nothing"]
    by_architecture = {family.architecture: name for name, family in FAMILIES.items()}
    return by_architecture.get(architectures[0], architectures[0])


def _read_rope(official: Mapping[str, Any]) -> Rope:
    """`rope_theta` and `rope_scaling` of older configs, `rope_parameters` of newer ones."""
    scaling = {**(official.get("rope_scaling") or {}), **(official.get("rope_parameters") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = scaling.get("rope_theta", official.get("rope_theta", 10000.0))
    trained = official.get("max_position_embeddings", 32768)
    if kind == "default":
        return Rope(theta=theta, max_position=trained)
    if kind not in ("linear", "dynamic"):
        raise CheckpointError(f"Rope scaling {kind!r} is not supported here; supported: default, linear, dynamic.")
    return Rope(theta=theta, kind=kind, factor=float(scaling["factor"]), max_position=trained)
