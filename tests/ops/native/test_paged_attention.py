"""The kernel over pages is plain attention, and a token's result has the same bits in any batch."""

import os
import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from cascadevl.core.hardware import cpu_flags
from cascadevl.core.precision import KVFormat
from cascadevl.ops.attention import Layer, scores_to_output
from cascadevl.ops.kv_formats import Kept
from cascadevl.ops.native.library import library
from cascadevl.ops.native.paged_attention import Places, paged_attention, serves, store_pages

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler here, or it is switched off")


class Case:
    """Requests of some lengths, their tokens in shuffled pages; what lies behind them is garbage."""

    def __init__(self, seed: int, lengths: list[int], num_kv_heads: int, group: int, head_size: int, page_size: int):
        generator = torch.Generator().manual_seed(seed)
        counts = [-(-length // page_size) for length in lengths]
        order = torch.randperm(sum(counts), generator=generator).int()
        shape = (sum(counts), num_kv_heads, page_size, head_size)
        self.keys_PKSH, self.values_PKSH = (torch.full(shape, float("nan")) for _ in range(2))
        self.tables_RP = torch.full((len(lengths), max(counts)), 2**30, dtype=torch.int32)
        self.k, self.v = list[Tensor](), list[Tensor]()
        for row, (length, pages) in enumerate(zip(lengths, order.split(counts), strict=True)):
            self.tables_RP[row, : len(pages)] = pages
            for whole, cached in ((self.k, self.keys_PKSH), (self.v, self.values_PKSH)):
                whole.append(torch.randn(num_kv_heads, length, head_size, generator=generator))
                for token in range(length):
                    cached[pages[token // page_size], :, token % page_size] = whole[-1][:, token]
        sinks = torch.randn(num_kv_heads * group, generator=generator)
        self.layers = [
            Layer(index=0, scale=head_size**-0.5, window=window, sinks_N=sinks_N)
            for window in (None, 1, 7) for sinks_N in (None, sinks)
        ]  # fmt: skip
        # The last token of each request, and some before.
        places = [(row, at) for row, length in enumerate(lengths) for at in sorted({length - 1, length // 2, 0})]
        self.request_T, self.position_T = torch.tensor(places, dtype=torch.int32).T.contiguous()
        self.q_TNH = torch.randn(len(places), num_kv_heads * group, head_size, generator=generator)

    def run(self, layer: Layer, which: Tensor) -> Tensor:
        places = Places(self.tables_RP, self.request_T[which], self.position_T[which], self.keys_PKSH.shape[2])
        keys, values = (Kept("float32", x, None) for x in (self.keys_PKSH, self.values_PKSH))
        with torch.inference_mode():
            return paged_attention(layer, self.q_TNH[which], keys, values, places)

    def expected(self, layer: Layer) -> Tensor:
        rows = []
        for q_NH, row, at in zip(self.q_TNH, self.request_T.tolist(), self.position_T.tolist(), strict=True):
            k, v = (x[row][None, :, : at + 1].double() for x in (self.k, self.v))
            rows.append(scores_to_output(layer, q_NH[None, :, None].double(), k, v)[0, :, 0])
        return torch.stack(rows).float()


CASES = st.builds(
    Case,
    seed=st.integers(0, 10**6),
    lengths=st.lists(st.integers(1, 40), min_size=1, max_size=4),
    num_kv_heads=st.integers(1, 3),
    group=st.sampled_from([1, 2, 3, 8]),
    head_size=st.sampled_from([8, 16, 40, 64, 80, 128]),
    page_size=st.sampled_from([1, 3, 8, 16]),
)


@settings(max_examples=40, deadline=None)
@given(CASES)
def test_it_is_plain_attention(case: Case) -> None:
    for layer in case.layers:
        got = case.run(layer, torch.arange(len(case.q_TNH)))
        torch.testing.assert_close(got, case.expected(layer), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("window", [None, 1000])
def test_long_contexts(window: int | None) -> None:
    case = Case(0, [5000, 3], 2, 4, 64, 16)
    layer = Layer(index=0, scale=0.125, window=window)
    got = case.run(layer, torch.arange(len(case.q_TNH)))
    torch.testing.assert_close(got, case.expected(layer), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("scale", [0.0, 30.0, 1000.0])
def test_scores_of_any_size_give_weights_that_sum_to_one(scale: float) -> None:
    """Values of one everywhere: the answer is one, however flat or sharp the weights are."""
    case = Case(0, [100], 1, 2, 16, 16)
    case.values_PKSH = torch.ones_like(case.values_PKSH)
    got = case.run(Layer(index=0, scale=scale), torch.arange(len(case.q_TNH)))
    torch.testing.assert_close(got, torch.ones_like(got), atol=1e-6, rtol=0)


@settings(max_examples=20, deadline=None)
@given(CASES, st.randoms(use_true_random=False))
def test_the_same_bits_alone_and_in_any_batch(case: Case, random) -> None:
    for layer in case.layers:
        alone = torch.cat([case.run(layer, torch.tensor([t])) for t in range(len(case.q_TNH))])
        for _ in range(3):
            which = torch.tensor(random.choices(range(len(alone)), k=random.randint(1, 2 * len(alone))))
            assert torch.equal(case.run(layer, which), alone[which])


@pytest.mark.parametrize("head_size", [24, 64])
def test_the_same_bits_whatever_the_size_of_pages(head_size: int) -> None:
    outs = [Case(3, [70], 2, 3, head_size, size) for size in (1, 5, 16, 70)]
    for layers in zip(*(case.layers for case in outs), strict=True):
        # The order of pages is drawn first: tokens differ between sizes, so they are set to be the same.
        first = outs[0]
        got = []
        for case, layer in zip(outs, layers, strict=True):
            case.k, case.v, case.q_TNH = first.k, first.v, first.q_TNH
            for whole, cached in ((case.k, case.keys_PKSH), (case.v, case.values_PKSH)):
                for token in range(70):
                    page = case.tables_RP[0, token // cached.shape[2]]
                    cached[page, :, token % cached.shape[2]] = whole[0][:, token]
            got.append(case.run(layers[0], torch.arange(len(case.q_TNH))))
            assert layer.window == layers[0].window
        assert all(torch.equal(out, got[0]) for out in got)


def test_nan_of_one_request_stays_there() -> None:
    case = Case(0, [9, 20], 2, 2, 16, 4)
    layer = case.layers[0]
    before = case.run(layer, torch.arange(len(case.q_TNH)))
    case.keys_PKSH[case.tables_RP[1, 0]] = float("nan")
    after = case.run(layer, torch.arange(len(case.q_TNH)))
    other = case.request_T == 0
    assert torch.equal(after[other], before[other])
    assert after[~other].isnan().all()


def test_it_serves_only_what_it_can() -> None:
    good, cpu = torch.zeros(1, 2, 8), torch.device("cpu")
    kept = Kept.empty("float32", (1, 2, 16, 8), cpu)
    with torch.inference_mode():
        assert serves(good, kept)
        assert not serves(good.double(), kept)
        assert not serves(good, Kept.empty("float16", (1, 2, 16, 8), cpu))
        assert not serves(torch.zeros(1, 2, 12), Kept.empty("float32", (1, 2, 16, 12), cpu))
    assert not serves(good, kept), "nobody could learn through it"


FEW_BITS: tuple[KVFormat, ...] = ("bfloat16", "fp8", "int8", "int4")
VNNI = {"avx512f", "avx512bw", "avx512vl", "avx512_vnni"}


@pytest.mark.parametrize("format", FEW_BITS)
def test_what_is_kept_has_the_bits_of_the_oracle(format: KVFormat) -> None:
    generator = torch.Generator().manual_seed(0)
    x_TKH = torch.randn(40, 2, 48, generator=generator) * torch.logspace(-6, 3, 40)[:, None, None]
    x_TKH[3, 0] = 0
    x_TKH[4, 1] = 2.5
    tables_RP = torch.randperm(6, generator=generator).int().view(1, -1)
    places = Places(tables_RP, torch.zeros(40, dtype=torch.int32), torch.arange(40, dtype=torch.int32), 7)
    ours, oracle = (Kept.empty(format, (6, 2, 7, 48), torch.device("cpu")) for _ in range(2))
    for kept in (ours, oracle):
        kept.numbers.view(torch.uint8).zero_()
        if kept.ranges is not None:
            kept.ranges.zero_()
    store_pages(x_TKH, ours, places)
    at = torch.arange(40)
    oracle.put((tables_RP[0, at // 7].long(), slice(None), at % 7), x_TKH)
    assert torch.equal(ours.numbers.view(torch.uint8), oracle.numbers.view(torch.uint8))
    if ours.ranges is not None:
        assert oracle.ranges is not None
        assert torch.equal(ours.ranges, oracle.ranges)


@pytest.mark.parametrize("format", FEW_BITS)
@settings(max_examples=10, deadline=None)
@given(CASES)
def test_few_bits_are_attended_as_the_numbers_they_stand_for(format: KVFormat, case: Case) -> None:
    if case.q_TNH.shape[-1] % 16:
        return
    keys, values = (Kept.of(x.nan_to_num(0.0), format) for x in (case.keys_PKSH, case.values_PKSH))
    places = Places(case.tables_RP, case.request_T, case.position_T, case.keys_PKSH.shape[2])
    case.keys_PKSH, case.values_PKSH = keys.floats().float(), values.floats().float()
    # attention_wide.c multiplies codes as they are, with queries and weights that it rounds to 16 bits.
    in_whole_numbers = keys.ranges is not None and case.q_TNH.shape[-1] % 64 == 0 and cpu_flags() >= VNNI
    for layer in case.layers:
        expected = case.run(layer, torch.arange(len(case.q_TNH)))
        with torch.inference_mode():
            got = paged_attention(layer, case.q_TNH, keys, values, places)
        tolerance = 5e-4 if in_whole_numbers else 2e-5
        torch.testing.assert_close(got, expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("format", FEW_BITS)
@pytest.mark.parametrize("group", [1, 3, 7])
def test_few_bits_have_the_same_bits_alone_in_company_and_in_pages_of_any_size(format: KVFormat, group: int) -> None:
    drawn, rows = Case(5, [37, 90], 2, group, 64, 1), []
    for size in (3, 16):
        case = Case(5, [37, 90], 2, group, 64, size)
        case.k, case.v, case.q_TNH, case.layers = drawn.k, drawn.v, drawn.q_TNH, drawn.layers
        # Tokens in a row, in pages in order, so that both sizes of pages hold the same.
        case.tables_RP = torch.arange(case.tables_RP.numel(), dtype=torch.int32).view_as(case.tables_RP)
        keys, values = (Kept.empty(format, (case.tables_RP.numel(), 2, size, 64), torch.device("cpu")) for _ in "kv")
        for kept, whole in ((keys, case.k), (values, case.v)):
            kept.numbers.view(torch.uint8).fill_(0xFF)
            for row, x_KTH in enumerate(whole):
                at = torch.arange(x_KTH.shape[1])
                page = case.tables_RP[row, at // size].long()
                kept.put((page, slice(None), at % size), x_KTH.transpose(0, 1))

        def run(which: Tensor, case=case, keys=keys, values=values) -> Tensor:
            places = Places(case.tables_RP, case.request_T[which], case.position_T[which], case.keys_PKSH.shape[2])
            with torch.inference_mode():
                return paged_attention(case.layers[-1], case.q_TNH[which], keys, values, places)

        whole_TNH = run(torch.arange(len(case.q_TNH)))
        assert whole_TNH.isfinite().all()
        for t in range(len(whole_TNH)):
            assert torch.equal(run(torch.tensor([t]))[0], whole_TNH[t])
        rows.append(whole_TNH)
    assert torch.equal(*rows)


@pytest.mark.parametrize("format", ["int8", "int4"])
@pytest.mark.parametrize("what", ["query", "key", "value"])
def test_no_number_goes_in_and_none_comes_out_of_that_head_alone(format: KVFormat, what: str) -> None:
    case = Case(1, [40], 2, 2, 64, 40)
    spoilt = {"key": case.keys_PKSH, "value": case.values_PKSH}
    if what == "query":
        case.q_TNH[-1, 1, 7] = float("nan")
    else:
        spoilt[what][0, 0, 11, 5] = float("inf")
    keys, values = (Kept.of(x, format) for x in (case.keys_PKSH, case.values_PKSH))
    places = Places(case.tables_RP, case.request_T[-1:], case.position_T[-1:], 40)
    with torch.inference_mode():
        got_NH = paged_attention(case.layers[0], case.q_TNH[-1:], keys, values, places)[0]
    lost_N = got_NH.isnan().all(1)
    assert lost_N.tolist() == ([False, True, False, False] if what == "query" else [True, True, False, False])
    assert got_NH[~lost_N].isfinite().all()


@pytest.mark.parametrize("format", ["int8", "int4"])
def test_a_vector_that_holds_no_number_is_lost_and_no_other(format: KVFormat) -> None:
    x = torch.randn(3, 1, 16)
    x[1, 0, 5] = float("inf")
    floats = Kept.of(x, format).floats()
    assert floats[1].isnan().all()
    assert floats[[0, 2]].isfinite().all()


def test_switched_off_the_slower_way_gives_the_same() -> None:
    """The answers of an engine in a process of its own."""
    script = """
import torch
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Sampling
from cascadevl.engine.engine import Engine
from cascadevl.ops.native.library import library
engine = Engine(tiny_parts("gpt_oss", std=0.3))
asked = [f"question {n}" for n in range(4)]
answers = engine.generate(asked, Sampling(max_new_tokens=20, logprobs=0, loop_guard=False))
print(library() is None, [a.token_ids for a in answers], [[round(p.logprob, 3) for p in a.logprobs] for a in answers])
"""
    said = []
    for native in ("1", "0"):
        environment = {**os.environ, "CASCADEVL_NATIVE": native}
        ran = subprocess.run(
            [sys.executable, "-c", script], env=environment, capture_output=True, text=True, check=True
        )
        switched, _, rest = ran.stdout.partition(" ")
        assert switched == str(native == "0")
        said.append(rest)
    assert said[0] == said[1]
