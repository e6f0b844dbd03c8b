"""choose.c against torch, and what it refuses."""

import pytest
import torch

from cascadevl.ops.native import choose
from cascadevl.ops.native.choose import likeliest

NONE = torch.tensor([], dtype=torch.int64)


@pytest.fixture(params=["native", "torch"], autouse=True)
def way(request, monkeypatch):
    if request.param == "torch":
        monkeypatch.setattr(choose, "library", lambda: None)


@pytest.mark.parametrize("vocabulary", [1, 7, 8, 9, 272, 1003])
def test_the_greatest_is_chosen_and_nothing_banned(vocabulary):
    scores_TV = torch.randn(5, vocabulary, generator=torch.Generator().manual_seed(0))
    banned = torch.tensor([0, vocabulary // 2, vocabulary - 1])[: vocabulary // 3]
    allowed_TV = scores_TV.clone()
    allowed_TV[:, banned] = float("-inf")
    assert likeliest(scores_TV, banned) == allowed_TV.argmax(1).tolist()
    assert torch.equal(scores_TV, allowed_TV)


def test_of_equals_the_first_is_chosen():
    scores_TV = torch.zeros(1, 40)
    scores_TV[0, [11, 25, 39]] = 2.0
    assert likeliest(scores_TV, NONE) == [11]


@pytest.mark.parametrize("place", [0, 13, 19])
@pytest.mark.parametrize("strange", [float("nan"), float("inf")])
def test_a_row_with_strange_scores_fails_alone(place, strange):
    scores_TV = torch.arange(40.0).view(2, 20)
    scores_TV[0, place] = strange
    assert likeliest(scores_TV, NONE) == [-1, 19]


def test_a_row_in_which_all_is_banned_has_no_choice():
    assert likeliest(torch.zeros(1, 3), torch.arange(3)) == [-1]
