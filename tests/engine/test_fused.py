"""The decoder in C is the decoder in torch; a row's bits are the same in any company and on any number of threads."""

import pytest
import torch

from cascadevl.checkpoints.tiny import TINY_DECODERS
from cascadevl.core.config import evolve
from cascadevl.core.precision import KVFormat
from cascadevl.engine.fused import FusedDecoder
from cascadevl.engine.kv_cache import PagedAttend, PagedCache, Segment, places_of
from cascadevl.models.decoder import Decoder
from cascadevl.models.quant_linear import quantize_linears
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.native.library import library, set_threads
from cascadevl.ops.rope import rope_table

pytestmark = pytest.mark.skipif(library() is None, reason="no C compiler here, or it is switched off")

SEGMENTS = [Segment(0, 0, 9, (4, 1, 2)), Segment(9, 0, 1, (0,)), Segment(10, 0, 5, (3, 5))]
FAMILIES = [name for name, config in TINY_DECODERS.items() if config.experts is None]


def _decoder(family: str, seed: int = 0) -> Decoder:
    config = TINY_DECODERS[family]
    decoder = Decoder(evolve(config, hidden_size=64, mlp_size=96, head_size=max(8, config.head_size)))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in decoder.parameters():
            parameter.normal_(0.0, 0.2, generator=generator)
    return decoder


def _cache(decoder: Decoder, format: KVFormat = "float32") -> PagedCache:
    return PagedCache(decoder.config, 6, 4, format, torch.device("cpu"))


def _fused(decoder: Decoder, cache: PagedCache, embed_TD: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
    fused = FusedDecoder.of(decoder, cache)
    assert fused is not None
    places = places_of(segments, cache.page_size)
    return fused(
        embed_TD, *rope_table(places.position_T.float(), decoder.config.rope, decoder.config.head_size), places
    )


def _torch(decoder: Decoder, cache: PagedCache, embed_TD: torch.Tensor, segments: list[Segment]) -> torch.Tensor:
    positions_T = places_of(segments, cache.page_size).position_T.float()
    return decoder(embed_TD, positions_T, PagedAttend(cache, segments))


@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_every_dense_family_comes_out_as_in_torch(family):
    decoder, embed_TD = _decoder(family), torch.randn(15, 64)
    ours, theirs = _cache(decoder), _cache(decoder)
    expected = _torch(decoder, theirs, embed_TD, SEGMENTS)
    torch.testing.assert_close(_fused(decoder, ours, embed_TD, SEGMENTS), expected, atol=3e-5, rtol=1e-4)
    for segment in SEGMENTS:
        for at in range(segment.num):
            place = slice(None), segment.pages[at // 4], slice(None), at % 4
            torch.testing.assert_close(ours.keys[place].numbers, theirs.keys[place].numbers, atol=3e-5, rtol=1e-4)


@pytest.mark.parametrize("name", ["int8", "int4-g32", "int4-g32-zeros", "mxfp4", "fp8"])
@torch.inference_mode()
def test_quantised_layers_come_out_as_one_by_one(name):
    decoder, embed_TD = _decoder("qwen3"), torch.randn(15, 64)
    quantize_linears(decoder, lambda path: path != "lm_head", FORMATS[name])
    found = _fused(decoder, _cache(decoder), embed_TD, SEGMENTS)
    expected = _torch(decoder, _cache(decoder), embed_TD, SEGMENTS)
    # Activations of 8 bits: where rounding turns, a whole step follows.
    assert torch.nn.functional.cosine_similarity(found, expected).min() > 0.999


@pytest.mark.parametrize("format", ["float32", "int8", "int4", "fp8", "bfloat16"])
@torch.inference_mode()
def test_bits_do_not_depend_on_company_or_threads(format):
    decoder, embed_TD = _decoder("qwen3"), torch.randn(15, 64)
    if decoder.config.head_size % 16 and format == "int4":
        decoder = Decoder(evolve(decoder.config, head_size=16))
    whole = _fused(decoder, _cache(decoder, format), embed_TD, SEGMENTS)
    for segment in SEGMENTS:
        cache, rows = _cache(decoder, format), embed_TD[segment.first : segment.first + segment.num]
        alone = [
            _fused(decoder, cache, rows[at : at + 1], [Segment(0, at, 1, segment.pages)]) for at in range(segment.num)
        ]
        assert torch.equal(torch.cat(alone), whole[segment.first : segment.first + segment.num])
    loaded = library()
    assert loaded is not None
    loaded.c.set_threads(3)
    try:
        for _ in range(20):
            assert torch.equal(_fused(decoder, _cache(decoder, format), embed_TD, SEGMENTS), whole)
    finally:
        set_threads(torch.get_num_threads())


def test_what_c_does_not_know_is_left_to_torch():
    decoder = Decoder(TINY_DECODERS["qwen3_moe"])
    assert FusedDecoder.of(decoder, _cache(decoder)) is None
    half = _decoder("qwen3").half()
    assert FusedDecoder.of(half, _cache(half)) is None
