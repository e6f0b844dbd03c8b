"""How a model computes while it learns: precision, recomputation, compilation. All of it from outside.

Learned weights are fp32 masters always: an update of 1e-5 of a weight vanishes in bf16, which keeps three digits.
Products may be made in bf16 under autocast; norms, softmax and losses stay fp32.
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any

import torch
from torch import nn
from torch.distributed._composable import checkpoint

from cascadevl.core.errors import ConfigError
from cascadevl.core.hardware import cpu_multiplies_bf16
from cascadevl.models.internvl import InternVL
from cascadevl.training.config import Precision


def resolve_precision(wanted: Precision, device: torch.device) -> torch.dtype:
    """The type of products. bfloat16 is refused where a device takes 6 to 300 times as long for it as for float32."""
    fast = cpu_multiplies_bf16() if device.type == "cpu" else device.type == "cuda" and torch.cuda.is_bf16_supported()
    if wanted == "bfloat16" and not fast:
        raise ConfigError(f"This {device.type} has no units for bfloat16: set the precision to auto or float32.")
    return torch.bfloat16 if wanted != "float32" and fast else torch.float32


def autocast(dtype: torch.dtype, device: torch.device) -> Callable[[], AbstractContextManager[Any]]:
    """What to compute a loss in."""
    return nullcontext if dtype == torch.float32 else partial(torch.autocast, device.type, dtype=dtype)


def blocks(model: InternVL) -> Iterator[nn.Module]:
    """Of tower and decoder."""
    yield from model.vision_model.encoder.layers
    yield from model.language_model.model.layers


def recompute(model: InternVL) -> None:
    """Keep the inputs of every block alone; its insides are computed a second time for the gradient.

    Random numbers are drawn alike both times, so drop path drops the same. The hooks leave names as they are.
    """
    for block in blocks(model):
        checkpoint(block)


def compile_parts(model: InternVL) -> None:
    """Compile, at their first use, the tower's blocks, the projector and the decoder's dense MLPs.

    Attention of the decoder stays as it is: it asks `attend`, a function that is another for every pack, and each
    would be compiled anew. So do mixtures of experts, whose rows differ from call to call.
    """
    for block in model.vision_model.encoder.layers:
        block.compile(dynamic=True)
    model.mlp1.compile(dynamic=True)
    if model.config.decoder.experts is None:
        for block in model.language_model.model.layers:
            block.get_submodule("mlp").compile(dynamic=True)
