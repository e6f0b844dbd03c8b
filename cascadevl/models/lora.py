"""Low-rank changes that are being learned: LoRA, DoRA, and LoRA over weights of few bits (QLoRA, arXiv 2305.14314).

What a finished change computes stands in linear.py. Legend: F outputs, D inputs, R rank.
"""

import math
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.models.linear import AdaptedLinear, LowRank
from cascadevl.models.quant_linear import QuantLinear


class LearnedChange(LowRank):
    """A change under training. Fresh, it changes nothing: B is zero, and DoRA's magnitudes are the rows' lengths.

    DoRA's gain follows A and B; the length it divides by is taken as a constant, as the paper does (§4.3).
    """

    def __init__(
        self,
        weight: Callable[[], Tensor],
        shape: tuple[int, int],
        rank: int,
        scale: float,
        *,
        dora: bool,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        """`weight` gives the matrix (F, D) that is changed; only DoRA asks for it."""
        outputs, inputs = shape
        a_RD = torch.empty(rank, inputs).uniform_(-1 / math.sqrt(inputs), 1 / math.sqrt(inputs), generator=generator)
        super().__init__(a_RD, torch.zeros(outputs, rank), scale, gain_F=None)
        self.dropout = dropout
        self._weight = weight
        self.magnitude = nn.Parameter(weight().float().norm(dim=1)) if dora else None
        self.requires_grad_()

    def forward(self, x: Tensor, unbiased: Tensor) -> Tensor:
        x = F.dropout(x, self.dropout, self.training)
        change = self.scale * F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)
        if self.magnitude is None:
            return change
        gain_F = self.magnitude / self.lengths()
        return (gain_F - 1) * unbiased + gain_F * change

    @torch.no_grad()
    def lengths(self) -> Tensor:
        """(F,) of the changed rows."""
        return (self._weight().float() + self.delta()).norm(dim=1)


class AdaptedQuantLinear(nn.Module):
    """A linear of few bits with changes by name, as `AdaptedLinear` is for whole weights."""

    def __init__(self, base: QuantLinear) -> None:
        super().__init__()
        self.base = base
        self.adapters = nn.ModuleDict()
        self.in_use: tuple[str, ...] = ()
        bias_F = base.dequantized().bias
        self._bias_F = None if bias_F is None else bias_F.detach()

    def forward(self, input: Tensor) -> Tensor:
        out = self.base(input)
        unbiased = out if self._bias_F is None else out - self._bias_F.to(out.dtype)
        changes = [change for name in self.in_use for change in self.adapters[name].children()]
        return torch.stack([out, *(change(input, unbiased) for change in changes)]).sum(0)


def learn_change(
    model: nn.Module, path: str, name: str, *, rank: int, alpha: float, dora: bool, dropout: float, seed: int
) -> LearnedChange:
    """Set a fresh change of the linear at `path` beside it, in use, under the adapter's name."""
    linear = model.get_submodule(path)
    assert isinstance(linear, nn.Linear | QuantLinear)
    change = LearnedChange(
        lambda: (linear.dequantized() if isinstance(linear, QuantLinear) else linear).weight.detach(),
        (linear.out_features, linear.in_features),
        rank,
        alpha / rank,
        dora=dora,
        dropout=dropout,
        generator=torch.Generator().manual_seed(seed),
    ).to(linear.quantized.quants.device if isinstance(linear, QuantLinear) else linear.weight.device)
    if not isinstance(linear, AdaptedLinear):
        model.set_submodule(
            path, AdaptedQuantLinear(linear) if isinstance(linear, QuantLinear) else AdaptedLinear(linear)
        )
    holder = model.get_submodule(path)
    assert isinstance(holder, AdaptedLinear | AdaptedQuantLinear)
    holder.adapters[name] = nn.ModuleList([change])
    holder.in_use = (*holder.in_use, name)
    return change


def learned_changes(model: nn.Module, name: str) -> dict[str, LearnedChange]:
    """The changes of one adapter by the path of their linear."""
    return {
        path: change
        for path, module in model.named_modules()
        if isinstance(module, AdaptedLinear | AdaptedQuantLinear) and name in module.adapters
        for change in module.adapters[name].children()
        if isinstance(change, LearnedChange)
    }
