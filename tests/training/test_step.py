"""Packs make one step as if they were one batch; what is no number is refused and named."""

import contextlib
import copy
from typing import Any

import pytest
import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import Batch
from cascadevl.distributed.watchdog import Watchdog
from cascadevl.training.objectives import Loss
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.step import Diverged, Step
from tests.training.samples import batch_of


@pytest.fixture(scope="module")
def parts() -> Parts:
    return tiny_parts("qwen3", std=0.2)


def step(parts: Parts, batches: list[Batch], reduction: Any) -> tuple[float, float, dict[str, torch.Tensor]]:
    """Loss, norm of the gradient, and the weights that plain SGD makes of it."""
    model = copy.deepcopy(parts.model).requires_grad_(True)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    objective = NextToken(reduction=reduction)
    learn = Step(max_grad_norm=1e9, weigh=objective.weight)
    loss, norm = learn(model, objective, optimizer, batches, 0)
    return loss.total.item(), norm, dict(model.named_parameters())


@pytest.mark.parametrize("reduction", ["token", "square", "sample"])
def test_two_packs_of_different_length_are_one_batch(parts: Parts, reduction: str) -> None:
    whole = step(parts, [batch_of(parts, "a", "seven", "grandfather")], reduction)
    cut = step(parts, [batch_of(parts, "a"), batch_of(parts, "seven", "grandfather")], reduction)
    assert cut[0] == pytest.approx(whole[0], rel=1e-5)
    assert cut[1] == pytest.approx(whole[1], rel=1e-4)
    for name, weight in whole[2].items():
        torch.testing.assert_close(cut[2][name], weight, rtol=1e-4, atol=2e-5)


def test_the_mean_of_means_would_have_been_another(parts: Parts) -> None:
    """The mistake this guards against is a large one here: the test above could not pass with it."""
    whole = step(parts, [batch_of(parts, "a", "seven", "grandfather")], "token")[0]
    means = [step(parts, [batch_of(parts, *words)], "token")[0] for words in (["a"], ["seven", "grandfather"])]
    assert abs(sum(means) / 2 - whole) > 1e-3


def test_without_weights_every_pack_counts_the_same() -> None:
    line = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.ones_(line.weight)
    slopes = iter([1.0, 3.0])

    def objective(model: Any, batch: Batch) -> Loss:
        return Loss(next(slopes) * model.weight.sum(), {}, 1)

    one = torch.zeros(1, dtype=torch.int64)
    batch = Batch(token_ids=one, targets=one, positions=one, lengths=(1,), tiles=one)
    loss, norm = Step(max_grad_norm=9.0)(line, objective, torch.optim.SGD(line.parameters(), lr=1.0), [batch] * 2, 0)
    assert (loss.total.item(), norm) == (2.0, 2.0)
    assert line.weight.item() == -1.0


def test_samples_of_a_pack_whose_loss_is_no_number_are_named(parts: Parts) -> None:
    model = copy.deepcopy(parts.model).requires_grad_(True)
    before = copy.deepcopy(model.state_dict())

    def objective(model: Any, batch: Batch) -> Loss:
        loss = NextToken()(model, batch)
        return loss._replace(total=loss.total * (float("inf") if "bad" in batch.ids else 1.0))

    batches = [batch_of(parts, "fine"), batch_of(parts, "bad", "worse")]
    with pytest.raises(Diverged, match=r"The loss is inf at step 4.*samples: bad, worse\.") as raised:
        Step()(model, objective, torch.optim.SGD(model.parameters(), lr=1.0), batches, 4)
    assert "fine" not in str(raised.value)
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


def test_autocast_surrounds_the_objective_alone(parts: Parts) -> None:
    model, seen = copy.deepcopy(parts.model).requires_grad_(True), []

    def objective(model: Any, batch: Batch) -> Loss:
        seen.append(torch.is_autocast_enabled("cpu"))
        return NextToken()(model, batch)

    learn = Step(autocast=lambda: torch.autocast("cpu", dtype=torch.bfloat16))
    learn(model, objective, torch.optim.SGD(model.parameters(), lr=1e-3), [batch_of(parts, "one")], 0)
    assert seen == [True] and not torch.is_autocast_enabled("cpu")
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


def test_products_in_bfloat16_give_nearly_the_same_loss(parts: Parts) -> None:
    batch = batch_of(parts, "seven")
    losses = []
    for context in (contextlib.nullcontext, lambda: torch.autocast("cpu", dtype=torch.bfloat16)):
        model = copy.deepcopy(parts.model).requires_grad_(True)
        learn = Step(autocast=context)
        losses.append(learn(model, NextToken(), torch.optim.SGD(model.parameters(), lr=0.0), [batch], 0)[0].total)
    assert losses[0] != losses[1], "nothing was computed in bfloat16"
    assert losses[0].item() == pytest.approx(losses[1].item(), rel=0.02)


def test_a_step_that_hangs_is_named_with_its_rank_and_samples(parts: Parts) -> None:
    import time

    barked: list[str] = []

    def objective(model: Any, batch: Batch) -> Loss:
        while not barked:
            time.sleep(0.01)
        return NextToken()(model, batch)

    model = copy.deepcopy(parts.model).requires_grad_(True)
    learn = Step(watchdog=Watchdog(0.05, barked.append))
    learn(model, objective, torch.optim.SGD(model.parameters(), lr=0.0), [batch_of(parts, "slow")], 12)
    assert barked == ["Rank 0 hangs in step 12 with slow (no end after 0.05 s)"]
