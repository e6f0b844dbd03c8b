"""Attend: dense, packed, windows and sinks against softmax written out."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from cascadevl.ops.attention import Layer, causal_mask, dense, packed, scores_to_output


def _qkv(tokens: int, heads: int = 4, kv_heads: int = 2, size: int = 8, seed: int = 0) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(tokens, n, size, generator=generator) for n in (heads, kv_heads, kv_heads)]


def _by_hand(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
    """Softmax over the keys up to each query, one number after the other."""
    out_TNH = torch.zeros_like(q_TNH, dtype=torch.float64)
    q, k, v = q_TNH.double(), k_TKH.double(), v_TKH.double()
    groups, before = q.shape[1] // k.shape[1], len(k) - len(q)
    for t in range(len(q)):
        for n in range(q.shape[1]):
            first = 0 if layer.window is None else max(0, t + before - layer.window + 1)
            seen = range(first, t + before + 1)
            weights = [math.exp(float(q[t, n] @ k[s, n // groups]) * layer.scale) for s in seen]
            total = sum(weights) + (0.0 if layer.sinks_N is None else math.exp(float(layer.sinks_N[n])))
            for s, weight in zip(seen, weights, strict=True):
                out_TNH[t, n] += weight / total * v[s, n // groups]
    return out_TNH.float()


LAYERS = {
    "plain": Layer(index=0, scale=8**-0.5),
    "another scale": Layer(index=0, scale=0.7),
    "window": Layer(index=0, scale=8**-0.5, window=3),
    "sinks": Layer(index=0, scale=8**-0.5, sinks_N=torch.tensor([0.0, 1.0, -2.0, 3.0])),
    "window and sinks": Layer(index=0, scale=0.5, window=2, sinks_N=torch.tensor([0.5, 1.0, -2.0, 3.0])),
}


@pytest.mark.parametrize("name", LAYERS)
def test_dense_is_causal_softmax_attention(name: str) -> None:
    qkv = _qkv(7)
    torch.testing.assert_close(dense(LAYERS[name], *qkv), _by_hand(LAYERS[name], *qkv), atol=1e-6, rtol=1e-5)


@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("queries", [1, 3])
def test_the_last_queries_see_all_earlier_keys(name: str, queries: int) -> None:
    q_TNH, k_TKH, v_TKH = _qkv(7)
    q_RNTH, k_RKTH, v_RKTH = (x.transpose(0, 1)[None] for x in (q_TNH[-queries:], k_TKH, v_TKH))
    out_TNH = scores_to_output(LAYERS[name], q_RNTH, k_RKTH, v_RKTH)[0].transpose(0, 1)
    expected = _by_hand(LAYERS[name], q_TNH[-queries:], k_TKH, v_TKH)
    torch.testing.assert_close(out_TNH, expected, atol=1e-6, rtol=1e-5)


@given(st.lists(st.integers(1, 9), min_size=1, max_size=5), st.sampled_from(sorted(LAYERS)))
def test_packed_samples_see_only_themselves(lengths: list[int], name: str) -> None:
    layer, qkv = LAYERS[name], _qkv(sum(lengths))
    got = packed(lengths)(layer, *qkv)
    separate = [dense(layer, *parts) for parts in zip(*(x.split(lengths) for x in qkv), strict=True)]
    torch.testing.assert_close(got, torch.cat(separate), atol=1e-6, rtol=1e-5)


def test_packed_has_the_gradients_of_separate_samples() -> None:
    lengths = (5, 1, 3)
    together = [x.requires_grad_() for x in _qkv(sum(lengths))]
    apart = [x.requires_grad_() for x in _qkv(sum(lengths))]
    packed(lengths)(LAYERS["plain"], *together).square().sum().backward()
    for parts in zip(*(x.split(lengths) for x in apart), strict=True):
        dense(LAYERS["plain"], *parts).square().sum().backward()
    for one, other in zip(together, apart, strict=True):
        assert one.grad is not None and other.grad is not None
        torch.testing.assert_close(one.grad, other.grad, atol=1e-6, rtol=1e-5)


def test_packed_refuses_another_number_of_tokens() -> None:
    with pytest.raises(AssertionError, match="packed for 7 tokens, asked for 6"):
        packed((4, 3))(LAYERS["plain"], *_qkv(6))


def test_the_mask_by_hand() -> None:
    assert causal_mask(2, 4, None, torch.device("cpu")).tolist() == [[True, True, True, False], [True] * 4]
    assert causal_mask(2, 4, 2, torch.device("cpu")).tolist() == [
        [False, True, True, False],
        [False, False, True, True],
    ]
