"""Objective: (model, Batch) -> Loss. Each method is one file of this folder."""

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import Tensor

from cascadevl.data.batch import Batch


class Loss(NamedTuple):
    """What is minimised, and what is shown."""

    total: Tensor
    """Scalar with a gradient, normalised."""
    terms: dict[str, float]
    num_tokens: int
    """Supervised tokens that `total` averages over."""


Objective = Callable[[Any, Batch], Loss]
"""The model is whatever the objective asks of it: an InternVL, or a wrapper that looks like one."""
