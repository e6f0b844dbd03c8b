"""The loop: read it from top to bottom."""

import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from cascadevl.data.batch import Batch
from cascadevl.training.objectives import Loss, Objective
from cascadevl.training.step import Diverged, Step

__all__ = ["Diverged", "FitState", "fit"]


@dataclass(slots=True)
class FitState:
    """Where a run stands; saved with the weights, so that a resumed run goes on at the same place."""

    step: int = 0
    num_samples: int = 0
    """Learned from by this rank."""
    num_tokens: int = 0
    """Of them, visual ones included."""
    last: tuple[Batch, ...] = ()
    """What this rank learned from in the last step; not saved."""


def fit(
    *,
    model: nn.Module,
    objective: Objective,
    batches: Iterable[Batch],
    optimizer: torch.optim.Optimizer,
    schedule: Callable[[int], float],
    state: FitState,
    observe: Callable[[FitState, Loss, float], None],
    save: Callable[[FitState], None],
    learn: Step = Step(),  # noqa: B008  (frozen)
    steps: int | None = None,
    accumulate: int = 1,
) -> FitState:
    """Minimise `objective` over `batches`, until they or `steps` end.

    An update takes `accumulate` packs of this rank. `observe(state, loss, gradient_norm)` and `save(state)` are called
    after every step and decide for themselves whether it is time. Each group's "peak_lr" is scaled by
    `schedule(step)`.
    """
    model.train()
    stream = iter(batches)
    while steps is None or state.step < steps:
        packs = tuple(itertools.islice(stream, accumulate))
        if not learn.world.all(bool(packs)):  # the data of some rank have ended, so all stop
            break
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(state.step)
        loss, norm = learn(model, objective, optimizer, packs, state.step)
        state.step += 1
        state.num_samples += sum(len(batch.lengths) for batch in packs)
        state.num_tokens += sum(len(batch.token_ids) for batch in packs)
        state.last = packs
        observe(state, loss, norm)
        save(state)
    return state
