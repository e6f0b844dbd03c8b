"""Where the likely tokens end, on numbers that floats hold exactly: at the borders themselves."""

import pytest
import torch

from cascadevl.core.generation import Sampling
from cascadevl.engine.sampler import truncated

P = torch.tensor([0.125, 0.5, 0.125, 0.25])


@pytest.mark.parametrize(
    ("sampling", "kept"),
    [
        (Sampling(top_p=0.5), [0, 1, 0, 0]),
        (Sampling(top_p=0.51), [0, 1, 0, 1]),
        (Sampling(top_p=0.75), [0, 1, 0, 1]),
        (Sampling(min_p=0.5), [0, 1, 0, 1]),
        (Sampling(min_p=0.51), [0, 1, 0, 0]),
        (Sampling(min_p=0.25), [1, 1, 1, 1]),
        (Sampling(top_k=2), [0, 1, 0, 1]),
        (Sampling(top_k=3), [1, 1, 1, 1]),  # of two alike none is less likely
        (Sampling(top_k=2, top_p=0.6), [0, 1, 0, 0]),  # of what top-k left, the first reaches two thirds
    ],
)
def test_tokens_are_kept_until_they_reach_the_share_and_no_longer(sampling, kept) -> None:
    wanted = P * torch.tensor(kept)
    torch.testing.assert_close(truncated(P, sampling), wanted / wanted.sum(), atol=0, rtol=1e-6)
