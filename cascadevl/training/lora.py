"""LoRA on any part: which linears get a change, and QLoRA's rounding under them."""

from torch import nn

from cascadevl.models.internvl import InternVL
from cascadevl.models.lora import learn_change, learned_changes
from cascadevl.models.quant_linear import QuantLinear, quantize_linears
from cascadevl.ops.formats import FORMATS
from cascadevl.training.config import LoraConfig
from cascadevl.training.trainable import Named, matching

NAME = "learned"
"""Of the adapter while it is attached."""
LEFT_OUT = (".mlp.gate", ".mlp.router", "lm_head", "gating", "mlp2")
"""Ends and beginnings of linears that presets do not mean: routers and output matrices keep what they know."""


def attach_lora(model: InternVL, config: LoraConfig, *, seed: int) -> Named:
    """Freeze the model and set a fresh change beside every linear that `config.on` names; gives what learns."""
    assert config.rank
    model.requires_grad_(False)
    if config.quantize is not None:
        quantize_linears(model.language_model.model.layers, lambda name: True, FORMATS[config.quantize])
    paths = matching(config.on, linears(model), "linear")
    for number, path in enumerate(paths):
        learn_change(
            model,
            path,
            NAME,
            rank=config.rank,
            alpha=config.alpha,
            dora=config.dora,
            dropout=config.dropout,
            seed=1_000_003 * seed + number,
        )
    changes = learned_changes(model, NAME)
    return [(f"{path}.{name}", p) for path, change in changes.items() for name, p in change.named_parameters()]


def linears(model: InternVL) -> list[str]:
    """Paths of the linears that may have a change."""
    return [
        path
        for path, module in model.named_modules()
        if isinstance(module, nn.Linear | QuantLinear) and not path.endswith(LEFT_OUT) and not path.startswith(LEFT_OUT)
    ]
