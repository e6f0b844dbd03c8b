"""Rotary settings in official configs: `rope_theta` and `rope_scaling` of older ones, `rope_parameters` of newer."""

import math
from collections.abc import Mapping
from typing import Any

from cascadevl.core.errors import CheckpointError
from cascadevl.ops.rope import Rope


def read_rope(official: Mapping[str, Any]) -> Rope:
    """From a language model's config. Raises CheckpointError for a scaling that is unknown or incomplete."""
    scaling = {**(official.get("rope_scaling") or {}), **(official.get("rope_parameters") or {})}
    kind = scaling.get("rope_type", scaling.get("type", "default"))
    theta = scaling.get("rope_theta", official.get("rope_theta", 10000.0))
    longest = official.get("max_position_embeddings", 32768)
    trained: Any = scaling.get("original_max_position_embeddings") or official.get("original_max_position_embeddings")
    try:
        if kind == "default":
            return Rope(theta=theta, max_position=longest)
        if kind in ("linear", "dynamic"):
            return Rope(theta=theta, kind=kind, factor=float(scaling["factor"]), max_position=longest)
        factor = float(scaling.get("factor") or longest / trained)
        shared: dict[str, Any] = {
            "theta": theta,
            "factor": factor,
            "max_position": longest,
            "trained_position": trained,
        }
        if kind == "yarn":
            return Rope(
                kind="yarn",
                attention_factor=_yarn_attention(scaling, factor),
                beta_fast=scaling.get("beta_fast") or 32.0,
                beta_slow=scaling.get("beta_slow") or 1.0,
                truncate=scaling.get("truncate", True),
                **shared,
            )
        if kind in ("longrope", "su"):  # "su" in the configs of Phi-3's first release
            grown = math.sqrt(1 + math.log(factor) / math.log(trained)) if factor > 1 else 1.0
            return Rope(
                kind="longrope",
                attention_factor=scaling.get("attention_factor") or grown,
                short_factors=tuple(scaling["short_factor"]),
                long_factors=tuple(scaling["long_factor"]),
                **shared,
            )
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"The rope scaling {kind!r} is incomplete ({error}): {dict(scaling)}.") from error
    raise CheckpointError(
        f"Rope scaling {kind!r} is not supported here; supported: default, linear, dynamic, yarn, longrope."
    )


def _yarn_attention(scaling: Mapping[str, Any], factor: float) -> float:
    """YaRN, arXiv 2309.00071, equation 22, with the later generalisation to two scales."""

    def grown(scale: float) -> float:
        return 0.1 * scale * math.log(factor) + 1.0 if factor > 1 else 1.0

    given, one, all_dims = (scaling.get(name) for name in ("attention_factor", "mscale", "mscale_all_dim"))
    if given is not None:
        return float(given)
    return grown(one) / grown(all_dims) if one and all_dims else grown(1.0)


def write_rope(rope: Rope) -> dict[str, Any]:
    """The fields of a language model's config, in both spellings."""
    scaling: dict[str, Any] = {"rope_type": rope.kind, "factor": rope.factor}
    if rope.kind == "dynamic":
        scaling["original_max_position_embeddings"] = rope.max_position
    if rope.kind in ("yarn", "longrope"):
        scaling["original_max_position_embeddings"] = rope.trained_position
        scaling["attention_factor"] = rope.attention_factor
    if rope.kind == "yarn":
        scaling |= {"beta_fast": rope.beta_fast, "beta_slow": rope.beta_slow, "truncate": rope.truncate}
    if rope.kind == "longrope":
        scaling |= {"short_factor": list(rope.short_factors), "long_factor": list(rope.long_factors)}
    plain = rope.kind == "default"
    trained = {"original_max_position_embeddings": rope.trained_position} if rope.kind == "longrope" else {}
    return {
        "max_position_embeddings": rope.max_position,
        **trained,
        "rope_theta": rope.theta,
        "rope_scaling": None if plain else scaling,
        "rope_parameters": {"rope_theta": rope.theta, **({"rope_type": "default"} if plain else scaling)},
    }
