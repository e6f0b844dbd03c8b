"""Routing by hand, mixtures against the formula, gradients against differences, balance against transformers."""

from functools import partial

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import load_balancing_loss_func

from cascadevl.ops.experts import (
    CACHE_BYTES,
    Linear,
    apply_experts,
    apply_without_waiting,
    balance_loss,
    grouped_linear,
    linear_of_one,
    route,
    sort_by_expert,
)

SHARES = torch.tensor([[0.1, 0.2, 0.3, 0.4], [0.7, 0.1, 0.05, 0.15]])


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def affine(weight_EDD: Tensor, bias_ED: Tensor, rows_AD: Tensor, linear: Linear) -> Tensor:
    """The smallest expert that notices a row at the wrong place: one biased map and a bend."""
    return linear(rows_AD, weight_EDD, bias_ED).tanh()


def naive(hidden_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, weight_EDD: Tensor, bias_ED: Tensor) -> Tensor:
    out_TD = torch.zeros_like(hidden_TD)
    for token, chosen in enumerate(experts_Tk.tolist()):
        for place, index in enumerate(chosen):
            row_D = (hidden_TD[token] @ weight_EDD[index] + bias_ED[index]).tanh()
            out_TD[token] = out_TD[token] + weights_Tk[token, place] * row_D
    return out_TD


def mixture(num_tokens: int, num_experts: int, num_per_token: int, width: int = 6) -> tuple[Tensor, ...]:
    """hidden_TD, weights_Tk, experts_Tk, weight_EDD, bias_ED."""
    weights_Tk, experts_Tk = route(draw(num_tokens, num_experts, seed=1), num_per_token, normalise=True)
    maps = draw(num_experts, width, width, seed=2), draw(num_experts, width, seed=3)
    return draw(num_tokens, width), weights_Tk, experts_Tk, *maps


def ours(hidden_TD: Tensor, weights_Tk: Tensor, experts_Tk: Tensor, weight_EDD: Tensor, bias_ED: Tensor) -> Tensor:
    return apply_experts(
        hidden_TD,
        weights_Tk,
        experts_Tk,
        len(weight_EDD),
        lambda rows_AD, linear: affine(weight_EDD, bias_ED, rows_AD, linear),
    )


def test_the_best_experts_get_their_share_of_the_softmax() -> None:
    weights_Tk, experts_Tk = route(SHARES.log(), 2, normalise=False)
    assert experts_Tk.tolist() == [[3, 2], [0, 3]]
    torch.testing.assert_close(weights_Tk, torch.tensor([[0.4, 0.3], [0.7, 0.15]]))


def test_normalised_shares_sum_to_one() -> None:
    weights_Tk, experts_Tk = route(SHARES.log(), 2, normalise=True)
    assert experts_Tk.tolist() == [[3, 2], [0, 3]]
    torch.testing.assert_close(weights_Tk, torch.tensor([[4 / 7, 3 / 7], [70 / 85, 15 / 85]]))


def test_shares_are_computed_in_fp32_and_handed_out_in_the_dtype_of_the_logits() -> None:
    logits_TE = draw(64, 16).bfloat16()
    weights_Tk, experts_Tk = route(logits_TE, 4, normalise=True)
    exact_Tk, exact_experts_Tk = route(logits_TE.float(), 4, normalise=True)
    assert torch.equal(weights_Tk, exact_Tk.bfloat16())
    assert torch.equal(experts_Tk, exact_experts_Tk)


def test_sorting_gives_each_busy_expert_one_run_with_its_own_assignments() -> None:
    experts_Tk = torch.tensor([[3, 1], [1, 0], [3, 1]])
    order_A, runs = sort_by_expert(experts_Tk, 5)
    assert runs == [(0, slice(0, 1)), (1, slice(1, 4)), (3, slice(4, 6))]
    assert sorted(order_A.tolist()) == list(range(6))
    for index, run in runs:
        assert set(experts_Tk.flatten()[order_A[run]].tolist()) == {index}


@given(
    num_tokens=st.integers(0, 12),
    num_experts=st.integers(1, 9),
    num_per_token=st.integers(1, 9),
    learning=st.booleans(),
)
def test_a_mixture_is_the_weighted_sum_of_the_formula(
    num_tokens: int, num_experts: int, num_per_token: int, learning: bool
) -> None:
    parts = mixture(num_tokens, num_experts, min(num_per_token, num_experts))
    with torch.set_grad_enabled(learning):
        torch.testing.assert_close(ours(*parts), naive(*parts), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("num_rows", [CACHE_BYTES // 4 // 64, CACHE_BYTES // 4 // 64 + 2])
def test_beyond_the_cache_experts_take_turns_and_nothing_else_changes(num_rows: int) -> None:
    hidden_TD, weights_Tk, experts_Tk, weight_EDD, bias_ED = mixture(num_rows // 2, 5, 2, width=64)
    served: list[int] = []

    def count(rows_AD: Tensor, linear: Linear) -> Tensor:
        served.append(len(rows_AD))
        return affine(weight_EDD, bias_ED, rows_AD, linear)

    with torch.no_grad():
        out_TD = apply_experts(hidden_TD, weights_Tk, experts_Tk, 5, count)
    assert sum(served) == num_rows and len(served) == (1 if num_rows * 64 * 4 <= CACHE_BYTES else 5)
    expected_TD = ours(hidden_TD, weights_Tk, experts_Tk, weight_EDD, bias_ED)
    torch.testing.assert_close(out_TD, expected_TD, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("num_tokens", [1, 2, 40])
def test_every_gradient_equals_that_of_the_formula(num_tokens: int) -> None:
    hidden_TD, weights_Tk, experts_Tk, weight_EDD, bias_ED = (part.clone() for part in mixture(num_tokens, 7, 3))
    # One expert is chosen by nobody.
    experts_Tk[experts_Tk == 6] = 0
    leaves = [part.requires_grad_() for part in (hidden_TD, weights_Tk, weight_EDD, bias_ED)]
    down_TD = draw(num_tokens, 6, seed=5)
    got, expected = (
        torch.autograd.grad((mix(hidden_TD, weights_Tk, experts_Tk, weight_EDD, bias_ED) * down_TD).sum(), leaves)
        for mix in (ours, naive)
    )
    for ours_g, naive_g in zip(got, expected, strict=True):
        torch.testing.assert_close(ours_g, naive_g, atol=2e-6, rtol=1e-5)
    assert not got[2][6].any() and not got[3][6].any()


def test_a_grouped_linear_map_has_the_gradient_of_finite_differences() -> None:
    runs = [(0, slice(0, 2)), (2, slice(2, 5))]
    rows_AI, weight_EIO, bias_EO = (draw(*shape).double().requires_grad_() for shape in [(5, 3), (3, 3, 4), (3, 4)])
    assert torch.autograd.gradcheck(lambda *tensors: grouped_linear(runs, *tensors), (rows_AI, weight_EIO, bias_EO))
    # Stored outputs first, as Qwen3-MoE does, and without a bias.
    weight_EOI = draw(3, 4, 3).double().requires_grad_()
    assert torch.autograd.gradcheck(lambda x, w: grouped_linear(runs, x, w.mT, None), (rows_AI, weight_EOI))


def test_frozen_experts_get_no_gradient_and_let_it_through() -> None:
    rows_AI, weight_EIO = draw(4, 3).requires_grad_(), draw(2, 3, 5)
    grouped_linear([(1, slice(0, 4))], rows_AI, weight_EIO, None).sum().backward()
    assert weight_EIO.grad is None
    torch.testing.assert_close(rows_AI.grad, weight_EIO[1].sum(-1).expand(4, 3))


def test_one_expert_and_groups_of_one_agree() -> None:
    rows_AI, weight_EIO, bias_EO = draw(4, 3), draw(2, 3, 5), draw(2, 5)
    for bias in (None, bias_EO):
        alone = linear_of_one(1, rows_AI, weight_EIO, bias)
        assert torch.equal(grouped_linear([(1, slice(0, 4))], rows_AI, weight_EIO, bias), alone)


@pytest.mark.parametrize("num_layers", [1, 3])
def test_balance_is_that_of_transformers(num_layers: int) -> None:
    logits_TE = draw(num_layers * 50, 8) + torch.linspace(0, 2, 8)
    theirs = load_balancing_loss_func(logits_TE.chunk(num_layers), 8, 2)  # type: ignore[arg-type]
    torch.testing.assert_close(balance_loss(logits_TE, 2), theirs)


def test_a_fair_router_costs_its_number_of_choices_and_a_stuck_one_as_many_as_there_are_experts() -> None:
    fair_TE = 20 * F.one_hot(torch.arange(8) % 4, 4).float()
    stuck_TE = 200 * F.one_hot(torch.zeros(8, dtype=torch.long), 4).float()
    assert balance_loss(fair_TE, 1).item() == pytest.approx(1)
    assert balance_loss(stuck_TE, 1).item() == pytest.approx(4)
    assert balance_loss(torch.zeros(0, 4), 1).item() == 0


def test_learning_balance_draws_from_the_crowded_expert() -> None:
    logits_TE = (draw(40, 4) + torch.tensor([3.0, 0, 0, 0])).requires_grad_()
    balance_loss(logits_TE, 1).backward()
    gradient = logits_TE.grad
    assert gradient is not None
    assert (gradient[:, 0] > 0).all() and (gradient[:, 1:].sum(-1) < 0).all()


def test_a_compiled_mixture_computes_the_same() -> None:
    compiled = torch.compile(ours, backend="eager")
    for num_tokens in (1, 3, 20):
        parts = mixture(num_tokens, 5, 2)
        torch.testing.assert_close(compiled(*parts), ours(*parts))


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 6), (torch.bfloat16, 6), (torch.bfloat16, 16)])
@torch.no_grad()
def test_the_way_of_a_gpu_gives_the_same(dtype: torch.dtype, width: int) -> None:
    """Also where experts are left out, and where torch's kernel takes the rows and where it does not."""
    for num_tokens in (1, 9):
        tensors = mixture(num_tokens, 5, 2, width)
        hidden_TD, weights_Tk, experts_Tk, *maps = (x.to(dtype) if x.is_floating_point() else x for x in tensors)
        found = apply_without_waiting(hidden_TD, weights_Tk, experts_Tk, 5, partial(affine, *maps))
        expected = naive(*tensors)
        limit = 1e-5 if dtype == torch.float32 else 0.03
        torch.testing.assert_close(found.float(), expected, atol=limit, rtol=0)
