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
    """Visual tokens (L, D) of tiles by name, the longest unused given up first."""

    def __init__(self, max_bytes: int) -> None:
        self.max_bytes, self.num_bytes = max_bytes, 0
        self.num_hits = self.num_misses = 0
        self._tokens: OrderedDict[bytes, Tensor] = OrderedDict()

    def get(self, key: bytes) -> Tensor | None:
        tokens_LD = self._tokens.get(key)
        if tokens_LD is not None:
            self._tokens.move_to_end(key)
        return tokens_LD

    def put(self, key: bytes, tokens_LD: Tensor) -> None:
        if key in self._tokens or tokens_LD.nbytes > self.max_bytes:
            return
        self._tokens[key] = tokens_LD
        self.num_bytes += tokens_LD.nbytes
        while self.num_bytes > self.max_bytes:
            _, dropped = self._tokens.popitem(last=False)
            self.num_bytes -= dropped.nbytes

    def clear(self) -> None:
        self._tokens.clear()
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
        # Copies: a view would keep the memory of its whole batch.
        found |= {name: tokens_LD.clone() for name, tokens_LD in zip(batch, tokens_SLD, strict=True)}
    for name in names:
        cache.put(name, found[name])
    return [found[key] for key, _ in wanted]
