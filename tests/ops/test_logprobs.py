"""Chunks against all scores at once, in double precision; and no tensor of tokens times vocabulary."""

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from cascadevl.ops.logprobs import CHUNK_SCORES, cross_entropy, rows_of_chunk, token_logprobs


def _case(tokens: int, width: int = 5, vocabulary: int = 11, dtype: torch.dtype = torch.float64) -> list[Tensor]:
    draw = torch.Generator().manual_seed(tokens)
    hidden_TD = torch.randn(tokens, width, generator=draw, dtype=dtype).requires_grad_()
    weight_VD = torch.randn(vocabulary, width, generator=draw, dtype=dtype).requires_grad_()
    targets_T = torch.randint(vocabulary, (tokens,), generator=draw)
    return [hidden_TD, weight_VD, targets_T, torch.rand(tokens, generator=draw, dtype=dtype)]


def _dense(hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor) -> Tensor:
    return F.linear(hidden_TD, weight_VD).log_softmax(-1).gather(1, targets_T[:, None])[:, 0]


def _gradients(total: Tensor, *leaves: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad(total, leaves))


@given(st.integers(1, 9), st.integers(1, 10))
def test_chunked_equals_dense_in_double_precision(tokens: int, rows: int) -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(tokens)
    expected_T = _dense(hidden_TD, weight_VD, targets_T)
    total, scored = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T, rows=rows)
    torch.testing.assert_close(scored.logprobs_T, expected_T, atol=1e-12, rtol=1e-12)
    torch.testing.assert_close(total, -(expected_T * weights_T).sum(), atol=1e-12, rtol=1e-12)
    likeliest_T = F.linear(hidden_TD, weight_VD).argmax(-1)
    assert scored.right_T.tolist() == (likeliest_T == targets_T).tolist()
    ours = _gradients(3 * total, hidden_TD, weight_VD)  # whatever stands behind the total reaches it
    theirs = _gradients(-3 * (expected_T * weights_T).sum(), hidden_TD, weight_VD)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


@given(st.integers(1, 9), st.integers(1, 10))
def test_logprobs_can_be_put_into_any_loss(tokens: int, rows: int) -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(tokens)

    def any_loss(logprobs_T: Tensor) -> Tensor:
        return F.logsigmoid(logprobs_T * weights_T).sum() * logprobs_T.sum()

    scored = token_logprobs(lambda hidden: F.linear(hidden, weight_VD), hidden_TD, targets_T, rows=rows)
    expected_T = _dense(hidden_TD, weight_VD, targets_T)
    torch.testing.assert_close(scored.logprobs_T, expected_T, atol=1e-12, rtol=1e-12)
    ours, theirs = (_gradients(any_loss(each), hidden_TD, weight_VD) for each in (scored.logprobs_T, expected_T))
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one, other, atol=1e-12, rtol=1e-12)


def test_large_scores_do_not_overflow() -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(6)
    with torch.no_grad():
        hidden_TD *= 1e4
    total, _ = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T)
    torch.testing.assert_close(total, -(_dense(hidden_TD, weight_VD, targets_T) * weights_T).sum())
    assert all(bool(each.isfinite().all()) for each in _gradients(total, hidden_TD, weight_VD))


def test_nothing_said_is_zero_with_gradients_of_zero() -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(0)
    total, scored = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T)
    to_hidden_TD, to_weight_VD = _gradients(total, hidden_TD, weight_VD)
    assert (float(total.detach()), len(scored.logprobs_T), len(to_hidden_TD)) == (0.0, 0, 0)
    assert float(to_weight_VD.abs().max()) == 0


@pytest.mark.parametrize("frozen", ["hidden", "weight", "both"])
def test_only_what_learns_has_a_gradient(frozen: str) -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(7)
    hidden_TD.requires_grad_(frozen == "weight")
    weight_VD.requires_grad_(frozen == "hidden")
    total, _ = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T, rows=3)
    assert total.requires_grad == (frozen != "both")
    if frozen != "both":
        total.backward()
    assert [each.grad is not None for each in (hidden_TD, weight_VD)] == [frozen == "weight", frozen == "hidden"]


def test_a_second_pass_backwards_is_refused() -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(3)
    total, _ = cross_entropy(hidden_TD, weight_VD, targets_T, weights_T)
    total.backward(retain_graph=True)
    with pytest.raises(AssertionError, match="given out once"):
        total.backward()


@pytest.mark.parametrize("autocast", [False, True])
def test_bfloat16_sums_chunks_in_fp32(autocast: bool) -> None:
    """As near to the truth as one product of all tokens is, though there are 40 chunks."""
    exact = _case(400, width=32, vocabulary=50)
    dtype = torch.float32 if autocast else torch.bfloat16
    hidden_TD, weight_VD = (each.detach().to(dtype).requires_grad_() for each in exact[:2])
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
        total, _ = cross_entropy(hidden_TD, weight_VD, exact[2], exact[3].float(), rows=10)
    total.backward()
    expected = -(_dense(exact[0], exact[1], exact[2]) * exact[3]).sum()
    assert total.item() == pytest.approx(expected.item(), rel=0.01)
    for ours, truth in zip((hidden_TD, weight_VD), _gradients(expected, *exact[:2]), strict=True):
        assert ours.grad is not None and ours.grad.dtype == dtype
        assert float((ours.grad.double() - truth).norm() / truth.norm()) < 0.02


class _Largest(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        out = func(*args, **(kwargs or {}))
        for each in out if isinstance(out, tuple | list) else [out]:
            if isinstance(each, Tensor):
                self.elements = max(self.elements, each.numel())
        return out


@pytest.mark.parametrize("vocabulary", [64, 256])
def test_no_tensor_is_larger_than_a_chunk_or_the_head(vocabulary: int) -> None:
    hidden_TD, weight_VD, targets_T, weights_T = _case(500, width=5, vocabulary=vocabulary)
    with _Largest() as largest:
        cross_entropy(hidden_TD, weight_VD, targets_T, weights_T, rows=4)[0].backward()
        token_logprobs(
            lambda hidden: F.linear(hidden, weight_VD), hidden_TD, targets_T, rows=4
        ).logprobs_T.sum().backward()
    assert largest.elements == max(hidden_TD.numel(), weight_VD.numel(), 4 * vocabulary)


def test_a_chunk_has_as_many_scores_until_its_rows_would_be_too_few() -> None:
    cpu = torch.device("cpu")
    sizes = [rows_of_chunk(vocabulary, cpu) * vocabulary for vocabulary in (272, 32_000)]
    assert all(0.9 * CHUNK_SCORES["cpu"] < size <= CHUNK_SCORES["cpu"] for size in sizes)
    assert rows_of_chunk(151_936, cpu) == rows_of_chunk(10**9, cpu) == 128
