"""A moving average of the weights that learn: what is saved, while the weights themselves go on."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Ema(nn.Module):
    """average ← decay · average + (1 - decay) · weight, fp32, after every step.

    In the first steps the decay is shortened to (1 + n)/(10 + n), so that the random start is soon forgotten. It is a
    module so that it is saved as the others are.
    """

    num_updates: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter], decay: float) -> None:
        super().__init__()
        self.decay = decay
        self._learning = tuple(parameters)
        self.averages = nn.ParameterList(
            nn.Parameter(p.detach().float().clone(), requires_grad=False) for p in parameters
        )
        self.register_buffer("num_updates", torch.zeros((), dtype=torch.int64))

    @torch.no_grad()
    def update(self) -> None:
        self.num_updates += 1
        done = int(self.num_updates)
        decay = min(self.decay, (1 + done) / (10 + done))
        for average, parameter in zip(self.averages, self._learning, strict=True):
            average.lerp_(parameter.detach().to(average.dtype), 1 - decay)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Within, the model has the averages for its weights."""
        kept = [parameter.detach().clone() for parameter in self._learning]
        self._put(list(self.averages))
        try:
            yield
        finally:
            self._put(kept)

    @torch.no_grad()
    def _put(self, tensors: Sequence[Tensor]) -> None:
        for parameter, tensor in zip(self._learning, tensors, strict=True):
            parameter.copy_(tensor)
