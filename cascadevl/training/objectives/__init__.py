"""Objective: (model, Batch) -> Loss. Each method is one file of this folder."""

from collections.abc import Callable
from typing import NamedTuple

from torch import Tensor, nn

from cascadevl.data.batch import Batch


class Loss(NamedTuple):
    """What is minimised, and what is shown."""

    total: Tensor
    """Scalar with a gradient, normalised."""
    terms: dict[str, float]
    num_tokens: int
    """Supervised tokens that `total` averages over."""


Objective = Callable[[nn.Module, Batch], Loss]
