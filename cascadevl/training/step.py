"""Step: several packs, on several ranks, make one update, as if all of them were one batch.

A loss that averages over tokens cannot be averaged again over packs: packs have different numbers of tokens, and short
ones would weigh too much (the bug that many trainers had until 2024, https://unsloth.ai/blog/gradient). Here all
weights are summed first, over packs and ranks; every pack's loss is divided by that sum, and gradients are added.
"""

import dataclasses
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from cascadevl.core.errors import UserError
from cascadevl.data.batch import Batch
from cascadevl.distributed.ddp import sum_gradients
from cascadevl.distributed.mesh import World
from cascadevl.distributed.watchdog import Watchdog
from cascadevl.training.objectives import Loss, Objective


class Diverged(UserError):
    """The loss is no longer a number: training stops before it spoils the weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """How an update is made; a function of packs."""

    max_grad_norm: float = 1.0
    weigh: Callable[[Batch], float] | None = None
    """The weight of a pack's supervised tokens, as its objective counts it. None: every pack weighs the same, and
    the objective averages within it."""
    world: World = World()  # noqa: RUF009  (frozen)
    autocast: Callable[[], AbstractContextManager[Any]] = nullcontext
    """Around the objective, for products in a shorter type."""
    watchdog: Watchdog | None = None
    """Over the whole step."""

    def __call__(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[Batch],
        number: int,
    ) -> tuple[Loss, float]:
        """The loss over all packs of all ranks, and the gradient's norm. `batches` are this rank's; some are needed.

        Raises Diverged on all ranks, before the weights change, where a loss or gradient is no number.
        """
        if self.watchdog is None:
            return self._update(model, objective, optimizer, batches, number)

        def hangs() -> str:
            return f"Rank {self.world.rank} hangs in step {number} with {'; '.join(map(named, batches))}"

        with self.watchdog(hangs):
            return self._update(model, objective, optimizer, batches, number)

    def _update(
        self,
        model: nn.Module,
        objective: Objective,
        optimizer: torch.optim.Optimizer,
        batches: Sequence[Batch],
        number: int,
    ) -> tuple[Loss, float]:
        parameters = [p for group in optimizer.param_groups for p in group["params"]]
        share, batches = self._shared(batches)
        losses = []
        for batch in batches:
            with self.autocast():
                loss = objective(model, batch.to(self.world.device))
            (loss.total * share).backward()
            losses.append(loss._replace(total=loss.total.detach() * share))
        loss = self._together(losses, batches, number)
        sum_gradients(parameters, self.world)
        norm = torch.nn.utils.clip_grad_norm_(parameters, self.max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(
                f"The gradient's norm is {norm.item()} at step {number}: lower the learning rate, or look at the "
                f"samples of this step: {self._named(batches)}."
            )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss, float(norm)

    def _shared(self, batches: Sequence[Batch]) -> tuple[float, Sequence[Batch]]:
        """A factor on every loss, and the packs with what their losses are divided by."""
        if self.weigh is None:
            return 1 / self.world.sum([float(len(batches))])[0], batches
        denominator = self.world.sum([sum(map(self.weigh, batches))])[0]
        return 1.0, [dataclasses.replace(batch, denominator=denominator) for batch in batches]

    def _together(self, losses: Sequence[Loss], batches: Sequence[Batch], number: int) -> Loss:
        """Totals are summed; what is shown besides is a mean weighted by supervised tokens."""
        names = sorted({name for loss in losses for name in loss.terms})
        if self.world.size > 1:
            names = sorted({name for found in self.world.gather(names) for name in found})
        tokens = sum(loss.num_tokens for loss in losses)
        means = [sum(loss.terms.get(name, 0.0) * max(loss.num_tokens, 1) for loss in losses) for name in names]
        counts = [sum(max(loss.num_tokens, 1) for loss in losses if name in loss.terms) for name in names]
        total, tokens, *rest = self.world.sum(
            [float(sum(loss.total.item() for loss in losses)), tokens, *means, *map(float, counts)]
        )
        result = losses[0].total.new_tensor(total)
        if not torch.isfinite(result):
            bad = [batch for batch, loss in zip(batches, losses, strict=True) if not torch.isfinite(loss.total)]
            raise Diverged(
                f"The loss is {total} at step {number}: lower the learning rate, or look at these samples: "
                f"{self._named(bad)}."
            )
        terms = {
            name: mean / count for name, mean, count in zip(names, rest, rest[len(names) :], strict=False) if count
        }
        return Loss(result, terms, int(tokens))

    def _named(self, batches: Sequence[Batch]) -> str:
        """The samples of packs by their ids, of all ranks."""
        return (
            ", ".join(id for ids in self.world.gather([named(batch) for batch in batches]) for id in ids) or "unknown"
        )


def named(batch: Batch) -> str:
    """The samples of a pack by their ids; by their number where nobody gave them any."""
    return ", ".join(batch.ids) if batch.ids else f"{len(batch.lengths)} without ids"
