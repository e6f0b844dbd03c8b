"""Every block format against a dequantiser that walks through one block as the C reference does."""

import struct

import numpy as np
import pytest
import torch

from cascadevl.ops.gguf_blocks import FORMATS, OTHER_NAMES, dequantise

BY_NAME = {format.name: format for format in FORMATS.values()}


def _half(block: bytes, at: int) -> np.float32:
    return np.float32(struct.unpack_from("<e", block, at)[0])


def _signed(byte: int) -> int:
    return byte - 256 if byte > 127 else byte


def q4_0(block: bytes) -> list:
    low, high = [q & 15 for q in block[2:]], [q >> 4 for q in block[2:]]
    return [_half(block, 0) * np.float32(q - 8) for q in low + high]


def q4_1(block: bytes) -> list:
    low, high = [q & 15 for q in block[4:]], [q >> 4 for q in block[4:]]
    return [_half(block, 0) * np.float32(q) + _half(block, 2) for q in low + high]


def _five(high: bytes, low: bytes) -> list[int]:
    bits = int.from_bytes(high, "little")
    four = [q & 15 for q in low] + [q >> 4 for q in low]
    return [q | (bits >> j & 1) << 4 for j, q in enumerate(four)]


def q5_0(block: bytes) -> list:
    return [_half(block, 0) * np.float32(q - 16) for q in _five(block[2:6], block[6:])]


def q5_1(block: bytes) -> list:
    return [_half(block, 0) * np.float32(q) + _half(block, 2) for q in _five(block[4:8], block[8:])]


def q8_0(block: bytes) -> list:
    return [_half(block, 0) * np.float32(_signed(q)) for q in block[2:]]


def _six_bits(packed: bytes, j: int) -> tuple[int, int]:
    """`get_scale_min_k4` of ggml-quants.c."""
    if j < 4:
        return packed[j] & 63, packed[j + 4] & 63
    return packed[j + 4] & 15 | packed[j - 4] >> 6 << 4, packed[j + 4] >> 4 | packed[j] >> 6 << 4


def _k(block: bytes, numbers: list[int]) -> list:
    values = []
    for w, q in enumerate(numbers):
        scale, offset = _six_bits(block[4:16], w // 32)
        values.append(_half(block, 0) * np.float32(scale) * np.float32(q) - _half(block, 2) * np.float32(offset))
    return values


def q4_k(block: bytes) -> list:
    return _k(block, [block[16 + w // 64 * 32 + w % 32] >> (w // 32 % 2 * 4) & 15 for w in range(256)])


def q5_k(block: bytes) -> list:
    four = [block[48 + w // 64 * 32 + w % 32] >> (w // 32 % 2 * 4) & 15 for w in range(256)]
    return _k(block, [q | (block[16 + w % 32] >> w // 32 & 1) << 4 for w, q in enumerate(four)])


def q6_k(block: bytes) -> list:
    values = []
    for w in range(256):
        half, inside = divmod(w, 128)
        quarter, i = divmod(inside, 32)
        low = block[half * 64 + quarter % 2 * 32 + i] >> (quarter // 2 * 4) & 15
        high = block[128 + half * 32 + i] >> (2 * quarter) & 3
        scale = np.float32(_signed(block[192 + w // 16]))
        values.append(_half(block, 208) * scale * np.float32((low | high << 4) - 32))
    return values


SCALAR = {walk.__name__.upper(): walk for walk in (q4_0, q4_1, q5_0, q5_1, q8_0, q4_k, q5_k, q6_k)}
HALVES = {"Q6_K": (208,), "Q4_0": (0,), "Q5_0": (0,), "Q8_0": (0,)}
"""Where the fp16 numbers of a block are; at 0 and 2 if nothing is said."""


def _blocks(name: str, num: int) -> np.ndarray:
    """Random bytes, but for the scales, which are numbers."""
    generator = np.random.default_rng(0)
    raw = generator.integers(0, 256, (num, BY_NAME[name].num_bytes), dtype=np.uint8)
    for at in HALVES.get(name, (0, 2)):
        raw[:, at : at + 2] = generator.normal(0, 0.1, (num, 1)).astype(np.float16).view(np.uint8)
    return raw


@pytest.mark.parametrize("name", SCALAR)
def test_blocks_become_the_numbers_of_the_reference_bit_for_bit(name: str) -> None:
    raw = _blocks(name, 5)
    expected = np.array([SCALAR[name](block.tobytes()) for block in raw], dtype=np.float32).flatten()
    found = dequantise(torch.from_numpy(raw).flatten(), BY_NAME[name])
    assert found.dtype == torch.float32 and len(found) == 5 * BY_NAME[name].num_weights
    assert np.array_equal(found.numpy(), expected)


@pytest.mark.parametrize("name", ["F32", "F16", "BF16"])
def test_plain_numbers_come_back(name: str) -> None:
    dtype = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}[name]
    numbers = torch.tensor([0.0, -1.5, 3.1416, 1e-4]).to(dtype)
    assert torch.equal(dequantise(numbers.view(torch.uint8), BY_NAME[name]), numbers.float())


def test_every_block_format_has_its_scalar_twin() -> None:
    assert BY_NAME.keys() == SCALAR.keys() | {"F32", "F16", "BF16"}
    assert not FORMATS.keys() & OTHER_NAMES.keys()
    assert OTHER_NAMES[16] == "IQ2_XXS" and OTHER_NAMES[23] == "IQ4_XS" and OTHER_NAMES[29] == "IQ1_M"
