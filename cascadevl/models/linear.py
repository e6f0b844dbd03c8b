"""Low-rank changes of a matrix (LoRA, arXiv 2106.09685; DoRA, arXiv 2402.09353) and a linear that has some.

Legend: F outputs, D inputs, R rank.
"""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.core.errors import ConfigError


class LowRank(nn.Module):
    """scale·B·A, added to some rows of a matrix; with a gain (DoRA) these are scaled afterwards.

    Computes in the type of A and B, which may be wider than the matrix.
    """

    def __init__(
        self, a_RD: Tensor, b_FR: Tensor, scale: float, *, at: int = 0, rows: int | None = None, gain_F: Tensor | None
    ) -> None:
        """Rows `at` to `at + rows`; with `rows` None all of them. `gain_F`: DoRA's magnitude over the norms
        that the changed rows have."""
        super().__init__()
        self.a = nn.Parameter(a_RD, requires_grad=False)
        self.b = nn.Parameter(b_FR, requires_grad=False)
        self.scale, self.at, self.rows = scale, at, rows
        self.register_buffer("gain", gain_F)
        self.gain: Tensor | None

    def delta(self) -> Tensor:
        """(F, D), fp32."""
        return self.scale * (self.b.float() @ self.a.float())

    def merged(self, weight_FD: Tensor) -> Tensor:
        """The rows with the change in them, fp32."""
        changed_FD = weight_FD.float() + self.delta().to(weight_FD.device)
        return changed_FD if self.gain is None else self.gain.to(changed_FD)[:, None] * changed_FD

    def unmerged(self, merged_FD: Tensor) -> Tensor:
        """The rows as they were, fp32, but for rounding."""
        changed_FD = merged_FD.float()
        if self.gain is not None:
            changed_FD = changed_FD / self.gain.to(changed_FD)[:, None]
        return changed_FD - self.delta().to(merged_FD.device)

    def forward(self, x: Tensor, unbiased: Tensor) -> Tensor:
        """What is added to outputs (…, F of all rows) that have no bias yet, as far as these rows go."""
        change = self.scale * F.linear(F.linear(x.to(self.a.dtype), self.a), self.b)
        if self.gain is None:
            return change
        return (self.gain - 1) * self.of(unbiased) + self.gain * change

    def of(self, outputs: Tensor) -> Tensor:
        """The part of outputs that these rows make."""
        return outputs if self.rows is None else outputs.narrow(-1, self.at, self.rows)


class AdaptedLinear(nn.Linear):
    """A linear with low-rank changes by name, of which some are in use.

    The weight stays what and where it was, under its own name; each change counts from it, so that two
    in use are two additions.
    """

    def __init__(self, linear: nn.Linear) -> None:
        with torch.device("meta"):
            super().__init__(linear.in_features, linear.out_features, bias=linear.bias is not None)
        self.weight, self.bias, self.training = linear.weight, linear.bias, linear.training
        self.adapters = nn.ModuleDict()
        self.in_use: tuple[str, ...] = ()
        self.rows: dict[str, Tensor] | None = None
        """Instead of those in use: of which rows each takes part. See `by_row`."""

    def forward(self, input: Tensor) -> Tensor:
        names = self.in_use if self.rows is None else self.rows
        if not names:
            return super().forward(input)
        unbiased = F.linear(input, self.weight)
        out = unbiased.clone() if self.bias is None else unbiased + self.bias
        for name in names:
            for change in self.changes(name):
                added = change(input, unbiased)
                if self.rows is None:
                    change.of(out).add_(added)
                else:  # of all rows, though few may be wanted: how many products have must not depend on company
                    change.of(out).index_add_(0, self.rows[name], added[self.rows[name]])
        return out

    def changes(self, name: str) -> list[LowRank]:
        """What one adapter changes here."""
        return [change for change in self.adapters[name].children() if isinstance(change, LowRank)]

    def changes_in_use(self) -> list[LowRank]:
        return [change for name in self.in_use for change in self.changes(name)]

    def plain(self) -> nn.Linear:
        """The linear as it was, with the same weight."""
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=self.bias is not None)
        linear.weight, linear.bias = self.weight, self.bias
        return linear.train(self.training)


def adapted(model: nn.Module) -> dict[str, AdaptedLinear]:
    """The linears of a model that have changes, by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, AdaptedLinear)}


def adapter_names(model: nn.Module) -> tuple[str, ...]:
    """In the order in which they were attached."""
    return tuple(dict.fromkeys(name for linear in adapted(model).values() for name in linear.adapters))


def use(model: nn.Module, *names: str) -> None:
    """Choose which adapters take part from now on; none is the model itself."""
    unknown = set(names) - set(adapter_names(model))
    if unknown:
        known = ", ".join(adapter_names(model)) or "none"
        raise ConfigError(f"The model has no adapter {min(unknown)!r}; attached: {known}.")
    for linear in adapted(model).values():
        linear.in_use = tuple(name for name in dict.fromkeys(names) if name in linear.adapters)


@contextmanager
def by_row(model: nn.Module, names_T: Sequence[tuple[str, ...]]) -> Iterator[None]:
    """Inside, the linears below `model` change row t of their inputs (T, D) by the adapters `names_T[t]` alone."""
    linears = adapted(model).values()
    rows = {
        name: torch.tensor([t for t, names in enumerate(names_T) if name in names])
        for name in dict.fromkeys(itertools.chain(*names_T))
    }
    try:
        for linear in linears:
            linear.rows = {
                name: places.to(linear.weight.device) for name, places in rows.items() if name in linear.adapters
            }
        yield
    finally:
        for linear in linears:
            linear.rows = None


@contextmanager
def using(model: nn.Module, *names: str) -> Iterator[None]:
    """`use`, and afterwards again what was in use before."""
    before = {linear: linear.in_use for linear in adapted(model).values()}
    try:
        use(model, *names)
        yield
    finally:
        for linear, names_before in before.items():
            linear.in_use = names_before


def detach(model: nn.Module, name: str) -> None:
    """Take an adapter off; a linear that has no other is again what it was."""
    if name not in adapter_names(model):
        raise ConfigError(f"The model has no adapter {name!r} to take off.")
    for path, linear in adapted(model).items():
        if name in linear.adapters:
            del linear.adapters[name]
            linear.in_use = tuple(other for other in linear.in_use if other != name)
        if not linear.adapters:
            model.set_submodule(path, linear.plain())
