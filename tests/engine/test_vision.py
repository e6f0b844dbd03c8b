"""Visual tokens: tiles of many requests together, none encoded twice, memory bounded."""

import pytest
import torch
from torch import Tensor

from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.config import evolve
from cascadevl.core.messages import Conversation
from cascadevl.engine.vision import TileCache, encode, tile_keys
from cascadevl.models.internvl import InternVL
from cascadevl.preprocessing.processor import Processor
from tests.engine.pictures import picture

PARTS = tiny_parts("qwen3", std=0.2)
TILES = torch.randint(0, 256, (7, 3, 56, 56), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
WANTED = [(bytes([n]), tile) for n, tile in enumerate(TILES)]
TILE_BYTES = 4 * 32 * 4
"""L x D x 4."""


@pytest.fixture
def batches(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Sizes of the batches that the tower was given."""
    sizes = []
    original = InternVL.encode_tiles

    def encode_tiles(self: InternVL, tiles_SCYX: Tensor) -> Tensor:
        sizes.append(len(tiles_SCYX))
        return original(self, tiles_SCYX)

    monkeypatch.setattr(InternVL, "encode_tiles", encode_tiles)
    return sizes


def _encode(cache: TileCache, wanted: list[tuple[bytes, Tensor]], max_tiles: int = 4) -> list[Tensor]:
    with torch.inference_mode():
        return encode(PARTS.model, cache, wanted, max_tiles)


def test_tiles_are_encoded_in_batches_and_come_in_order(batches: list[int]) -> None:
    got = torch.stack(_encode(TileCache(10**6), WANTED))
    assert batches == [4, 3]
    torch.testing.assert_close(got, PARTS.model.encode_tiles(TILES), atol=1e-6, rtol=0)


def test_a_tile_that_comes_twice_is_encoded_once(batches: list[int]) -> None:
    got = _encode(TileCache(10**6), [*WANTED[:2], WANTED[0], WANTED[1], WANTED[0]])
    assert batches == [2]
    assert torch.equal(got[0], got[4]) and torch.equal(got[1], got[3])
    assert not torch.equal(got[0], got[1])


def test_a_tile_seen_before_is_not_encoded_again(batches: list[int]) -> None:
    cache = TileCache(10**6)
    first = _encode(cache, WANTED[:3])
    again = _encode(cache, WANTED[1:4])
    assert batches == [3, 1]
    assert torch.equal(first[1], again[0]) and torch.equal(first[2], again[1])
    assert (cache.num_misses, cache.num_hits) == (4, 2)


@pytest.mark.parametrize("num_kept", [0, 1, 3])
def test_memory_is_bounded_and_the_longest_unused_go(num_kept: int) -> None:
    cache = TileCache(num_kept * TILE_BYTES + TILE_BYTES // 2)
    for _ in range(2):
        for n in range(5):
            assert torch.equal(_encode(cache, [WANTED[n]])[0], _encode(TileCache(0), [WANTED[n]])[0])
            assert cache.num_bytes <= cache.max_bytes
    assert [n for n, (name, _) in enumerate(WANTED) if cache.get(name) is not None] == list(range(5 - num_kept, 5))
    assert cache.num_bytes == num_kept * TILE_BYTES


def test_use_keeps_a_tile() -> None:
    cache = TileCache(2 * TILE_BYTES)
    for n in (0, 1, 0, 2):
        _encode(cache, [WANTED[n]])
    assert [cache.get(WANTED[n][0]) is not None for n in range(3)] == [True, False, True]


def test_a_cache_too_small_for_its_request_still_answers(batches: list[int]) -> None:
    got = _encode(TileCache(TILE_BYTES), WANTED, max_tiles=2)
    assert len(got) == 7 and batches == [2, 2, 2, 1]


def test_what_is_kept_lies_in_one_piece_of_memory_and_comes_as_copies() -> None:
    cache = TileCache(3 * TILE_BYTES)
    _encode(cache, WANTED[:3])
    memory = cache._memory_SLD
    assert memory is not None and memory.nbytes == cache.num_bytes == cache.max_bytes
    kept = cache.get(WANTED[1][0])
    assert kept is not None and kept.untyped_storage().nbytes() == TILE_BYTES
    before = kept.clone()
    _encode(cache, WANTED[3:])
    assert cache._memory_SLD is memory and cache.get(WANTED[1][0]) is None
    assert torch.equal(kept, before)


def test_cleared_it_is_empty() -> None:
    cache = TileCache(10**6)
    _encode(cache, WANTED)
    cache.clear()
    assert cache.num_bytes == 0 and cache.get(WANTED[0][0]) is None


def test_a_name_is_that_of_the_pixels_and_the_spec() -> None:
    def keys(seed: int, **settings) -> list[bytes]:
        parts = tiny_parts("qwen3") if not settings else _with_spec(**settings)
        return tile_keys(parts.processor(Conversation.ask("q", [picture(seed)])))

    assert keys(0) == keys(0)
    assert not set(keys(0)) & set(keys(1))
    assert not set(keys(0)) & set(keys(0, mean=(0.5, 0.5, 0.5))), "the same pixels, normalised otherwise"


def _with_spec(**settings) -> Parts:
    spec = evolve(PARTS.spec, **settings)
    return evolve(PARTS, spec=spec, processor=Processor(spec, PARTS.tokenizer))
