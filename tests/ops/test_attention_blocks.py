"""Attention in blocks with its gradient by hand: against softmax over a mask, differentiated by autograd."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascadevl.ops import attention_blocks
from cascadevl.ops.attention import Layer, packed
from cascadevl.ops.attention_blocks import Run, attended, runs


def _qkv(tokens: int, seed: int = 0) -> list[Tensor]:
    draw = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, n, 8, generator=draw, dtype=torch.float64, requires_grad=True) for n in (4, 2, 2)]


def _masked(q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor, lengths: list[int]) -> Tensor:
    sample_T = torch.arange(len(lengths)).repeat_interleave(torch.tensor(lengths))
    seen_TT = (sample_T[:, None] == sample_T).tril()
    k_TNH, v_TNH = (x.repeat_interleave(2, dim=1) for x in (k_TKH, v_TKH))
    scores_NTT = torch.einsum("tnh,snh->nts", q_TNH, k_TNH) * 0.3
    return torch.einsum("nts,snh->tnh", scores_NTT.masked_fill(~seen_TT, float("-inf")).softmax(-1), v_TNH)


def _agree(got: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(got, expected)
    direction = torch.randn(got.shape, generator=torch.Generator().manual_seed(1), dtype=got.dtype)
    gradients = (torch.autograd.grad(out, inputs, direction, retain_graph=True) for out in (got, expected))
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("kept", [0, 640], ids=["computed again", "kept"])
@pytest.mark.parametrize("lengths", [[1], [70], [5, 1, 3], [64, 65, 130], [4, 4, 4, 6, 6]], ids=str)
def test_samples_in_blocks_are_masked_attention(lengths: list[int], kept: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention_blocks, "KEPT", kept)
    q, k, v = _qkv(sum(lengths))
    _agree(attended(q, k, v, 0.3, lengths), _masked(q, k, v, lengths), [q, k, v])


@given(st.lists(st.lists(st.booleans(), min_size=1, max_size=9), min_size=1, max_size=4))
def test_some_queries_get_what_they_get_among_all(wanted: list[list[bool]]) -> None:
    """Also samples of which nothing or everything is asked."""
    lengths = [len(each) for each in wanted]
    asked_T = torch.tensor([want for each in wanted for want in each]).nonzero()[:, 0]
    q, k, v = _qkv(sum(lengths))
    got = attended(q[asked_T], k, v, 0.3, lengths, asked_T)
    _agree(got, _masked(q, k, v, lengths)[asked_T], [q, k, v])


def test_some_queries_over_several_blocks() -> None:
    lengths, (q, k, v) = [150, 90], _qkv(240)
    asked_T = torch.tensor([*range(3, 100), 149, *range(150, 240, 2)])
    got = attended(q[asked_T], k, v, 0.3, lengths, asked_T)
    _agree(got, _masked(q, k, v, lengths)[asked_T], [q, k, v])


@pytest.mark.parametrize("learns", [True, False])
def test_packed_answers_some_queries(learns: bool) -> None:
    """By hand while something learns, by the plain form else."""
    lengths, asked_T = (5, 1, 3), torch.tensor([1, 4, 5, 8])
    q_TNH, k_TKH, v_TKH = (x.detach().requires_grad_(learns) for x in _qkv(9))
    got = packed(lengths)(Layer(index=0, scale=0.3, asked_T=asked_T), q_TNH[asked_T], k_TKH, v_TKH)
    torch.testing.assert_close(got, _masked(q_TNH, k_TKH, v_TKH, list(lengths))[asked_T])


def test_neighbours_of_one_length_run_together() -> None:
    assert runs([4, 4, 6], heads=2) == [Run(2, 4, 4, 0, 0), Run(1, 6, 6, 8, 8)]
    assert runs([4, 4, 4], heads=2, asked=[[0, 1, 2, 3], [], [2]]) == [Run(1, 4, 4, 0, 0), Run(1, 1, 4, 4, 8, (2,))]
    assert [run.samples for run in runs([512] * 9, heads=4)] == [4, 4, 1], "as far as scores stay near a core"
