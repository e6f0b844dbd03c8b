"""Averaging against sums written out; packed samples against separate ones."""

import dataclasses
from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import IGNORE, collate
from cascadevl.models.linear import AdaptedLinear, LowRank
from cascadevl.ops.logprobs import token_logprobs
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.training.objectives.next_token import NextToken, supervised_weight, token_weights, touch

PARTS = tiny_parts("qwen3", std=0.2)
Reduction = Literal["token", "square", "sample"]
EXPONENTS: dict[Reduction, float] = {"token": 0.0, "square": 0.5, "sample": 1.0}


def _sample(answer: str, *sides: int) -> ModelInputs:
    pictures = [{"type": "image", "image": Image.radial_gradient("L").resize((side, 70))} for side in sides]
    asked = {"role": "user", "content": [*pictures, {"type": "text", "text": "q"}]}
    return PARTS.processor([asked, {"role": "assistant", "content": answer}])


SAMPLES = [_sample("a long answer of many letters", 150), _sample("no"), _sample("yes!", 60)]


def _losses_by_hand(inputs: ModelInputs) -> Tensor:
    """-log p of every token that the assistant says, one at a time."""
    with torch.no_grad():
        logits_TV = PARTS.model(inputs.token_ids, inputs.tiles).double()
    said = [t for t in range(1, len(inputs.token_ids)) if inputs.trained[t]]
    return torch.stack([logits_TV[t - 1].logsumexp(0) - logits_TV[t - 1, inputs.token_ids[t]] for t in said])


@pytest.mark.parametrize("reduction", EXPONENTS)
def test_a_pack_weighs_its_samples_as_the_formula_says(reduction: Reduction) -> None:
    """loss = Σ w·l / Σ w with w = N^-e, N the tokens said in the sample that a token belongs to."""
    losses = [_losses_by_hand(inputs) for inputs in SAMPLES]
    assert [len(each) for each in losses] == [30, 3, 5]
    weights = [len(each) ** -EXPONENTS[reduction] for each in losses]
    expected = sum(w * float(each.sum()) for w, each in zip(weights, losses, strict=True))
    expected /= sum(w * len(each) for w, each in zip(weights, losses, strict=True))
    loss = NextToken(reduction=reduction)(PARTS.model, collate(SAMPLES))
    assert float(loss.total) == pytest.approx(expected, rel=1e-5)
    assert loss.num_tokens == 38
    assert loss.terms["next_token"] == float(loss.total)


def _gradients(reduction: Reduction, samples: list[list[ModelInputs]], shares: list[float]) -> dict[str, Tensor]:
    model = PARTS.model.requires_grad_(True)
    model.zero_grad()
    for share, each in zip(shares, samples, strict=True):
        (NextToken(reduction=reduction)(model, collate(each)).total * share).backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.requires_grad_(False)
    return found


@pytest.mark.parametrize("reduction", EXPONENTS)
def test_packed_gradients_are_the_weighted_ones_of_separate_samples(reduction: Reduction) -> None:
    masses = [int(inputs.trained.sum()) ** (1 - EXPONENTS[reduction]) for inputs in SAMPLES]
    together = _gradients(reduction, [SAMPLES], [1.0])
    apart = _gradients(reduction, [[inputs] for inputs in SAMPLES], [mass / sum(masses) for mass in masses])
    assert together.keys() == apart.keys() == dict(PARTS.model.named_parameters()).keys()
    for name, gradient in together.items():
        torch.testing.assert_close(
            gradient, apart[name], atol=1e-5 * float(gradient.abs().max()) + 1e-8, rtol=1e-4, msg=name
        )


def test_the_order_of_samples_changes_nothing() -> None:
    one, other = (float(NextToken()(PARTS.model, collate(samples)).total) for samples in (SAMPLES, SAMPLES[::-1]))
    assert one == pytest.approx(other, rel=1e-6)


def test_weights_by_hand_and_samples_without_an_answer_weigh_nothing() -> None:
    supervised = torch.tensor([True, True, True, True, False, False, False, True, False])
    weights = token_weights(supervised, (5, 2, 2), 0.5)
    assert weights.tolist() == [0.5, 0.5, 0.5, 0.5, 0, 0, 0, 1, 0]


def test_a_pack_in_which_nobody_speaks_has_a_loss_of_zero_and_no_gradient() -> None:
    silent = PARTS.processor("q")
    batch = collate([silent])
    assert bool((batch.targets == IGNORE).all())
    gradients = _gradients("square", [[silent]], [1.0])
    assert all(float(gradient.abs().max()) == 0 for gradient in gradients.values())
    loss = NextToken()(PARTS.model, batch)
    assert (float(loss.total), loss.num_tokens) == (0.0, 0)
    assert all(value == value for value in loss.terms.values()), "no NaN among the terms"


def test_accuracy_counts_what_would_be_said_rightly() -> None:
    inputs = SAMPLES[1]
    with torch.no_grad():
        said = PARTS.model(inputs.token_ids, inputs.tiles)[:-1].argmax(-1)
    right = (said == inputs.token_ids[1:])[inputs.trained[1:]].float().mean()
    terms: dict[str, Any] = NextToken()(PARTS.model, collate([inputs])).terms
    assert terms["token_accuracy"] == pytest.approx(float(right))


# Packs of one step, on one rank or several: one denominator for all.

SAMPLES_OF_A_STEP = [*SAMPLES, _sample("maybe so, or maybe not", 200, 55), _sample("x"), _sample("it is the third", 40)]
SPREADS = [
    [[0, 1, 2, 3, 4, 5]],
    [[0], [1], [2], [3], [4], [5]],
    [[5, 1], [0, 2, 4], [3]],
    [[1, 4], [0, 2, 3, 5]],  # the first pack has no picture
]


def _step(spread: list[list[int]], reduction: Reduction) -> tuple[float, dict[str, Tensor]]:
    objective = NextToken(reduction=reduction)
    batches = [collate([SAMPLES_OF_A_STEP[i] for i in each]) for each in spread]
    denominator = sum(map(objective.weight, batches))
    model = PARTS.model.requires_grad_(True)
    model.zero_grad()
    total = 0.0
    for batch in batches:
        loss = objective(model, dataclasses.replace(batch, denominator=denominator))
        loss.total.backward()
        total += loss.total.item()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
    model.requires_grad_(False)
    return total, found


@pytest.mark.parametrize("reduction", EXPONENTS)
def test_however_samples_are_spread_a_step_has_one_loss_and_one_gradient(reduction: Reduction) -> None:
    expected, gradients = _step(SPREADS[0], reduction)
    for spread in SPREADS[1:]:
        total, found = _step(spread, reduction)
        assert total == pytest.approx(expected, rel=1e-6)
        assert found.keys() == gradients.keys() == dict(PARTS.model.named_parameters()).keys()
        for name, gradient in gradients.items():
            near = 1e-5 * float(gradient.abs().max()) + 1e-8
            torch.testing.assert_close(found[name], gradient, atol=near, rtol=1e-4, msg=name)


def test_packed_log_probabilities_are_those_of_separate_samples() -> None:
    def said(samples: list[ModelInputs]) -> Tensor:
        model, batch = PARTS.model, collate(samples)
        hidden_TD = model.language_model(model.embed(batch.token_ids, batch.tiles), batch.positions, batch.attend)
        learned = batch.targets != IGNORE
        return token_logprobs(
            model.language_model.logits, hidden_TD[learned], batch.targets[learned], rows=7
        ).logprobs_T

    with torch.no_grad():
        together, apart = said(SAMPLES_OF_A_STEP), torch.cat([said([each]) for each in SAMPLES_OF_A_STEP])
    torch.testing.assert_close(together, apart, atol=2e-5, rtol=0)
    assert len(together) == sum(int(each.trained.sum()) for each in SAMPLES_OF_A_STEP)


@pytest.mark.parametrize("reduction", EXPONENTS)
def test_the_weight_of_a_batch_is_known_without_the_model(reduction: Reduction) -> None:
    exponent = EXPONENTS[reduction]
    batch = collate([*SAMPLES, PARTS.processor("nobody answers")])
    by_hand = sum(n * n**-exponent for n in (30, 3, 5))
    assert supervised_weight(batch, exponent) == pytest.approx(by_hand, rel=1e-6)
    assert NextToken(reduction=reduction).weight(batch) == supervised_weight(batch, exponent)


def test_what_is_shown_is_the_mean_of_the_batch_whatever_the_denominator() -> None:
    batch = collate(SAMPLES)
    alone = NextToken()(PARTS.model, batch)
    shared = NextToken()(PARTS.model, dataclasses.replace(batch, denominator=4 * NextToken().weight(batch)))
    assert shared.terms["next_token"] == pytest.approx(alone.terms["next_token"], rel=1e-6)
    assert shared.total.item() == pytest.approx(alone.total.item() / 4, rel=1e-6)


# Batches without a picture.

TEXT_ONLY = collate([_sample("no"), _sample("not a picture either")])


def test_a_batch_without_a_picture_gives_every_parameter_a_gradient_and_the_tower_zero() -> None:
    gradients = _gradients("square", [[_sample("no"), _sample("not a picture either")]], [1.0])
    assert gradients.keys() == dict(PARTS.model.named_parameters()).keys()
    for name, gradient in gradients.items():
        assert (float(gradient.abs().max()) == 0) == name.startswith(("vision_model.", "mlp1.")), name


def test_the_same_modules_are_called_with_and_without_a_picture() -> None:
    """A sharded model gathers weights when a module is called: ranks that call others would wait for ever."""

    def called(batch: Any) -> list[str]:
        names: list[str] = []
        hooks = [
            module.register_forward_hook(lambda *_, name=name: names.append(name))
            for name, module in PARTS.model.named_modules()
        ]
        NextToken()(PARTS.model, batch)
        for hook in hooks:
            hook.remove()
        return names

    assert sorted(called(TEXT_ONLY)) == sorted(called(collate(SAMPLES)))


def test_the_touch_changes_no_bit_and_does_no_arithmetic() -> None:
    with FlopCounterMode(display=False) as counter:
        assert float(touch(PARTS.model, TEXT_ONLY)) == 0.0
    assert counter.get_total_flops() == 0
    hidden_TD = PARTS.model.language_model(
        PARTS.model.embed(TEXT_ONLY.token_ids), TEXT_ONLY.positions, TEXT_ONLY.attend
    )
    untouched = NextToken().from_hidden(PARTS.model, hidden_TD, TEXT_ONLY)
    assert torch.equal(NextToken()(PARTS.model, TEXT_ONLY).total, untouched.total)


# Heads.


@pytest.mark.parametrize("family", ["qwen3", "qwen2"])
@pytest.mark.parametrize("tied", [False, True])
def test_the_head_may_be_the_embedding(family: str, tied: bool) -> None:
    parts = tiny_parts(family, std=0.2, tied=tied)
    with torch.no_grad():
        logits_TV = parts.model(SAMPLES[1].token_ids, SAMPLES[1].tiles)
    targets = collate([SAMPLES[1]]).targets
    expected = torch.nn.functional.cross_entropy(logits_TV, targets, ignore_index=IGNORE)
    assert NextToken(reduction="token")(parts.model, collate([SAMPLES[1]])).total.item() == pytest.approx(
        expected.item(), rel=1e-5
    )


def test_an_adapted_head_is_asked_itself_and_learns() -> None:
    model = tiny_parts("qwen3", std=0.2).model
    head = model.language_model.lm_head
    assert isinstance(head, torch.nn.Linear)
    plain = NextToken()(model, collate(SAMPLES)).total
    adapted = AdaptedLinear(head)
    change = LowRank(torch.randn(2, 32), torch.randn(272, 2), 0.5, gain_F=None).requires_grad_(True)
    adapted.adapters["a"] = torch.nn.ModuleDict({"all": change})
    adapted.in_use = ("a",)
    model.language_model.lm_head = adapted
    changed = NextToken()(model, collate(SAMPLES)).total
    changed.backward()
    head.weight.data += change.delta()
    model.language_model.lm_head = head
    merged = NextToken()(model, collate(SAMPLES)).total
    assert changed.item() == pytest.approx(merged.item(), rel=1e-4) and abs(merged.item() - plain.item()) > 0.1
    assert change.a.grad is not None and float(change.a.grad.abs().max()) > 0
