"""The cases of the kernels, for the interpreter and for a GPU.

    TRITON_INTERPRET=1 python -m tests.ops.triton_kernels.cases cpu [part of a name]
    python -m tests.ops.triton_kernels.cases cuda [part of a name]

Triton asks for its interpreter once, when it is imported; a process of their own keeps that from other tests.
"""

import json
import sys
import traceback
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.engine.fused_triton import TritonDecoder
from cascadevl.engine.kv_cache import PagedAttend, PagedCache, Segment, places_of
from cascadevl.models.decoder import Decoder
from cascadevl.ops.attention import Layer, scores_to_output
from cascadevl.ops.formats import FORMATS, Quantized
from cascadevl.ops.kv_formats import Kept, KVFormat
from cascadevl.ops.norm import rms_norm
from cascadevl.ops.quantize import dequantize, quantize
from cascadevl.ops.quantize import linear as oracle
from cascadevl.ops.rope import Rope, rope_table, rotate
from cascadevl.ops.triton import linear as gpu
from cascadevl.ops.triton.fused import norm, place, swiglu
from cascadevl.ops.triton.paged_attention import KINDS, paged_attention

HALVES = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 2e-2}
"""How far results may be off, of their greatest: sums come in another order, and are rounded once."""


def close(found: Tensor, expected: Tensor, share: float | None = None) -> None:
    """By the type of the result, or a share of its greatest number."""
    share = HALVES[found.dtype] if share is None else share
    limit = share * float(expected.float().abs().max())
    torch.testing.assert_close(found.float(), expected.float(), atol=limit, rtol=0)


def _quantized(shape: tuple[int, int], name: str, device: torch.device) -> Quantized:
    generator = torch.Generator().manual_seed(0)
    weight_FD = torch.randn(shape, generator=generator) * torch.rand(shape[0], 1, generator=generator)
    return quantize(weight_FD.to(device), FORMATS[name])


def linear_of(name: str) -> Callable[[torch.device], None]:
    """Odd numbers of rows and outputs, every type of activations, whole and in parts."""

    def case(device: torch.device) -> None:
        quantized = _quantized((70, 384), name, device)
        for dtype, rows, splits in ((torch.float32, 1, 1), (torch.float16, 3, 2), (torch.bfloat16, 5, 1)):
            x_TD, bias_F = torch.randn(rows, 384, device=device).to(dtype), torch.randn(70, device=device)
            for bias in (bias_F, None) if dtype == torch.float32 else (bias_F,):
                expected = oracle(x_TD.float(), quantized, bias)
                close(gpu.linear(x_TD, gpu.pack(quantized, bias), splits=splits).to(dtype), expected.to(dtype))

    return case


def larger_tiles(device: torch.device) -> None:
    """Of the first row that each begins with, and one of two programs along both rows and outputs."""
    for rows in (*gpu.TILES, 129):
        quantized = _quantized((130, 160), "int4-g32-zeros", device)
        x_TD = torch.randn(rows, 160, device=device)
        close(gpu.linear(x_TD, gpu.pack(quantized, None)), oracle(x_TD, quantized))


def any_width_without_groups(device: torch.device) -> None:
    for name in ("int8", "fp8", "fp8-blocks"):
        for width in (1, 33, 147):
            quantized, x_TD = _quantized((33, width), name, device), torch.randn(2, width, device=device)
            close(gpu.linear(x_TD, gpu.pack(quantized, None), splits=1), oracle(x_TD, quantized))


def every_code_and_scale(device: torch.device) -> None:
    """One input is 1, the others 0: what comes out is a column of the weight, bit for bit."""
    eye = torch.eye(32, device=device)
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    int4 = _quantized((64, 32), "int4-g32-zeros", device)
    mxfp4 = _quantized((253, 32), "mxfp4", device)  # six times a greater scale is no number
    mxfp4.scales[:, 0] = codes[:253]
    mxfp4.quants[:] = codes[:16]
    for quantized in (int4, mxfp4):
        expected = dequantize(quantized).T
        assert torch.equal(gpu.linear(eye, gpu.pack(quantized, None)), expected)
    finite = codes[codes & 127 != 127]
    fp8 = Quantized(FORMATS["fp8"], finite[:, None].view(torch.float8_e4m3fn), torch.ones(254, 1, device=device))
    one = torch.ones(1, 1, device=device)
    assert torch.equal(gpu.linear(one, gpu.pack(fp8, None))[0], finite.view(torch.float8_e4m3fn).float())


def shapes_of_activations(device: torch.device) -> None:
    packed = gpu.pack(_quantized((10, 32), "int8", device), None)
    x = torch.randn(2, 3, 32, device=device)
    assert gpu.linear(x[:0], packed).shape == (0, 3, 10)
    turned = torch.randn(32, 4, device=device).T
    assert torch.equal(gpu.linear(turned, packed), gpu.linear(turned.contiguous(), packed))
    assert gpu.linear(x, packed).shape == (2, 3, 10)


class Pages:
    """Requests of some lengths with their tokens in shuffled pages; what lies behind them is no number."""

    def __init__(
        self, format: KVFormat, lengths: list[int], device: torch.device, *, heads: int = 2, size: int, page: int = 4
    ) -> None:
        counts = [-(-length // page) for length in lengths]
        order = torch.randperm(sum(counts)).int()
        shape = (sum(counts), heads, page, size)
        self.keys, self.values = (Kept.empty(format, shape, device) for _ in range(2))
        for kept in (self.keys, self.values):
            kept.numbers.view(torch.uint8).fill_(0x7F)
            if kept.ranges is not None:
                kept.ranges.fill_(float("nan"))
        tables_RP = torch.full((len(lengths), max(counts)), 2**30, dtype=torch.int32)
        self.k, self.v = ([torch.randn(n, heads, size, device=device) for n in lengths] for _ in range(2))
        for row, (length, pages) in enumerate(zip(lengths, order.split(counts), strict=True)):
            tables_RP[row, : len(pages)] = pages
            at = torch.arange(length)
            where = pages[at // page].long().to(device), slice(None), (at % page).to(device)
            self.keys.put(where, self.k[row])
            self.values.put(where, self.v[row])
        places = [(row, at) for row, length in enumerate(lengths) for at in sorted({0, length // 2, length - 1})]
        request_T, position_T = torch.tensor(places, dtype=torch.int32).T.contiguous()
        self.places = tables_RP.to(device), request_T.to(device), position_T.to(device)

    def expected(self, layer: Layer, q_TNH: Tensor) -> Tensor:
        """With what the pages keep, in fp32."""
        rows, format = [], self.keys.format
        for q_NH, row, at in zip(q_TNH.float(), *(x.tolist() for x in self.places[1:]), strict=True):
            kept = (Kept.of(x[row][: at + 1], format).floats().float().transpose(0, 1)[None] for x in (self.k, self.v))
            rows.append(scores_to_output(layer, q_NH[None, :, None], *kept)[0, :, 0])
        return torch.stack(rows)


def attention_of(format: KVFormat) -> Callable[[torch.device], None]:
    """Every type of queries; windows and sinks; whole contexts and parts of them, some without a key."""

    def case(device: torch.device) -> None:
        pages = Pages(format, [9, 1], device, size=48)
        long = Pages(format, [600], device, heads=1, size=16, page=16)
        sinks_N = torch.randn(6, device=device)
        for paged, dtype, splits, window, sinks in (
            (pages, torch.float32, 1, None, None),
            (pages, torch.float16, 1, 5, sinks_N),
            (pages, torch.bfloat16, 2, None, sinks_N),
            (long, torch.float32, 4, None, sinks_N[:3]),
            (long, torch.float32, 2, 300, None),
        ):
            _, heads, _, width = paged.keys.numbers.shape
            size = 2 * width if format == "int4" else width
            q_TNH = torch.randn(len(paged.places[1]), 3 * heads, size, device=device).to(dtype)
            layer = Layer(index=0, scale=size**-0.5, window=window, sinks_N=sinks)
            found = paged_attention(layer, q_TNH, paged.keys, paged.values, *paged.places, splits=splits)
            assert found.dtype == dtype
            close(found, paged.expected(layer, q_TNH), {torch.float32: 2e-5, torch.float16: 5e-3}.get(dtype, 3e-2))

    return case


def nan_stays_with_its_request(device: torch.device) -> None:
    pages = Pages("int8", [5, 3], device, size=16)
    q_TNH, layer = torch.randn(len(pages.places[1]), 2, 16, device=device), Layer(index=0, scale=0.25)
    assert pages.keys.ranges is not None
    pages.keys.ranges[pages.places[0][1, 0].long()] = float("nan")
    found = paged_attention(layer, q_TNH, pages.keys, pages.values, *pages.places)
    second = pages.places[1] == 1
    assert found[second].isnan().all() and found[~second].isfinite().all()


def placing_of(format: KVFormat) -> Callable[[torch.device], None]:
    """Norm, rotation and rounding as torch does them one after the other; with norms and without."""

    def case(device: torch.device) -> None:
        for dtype, normed in ((torch.float32, True), (torch.bfloat16, True), (torch.float16, False)):
            pages = Pages(format, [6, 2], device, size=48)
            tables_RP, request_T, position_T = pages.places
            num = len(request_T)
            q, k, v = (torch.randn(num, heads, 48, device=device).to(dtype) for heads in (4, 2, 2))
            norms = [torch.rand(48, device=device).to(dtype) for _ in range(2)] if normed else [None, None]
            cos_TH, sin_TH = (x.to(dtype) for x in rope_table(position_T.float(), Rope(theta=1e4), 48))
            keys, values = (Kept.empty(format, (3, 2, 4, 48), device) for _ in range(2))
            found = place((q, k, v), (norms[0], norms[1]), 1e-6, (cos_TH, sin_TH), (keys, values), *pages.places)
            new_q, new_k = (
                rotate(x if weight is None else rms_norm(x, weight, 1e-6), cos_TH, sin_TH)
                for x, weight in zip((q, k), norms, strict=True)
            )
            close(found, new_q, 1e-6 if dtype == torch.float32 else None)
            page_T = tables_RP[request_T.long(), position_T.long() // 4].long()
            for kept, x in ((keys, new_k), (values, v)):
                got = kept[page_T, :, position_T.long() % 4].floats()
                close(got, Kept.of(x, format).floats().float(), {"int4": 0.15, "fp8": 0.07}.get(format, 0.03))
            exact = values[page_T, :, position_T.long() % 4]  # nothing is computed before they are rounded
            expected = Kept.of(v, format)
            if format == "bfloat16":  # which the interpreter cuts off instead
                close(exact.numbers, expected.numbers)
            else:
                assert torch.equal(exact.numbers.view(torch.uint8), expected.numbers.view(torch.uint8))
            if exact.ranges is not None and expected.ranges is not None:
                assert torch.equal(exact.ranges, expected.ranges)

    return case


def norms_and_gates(device: torch.device) -> None:
    for dtype in HALVES:
        hidden, added, up = (torch.randn(3, 40, device=device).to(dtype) for _ in range(3))
        weight = torch.rand(40, device=device).to(dtype)
        close(norm(hidden, weight, 1e-5), rms_norm(hidden, weight, 1e-5))
        together = hidden + added
        close(norm(hidden, weight, 1e-5, added), rms_norm(together, weight, 1e-5))
        close(hidden, together)
        close(swiglu(hidden, up), F.silu(hidden) * up)


def every_number_is_rounded_to_fp8(device: torch.device) -> None:
    """To the nearest, of two the even one: all numbers of FP8, what lies between, subnormal, large, no number."""
    codes = torch.arange(256, dtype=torch.uint8, device=device)
    numbers = codes[codes & 127 != 127].view(torch.float8_e4m3fn).float().sort().values
    between = (numbers[1:] + numbers[:-1]) / 2
    rest = torch.tensor([449.0, -1e9, float("inf"), float("nan"), 1e-30, 2.0**-10, -0.0, 0.0], device=device)
    all_of_them = torch.cat([numbers, between, between * 1.001, between * 0.999, rest])
    x = F.pad(all_of_them, (0, -len(all_of_them) % 512)).view(-1, 1, 512)
    keys, values = (Kept.empty("fp8", (len(x), 1, 1, 512), device) for _ in range(2))
    own = torch.arange(len(x), dtype=torch.int32, device=device)
    angles = torch.ones(len(x), 512, device=device)
    place((x, x, x), (None, None), 0.0, (angles, angles), (keys, values), own[:, None], own, torch.zeros_like(own))
    expected = Kept.of(x, "fp8").numbers[:, None]
    assert torch.equal(values.numbers.view(torch.uint8) & 127, expected.view(torch.uint8) & 127)
    assert torch.equal(values.numbers.float().signbit(), expected.float().signbit())


def strange_vectors_say_so(device: torch.device) -> None:
    """Keys with an infinity or NaN have the range NaN, as with `Kept.of`; a vector of one number has the scale 0."""
    x = torch.randn(3, 1, 16, device=device)
    x[0, 0, 3], x[1, 0, 12], x[2] = float("inf"), float("nan"), 2.5
    values = Kept.empty("int8", (3, 1, 1, 16), device)
    keys = Kept.empty("int8", (3, 1, 1, 16), device)
    own, zero = torch.arange(3, dtype=torch.int32, device=device), torch.zeros(3, dtype=torch.int32, device=device)
    angles = torch.ones(3, 16, device=device)
    place((x, x, x), (None, None), 0.0, (angles, angles), (keys, values), own[:, None].contiguous(), own, zero)
    assert values.floats()[:2].isnan().all()
    assert values.floats()[2].eq(2.5).all()


def decoder_of(family: str, format: KVFormat) -> Callable[[torch.device], None]:
    """The whole decoder, kernel after kernel, is the decoder in torch: hidden states and what is then in the pages."""

    def case(device: torch.device) -> None:
        decoder = Decoder(TINY_DECODERS[family]).to(device)
        for parameter in decoder.parameters():
            parameter.normal_(0.0, 0.2)
        config = decoder.config
        segments = [Segment(0, 0, 5, (4, 1)), Segment(5, 0, 1, (0,))]
        places, embed_TD = places_of(segments, 4), torch.randn(6, config.hidden_size, device=device)
        ours, theirs = (PagedCache(config, 6, 4, format, device) for _ in range(2))
        position_T = places.position_T.float().to(device)
        found = TritonDecoder(decoder, ours)(embed_TD, *rope_table(position_T, config.rope, config.head_size), places)
        close(
            found, decoder(embed_TD, position_T, PagedAttend(theirs, segments)), 5e-5 if format == "float32" else 0.03
        )
        for segment in segments:
            for at in range(segment.num):
                place = slice(None), segment.pages[at // 4], slice(None), at % 4
                limit = 5e-5 if format == "float32" else 0.15
                close(ours.keys[place].floats(), theirs.keys[place].floats(), limit)
                close(ours.values[place].floats(), theirs.values[place].floats(), limit)

    return case


CASES: dict[str, Callable[[torch.device], None]] = {
    **{f"linear {name}": linear_of(name) for name in FORMATS},
    "larger tiles": larger_tiles,
    "any width without groups": any_width_without_groups,
    "every code and scale": every_code_and_scale,
    "shapes of activations": shapes_of_activations,
    **{f"attention over {format}": attention_of(format) for format in KINDS},
    "NaN stays with its request": nan_stays_with_its_request,
    **{f"placing {format}": placing_of(format) for format in KINDS},
    "norms and gates": norms_and_gates,
    "every number is rounded to FP8": every_number_is_rounded_to_fp8,
    "strange vectors say so": strange_vectors_say_so,
    **{f"decoder of {family}": decoder_of(family, "float32") for family, c in TINY_DECODERS.items() if not c.experts},
    "decoder over int8": decoder_of("qwen3", "int8"),
}


@torch.inference_mode()
def run(name: str, device: torch.device) -> None:
    """One case, always with the same numbers."""
    torch.manual_seed(0)
    CASES[name](device)


def main() -> None:
    """Prints a line of JSON for each case: its name, and what went wrong or null."""
    device, wanted = torch.device(sys.argv[1]), sys.argv[2] if len(sys.argv) > 2 else ""
    torch.set_num_threads(1)
    for name in CASES:
        if wanted in name:
            error = None
            try:
                run(name, device)
            except Exception:
                error = traceback.format_exc()
            print(json.dumps([name, error]), flush=True)


if __name__ == "__main__":
    main()
