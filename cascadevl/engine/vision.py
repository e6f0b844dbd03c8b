"""Pictures become visual tokens: tiles of many requests in one batch, and none that was seen before."""

import hashlib
from collections import OrderedDict
from collections.abc import Sequence

import torch
from torch import Tensor

from cascadevl.models.internvl import InternVL
from cascadevl.preprocessing.processor import ModelInputs


def tile_keys(inputs: ModelInputs) -> list[bytes]:
    """A name for each tile: its pixels, and the spec that made them."""
    spec = inputs.spec_hash.encode()
    return [hashlib.blake2b(spec + tile.numpy().tobytes(), digest_size=16).digest() for tile in inputs.tiles]


class TileCache:
    """Visual tokens (L, D) of tiles by name, the longest unused given up first.

    They lie in one piece of memory. Each in a block of its own, among the blocks that a step takes and gives back,
    they keep the heap from being used again: with 3,000 pictures it grew from 147 to 413 MiB, 146 of them in use.
    """

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.num_hits = self.num_misses = 0
        self._places: OrderedDict[bytes, int] = OrderedDict()
        self._memory_SLD: Tensor | None = None
        """Taken when the first tile tells how large they are; what is never touched is never taken."""

    def get(self, key: bytes) -> Tensor | None:
        """A copy: its place may be somebody else's soon."""
        place = self._places.get(key)
        if place is None:
            return None
        assert self._memory_SLD is not None
        self._places.move_to_end(key)
        return self._memory_SLD[place].clone()

    def put(self, key: bytes, tokens_LD: Tensor) -> None:
        if key in self._places or tokens_LD.nbytes > self.max_bytes:
            return
        if self._memory_SLD is None:
            self._memory_SLD = tokens_LD.new_empty((self.max_bytes // tokens_LD.nbytes, *tokens_LD.shape))
        if len(self._places) < len(self._memory_SLD):
            place = len(self._places)
            self.num_bytes += tokens_LD.nbytes
        else:
            _, place = self._places.popitem(last=False)
        self._memory_SLD[place] = tokens_LD
        self._places[key] = place

    def clear(self) -> None:
        self._places.clear()
        self.num_bytes = 0


def encode(model: InternVL, cache: TileCache, wanted: Sequence[tuple[bytes, Tensor]], max_tiles: int) -> list[Tensor]:
    """Visual tokens (L, D) of tiles given by name and pixels (3, Y, X), at most `max_tiles` at a time."""
    found: dict[bytes, Tensor] = {}
    missing: dict[bytes, Tensor] = {}
    for key, tile_CYX in wanted:
        tokens_LD = found.get(key)
        if tokens_LD is None:
            tokens_LD = cache.get(key)
        if tokens_LD is None:
            missing[key] = tile_CYX
        else:
            found[key] = tokens_LD
    cache.num_misses += len(missing)
    cache.num_hits += len(wanted) - len(missing)
    names = list(missing)
    for at in range(0, len(names), max_tiles):
        batch = names[at : at + max_tiles]
        tokens_SLD = model.encode_tiles(torch.stack([missing[name] for name in batch]).to(model.device))
        found |= dict(zip(batch, tokens_SLD, strict=True))
    for name in names:
        cache.put(name, found[name])
    return [found[key] for key, _ in wanted]
