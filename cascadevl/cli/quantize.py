"""Round a model's weights to few bits; the quality card says what it cost."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError
from cascadevl.core.precision import WEIGHT_FORMATS


@dataclass(frozen=True, kw_only=True, slots=True)
class Order:
    """Round a model's weights to few bits, and say what it cost.

    The folder loads like any other, here and in engines that read compressed-tensors. quality.md and quality.json in
    it hold perplexity, agreement of answers, KL per token and error per layer on samples held out. A model that lost
    too much is not written.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An embedded model, a folder, or a hub id."""
    out: Path
    """The folder to make."""
    weights: str
    """int8, int8-g64, int4-g32, int4-g64, int4-g128, each int4 also with -zeros, mxfp4, fp8 or fp8-blocks; int4 is
    int4-g32-zeros."""
    kv: str = "auto"
    """What engines shall keep keys and values in: auto, float32, bfloat16, int8, int4 or fp8. Written down only."""
    calibration: str = "gym"
    """gym: drawn pictures. none: round to nearest. Or JSON lines with OpenAI `messages` that end with an answer, of
    which every fourth is held out for the card."""
    method: str = "gptq"
    """What calibration does: gptq (weights make up for each other's rounding), awq (large inputs get finer weights),
    or awq+gptq."""
    lm_head: bool = False
    """Round the output matrix too; one tied to the embeddings becomes a matrix of its own."""
    vision: bool = False
    """Round the tower and the projector too."""
    max_kl: float = 0.1
    """Mean KL per token, in nats, above which nothing is written."""
    force: bool = False
    """Write it whatever it lost."""
    samples: int = 64
    """Drawn samples to calibrate with, and as many to compare with."""


def main(arguments: list[str]) -> int:
    order = tyro.cli(Order, prog="cascadevl quantize", args=arguments)
    if order.weights not in WEIGHT_FORMATS:
        known = ", ".join(WEIGHT_FORMATS)
        raise ConfigError(f"weights: {order.weights!r} is no format we know; expected one of {known}.")
    locate(order.model)

    from cascadevl.recipes.quantize import Quantize, quantize_folder

    kv: Any = order.kv  # Quantize refuses what it does not know.
    method: Any = order.method
    settings = Quantize(
        weights=order.weights,
        kv=kv,
        calibration=order.calibration,
        method=method,
        lm_head=order.lm_head,
        vision=order.vision,
        max_kl=order.max_kl,
        force=order.force,
        num_samples=order.samples,
    )
    quality = quantize_folder(order.model, order.out, settings)
    print(f"{order.model} -> {order.out} ({order.weights}), {quality.bytes / quality.bytes_whole:.0%} of the bytes")
    print(
        f"  perplexity {quality.perplexity_whole:.3f} -> {quality.perplexity:.3f}, KL {quality.kl_mean:.4f} per token"
    )
    print(
        f"  {quality.answer_agreement:.0%} of the answers and {quality.token_agreement:.1%} of the tokens are the same"
    )
    if quality.kl_mean > order.max_kl:
        print(f"  kept although its KL is above {order.max_kl}, as --force says")
    return 0
