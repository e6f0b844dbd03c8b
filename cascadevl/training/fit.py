"""The loop: read it from top to bottom."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import nn

from cascadevl.core.errors import CascadeError
from cascadevl.data.batch import Batch
from cascadevl.training.objectives import Loss, Objective


@dataclass(slots=True)
class FitState:
    """Where a run stands; saved with the weights, so that a resumed run goes on at the same place."""

    step: int = 0
    num_samples: int = 0


class Diverged(CascadeError):
    """The loss is no longer a number: training stops before it spoils the weights."""


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
    max_grad_norm: float = 1.0,
) -> FitState:
    """Minimise `objective` over `batches`.

    `observe(state, loss, gradient_norm)` and `save(state)` are called after every step and decide
    for themselves whether it is time. Each group's "peak_lr" is scaled by `schedule(step)`.
    """
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    model.train()
    for batch in batches:
        for group in optimizer.param_groups:
            group["lr"] = group["peak_lr"] * schedule(state.step)
        loss = objective(model, batch)
        if not torch.isfinite(loss.total):
            raise Diverged(f"The loss is {loss.total.item()} at step {state.step}: lower the learning rate.")
        loss.total.backward()
        norm = torch.nn.utils.clip_grad_norm_(parameters, max_grad_norm)
        if not torch.isfinite(norm):
            raise Diverged(f"The gradient's norm is {norm.item()} at step {state.step}: lower the learning rate.")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        state.step += 1
        state.num_samples += len(batch.lengths)
        observe(state, loss, float(norm))
        save(state)
    return state
