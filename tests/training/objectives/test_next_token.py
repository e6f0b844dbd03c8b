"""Averaging against sums written out; packed samples against separate ones."""

from typing import Any, Literal

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import IGNORE, collate
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.training.objectives.next_token import NextToken, token_weights

PARTS = tiny_parts("qwen3", std=0.2)
Reduction = Literal["token", "square", "sample"]
EXPONENTS: dict[Reduction, float] = {"token": 0.0, "square": 0.5, "sample": 1.0}


def _sample(answer: str, side: int = 0) -> ModelInputs:
    picture = [{"type": "image", "image": Image.radial_gradient("L").resize((side, 70))}] if side else []
    asked = {"role": "user", "content": [*picture, {"type": "text", "text": "q"}]}
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
