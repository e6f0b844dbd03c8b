"""Truncation and penalty against the logits processors of transformers."""

from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers import (
    MinPLogitsWarper,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from cascadevl.core.generation import Sampling
from cascadevl.engine.sampler import Sampler, truncated

NO_IDS: Any = torch.zeros(1, 0, dtype=torch.int64)
LOGITS = st.integers(0, 10_000).map(lambda seed: 3 * torch.randn(40, generator=torch.Generator().manual_seed(seed)))


@given(
    LOGITS,
    st.sampled_from([0.3, 1.0, 1.7]),
    st.sampled_from([0, 1, 5, 39, 40, 100]),
    st.sampled_from([0.05, 0.5, 0.9, 0.999, 1.0]),
    st.sampled_from([0.0, 0.05, 0.4, 1.0]),
)
def test_the_distribution_is_that_of_the_warpers(
    logits_V: Tensor, temperature: float, top_k: int, top_p: float, min_p: float
) -> None:
    warpers = [TemperatureLogitsWarper(temperature)]
    warpers += [TopKLogitsWarper(top_k)] if top_k else []
    warpers += [TopPLogitsWarper(top_p)] if top_p < 1 else []
    warpers += [MinPLogitsWarper(min_p)] if min_p else []
    scores = logits_V[None].clone()
    for warper in warpers:
        scores = warper(NO_IDS, scores)
    sampling = Sampling(temperature=temperature, top_k=top_k, top_p=top_p, min_p=min_p)
    ours = truncated((logits_V / temperature).softmax(-1), sampling)
    torch.testing.assert_close(ours, scores[0].softmax(-1), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("penalty", [0.5, 1.0, 1.2, 3.0])
def test_the_penalty_is_theirs(penalty: float) -> None:
    logits_V = torch.randn(40, generator=torch.Generator().manual_seed(0))
    prompt: Any = torch.tensor([3, 5, 5, 8])
    theirs = RepetitionPenaltyLogitsProcessor(penalty)(prompt[None], logits_V[None].clone())[0]
    sampler = Sampler(Sampling(repetition_penalty=penalty), prompt, (), 40)
    chosen, _ = sampler(logits_V)
    assert chosen == int(theirs.argmax())
    longer: Any = torch.cat([prompt, torch.tensor([chosen])])
    again = RepetitionPenaltyLogitsProcessor(penalty)(longer[None], logits_V[None].clone())
    assert sampler(logits_V)[0] == int(again[0].argmax())
