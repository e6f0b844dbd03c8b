"""many_queries.c on every set of instructions that this machine has, against softmax attention in fp64."""

import os
import shutil

import pytest
import torch

from cascadevl.core.hardware import cpu_flags
from cascadevl.core.native import COMPILERS
from cascadevl.ops.native import many_queries
from cascadevl.ops.native.library import library as compiled

MACHINES = {"native": (), "avx2": ("-mno-avx512f",), "any": ("-mno-avx2",)}

# R, N, K, queries, keys, H, causal, window
CASES = [
    (1, 2, 1, 9, 9, 64, True, None),
    (2, 3, 3, 33, 50, 32, True, None),
    (1, 4, 2, 70, 300, 80, True, None),
    (1, 2, 2, 100, 700, 128, True, 100),
    (1, 1, 1, 13, 600, 20, True, 3),
    (2, 2, 2, 65, 65, 24, False, None),
    (1, 1, 1, 513, 513, 256, False, None),
]


@pytest.fixture(scope="module", params=MACHINES)
def loaded(request):
    if MACHINES[request.param] and not {"avx512f", "avx2"} & cpu_flags():
        pytest.skip("another processor has no such instructions to leave out")
    if not any(map(shutil.which, COMPILERS)) or os.environ.get("CASCADEVL_NATIVE") == "0":
        pytest.skip("no C compiler here, or none wanted")
    found = compiled(MACHINES[request.param])
    assert found, "kernels.c does not compile"
    return found


def drawn(case, seed=0):
    sequences, heads, kv_heads, queries, keys, size, *_ = case
    generator = torch.Generator().manual_seed(seed)
    shapes = (heads, queries), (kv_heads, keys), (kv_heads, keys)
    return [torch.randn(sequences, *shape, size, generator=generator) for shape in shapes]


def expected(q, k, v, causal, window, sinks):
    q, k, v = (x.double().repeat_interleave(q.shape[1] // x.shape[1], 1) for x in (q, k, v))
    scores, (queries, keys) = q @ k.mT * q.shape[-1] ** -0.5, (q.shape[2], k.shape[2])
    distance = torch.arange(keys - queries, keys)[:, None] - torch.arange(keys)
    if causal:
        scores = scores.masked_fill((distance < 0) | (distance >= (window or keys)), float("-inf"))
    if sinks is not None:
        sinks = sinks.double().view(1, -1, 1, 1).expand(*scores.shape[:3], 1)
        return torch.cat([scores, sinks], -1).softmax(-1)[..., :-1] @ v
    return scores.softmax(-1) @ v


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("with_sinks", [False, True])
def test_attention_is_that_of_the_formula(loaded, case, with_sinks):
    (q, k, v), size, (causal, window) = drawn(case), case[5], case[6:]
    sinks = torch.linspace(-1, 3, case[1]) if with_sinks else None
    wanted = expected(q, k, v, causal, window, sinks)
    for brief, error in ((False, 3e-6), (True, 0.03)):
        found = many_queries.attend(
            q, k, v, size**-0.5, causal=causal, window=window, sinks_N=sinks, brief=brief, loaded=loaded
        )
        assert torch.allclose(found.double(), wanted, rtol=0, atol=error), brief


@pytest.mark.parametrize("brief", [False, True])
def test_a_query_has_the_same_bits_in_any_company(loaded, brief):
    q, k, v = drawn((1, 2, 1, 700, 700, 64))
    whole = many_queries.attend(q, k, v, 0.125, causal=True, brief=brief, loaded=loaded)
    for start, end in ((0, 20), (1, 64), (250, 260), (300, 519), (699, 700)):
        seen = k[:, :, :end], v[:, :, :end]
        part = many_queries.attend(q[:, :, start:end], *seen, 0.125, causal=True, brief=brief, loaded=loaded)
        assert torch.equal(part, whole[:, :, start:end]), (start, end)


def test_heads_may_lie_as_projections_leave_them(loaded):
    packed = torch.randn(2, 40, 3 * 4 * 16)
    q, k, v = (x.unflatten(-1, (4, 16)).transpose(1, 2) for x in packed.chunk(3, -1))
    found = many_queries.attend(q, k, v, 0.25, causal=False, loaded=loaded)
    q, k, v = (x.contiguous() for x in (q, k, v))
    assert torch.equal(found, many_queries.attend(q, k, v, 0.25, causal=False, loaded=loaded))


def test_high_scores_do_not_overflow_and_nan_stays_with_its_query(loaded):
    q, k, v = drawn((1, 1, 1, 300, 300, 32))
    q[0, 0, 100] = float("nan")
    found = many_queries.attend(q * 1000, k, v, 1.0, causal=True, loaded=loaded)
    assert found[0, 0, 100].isnan().all()
    found[0, 0, 100] = 0
    assert found.isfinite().all()


def test_gradients_and_other_types_are_left_to_torch():
    q = torch.randn(1, 1, 20, 8)
    assert not many_queries.serves(q.requires_grad_(), q, q)
    with torch.no_grad():
        assert not many_queries.serves(q.bfloat16(), q.bfloat16(), q.bfloat16())
        assert not many_queries.serves(q[:, :, :4], q, q)
