"""The container: what is read back, and files that lie about themselves."""

import contextlib
import re
import struct
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.checkpoints.gguf_file import read_header
from cascadevl.core.errors import CheckpointError
from tests.checkpoints.gguf_files import F16, F32, Q8_0, Stored, gguf_bytes, setting, stored, text, write

METADATA: dict[str, Any] = {
    "general.architecture": "llama",
    "a number": 7,
    "a fraction": 1e-5,
    "yes": True,
    "words": ["one", "", "zwei ü"],
    "numbers": [3, -1],
}
MATRIX = torch.randn(6, 32, generator=torch.Generator().manual_seed(0))
TENSORS = {
    "plain": stored(MATRIX),
    "half": stored(MATRIX, F16),
    "eight": stored(MATRIX, Q8_0),
    "row": stored(MATRIX[0]),
}
GOOD = gguf_bytes(METADATA, TENSORS)


def _read(data: bytes, tmp_path: Path) -> Any:
    path = tmp_path / "model.gguf"
    path.write_bytes(data)
    return read_header(path)


def _refused(data: bytes, tmp_path: Path) -> str:
    with pytest.raises(CheckpointError) as caught:
        _read(data, tmp_path)
    assert "model.gguf" in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize("version", [2, 3])
@pytest.mark.parametrize("alignment", [32, 8, 256])
def test_settings_and_tensors_come_back(version: int, alignment: int, tmp_path: Path) -> None:
    path = write(tmp_path / "model.gguf", METADATA, TENSORS, version=version, alignment=alignment)
    file = read_header(path)
    found = {
        key: value if isinstance(value, str | list) or not hasattr(value, "tolist") else value.tolist()
        for key, value in file.metadata.items()
        if key != "general.alignment"
    }
    assert found == METADATA and found["yes"] is True
    for name, tolerance in (("plain", 0.0), ("half", 2e-3), ("eight", 2e-2)):
        matrix = torch.empty(6, 32)
        file.fill(matrix, name)
        assert torch.allclose(matrix, MATRIX, rtol=0, atol=tolerance), name
    row = torch.empty(32, dtype=torch.bfloat16)
    file.fill(row, "row")
    assert torch.equal(row, MATRIX[0].bfloat16())


def test_large_tensors_are_read_in_pieces(tmp_path: Path) -> None:
    matrix = torch.arange(600_000, dtype=torch.float32).view(3, 200_000)
    file = read_header(write(tmp_path / "model.gguf", {}, {"big": stored(matrix), "eight": stored(matrix / 1e3, Q8_0)}))
    for name, scale in (("big", 1.0), ("eight", 1e3)):
        target = torch.empty(3, 200_000)
        file.fill(target, name)
        assert torch.allclose(target * scale, matrix, rtol=0, atol=0 if scale == 1 else 3e3), name


@given(st.integers(0, len(GOOD) - 1))
def test_a_file_that_ends_early_is_refused(tmp_path_factory: Any, length: int) -> None:
    message = _refused(GOOD[:length], tmp_path_factory.mktemp("cut"))
    assert re.search("cut off|no GGUF file", message)


@given(st.integers(0, 500), st.integers(0, 255))
def test_a_damaged_header_is_refused_or_read_never_anything_else(tmp_path_factory: Any, at: int, byte: int) -> None:
    data = bytearray(GOOD)
    data[at] = byte
    with contextlib.suppress(CheckpointError):
        _read(bytes(data), tmp_path_factory.mktemp("damaged"))


def _head(num_tensors: int, num_settings: int, rest: bytes, version: int = 3) -> bytes:
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_settings) + rest + bytes(64)


def _entry(name: str, shape: tuple[int, ...], kind: int = F32, offset: int = 0) -> bytes:
    return text(name) + struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, kind, offset)


HUGE = 1 << 60


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"PK" + bytes(60), "does not begin with 'GGUF'"),
        (b"GGUF", "does not begin"),
        (_head(0, 0, b"", version=1), "its version is 1; versions 2 and 3 are read"),
        (b"GGUF" + struct.pack(">IQQ", 3, 0, 0), "(big-endian, it seems)"),
        (_head(HUGE, 0, b""), f"claims {HUGE} entries"),
        (_head(0, HUGE, b""), f"claims {HUGE} entries"),
        (_head(0, 1, struct.pack("<Q", HUGE)), f"a text of {HUGE} bytes"),
        (_head(0, 1, text("k") + struct.pack("<IIQ", 9, 8, HUGE)), f"claims {HUGE} entries"),
        (_head(0, 1, text("k") + struct.pack("<IIQ", 9, 10, HUGE)), f"claims {HUGE} entries"),
        (_head(0, 1, text("k") + struct.pack("<IIQ", 9, 9, 1)), "'k' is an array of the type 9"),
        (_head(0, 1, text("k") + struct.pack("<I", 99)), "'k' has the unknown type 99"),
        (_head(0, 1, struct.pack("<Q", 2) + b"\xff\xfe" + bytes(9)), "is not UTF-8"),
        (_head(0, 2, setting("k", 1) * 2), "the setting 'k' is there twice"),
        (_head(0, 1, setting("general.alignment", 12)), "general.alignment is 12; a power of two"),
        (_head(0, 1, setting("general.alignment", "x")), "general.alignment is 'x'"),
        (_head(1, 0, text("w") + struct.pack("<I", HUGE >> 32) + bytes(12)), "'w' has 268435456 dimensions"),
        (_head(1, 0, _entry("w", (HUGE, HUGE))), "cut off: 'w' should end at byte"),
        (_head(1, 0, _entry("w", (1,), offset=HUGE)), "cut off: 'w'"),
        (_head(1, 0, _entry("w", (1,), offset=5)), "offset 5 of 'w' is no multiple of the alignment 32"),
        (_head(2, 0, _entry("w", (1,)) * 2), "the tensor 'w' is there twice"),
        (_head(1, 0, _entry("w", (33,), Q8_0)), "rows of 'w' have 33 numbers, no multiple of 32 as Q8_0 needs"),
        (_head(1, 0, _entry("w", (256,), 10)), "'w' is stored as Q2_K, which is not read here. Readable: F32, F16"),
        (_head(1, 0, _entry("w", (256,), 77)), "'w' is stored as type 77"),
    ],
)
def test_files_that_lie_are_refused_before_anything_is_allocated(data: bytes, message: str, tmp_path: Path) -> None:
    assert message in _refused(data, tmp_path)


def test_numbers_that_are_none_are_refused(tmp_path: Path) -> None:
    nan = stored(torch.tensor([1.0, float("nan")]))
    large = Stored(F32, (2,), struct.pack("<2f", 1.0, 1e30))
    file = read_header(write(tmp_path / "model.gguf", {}, {"nan": nan, "large": large}))
    for name, dtype in (("nan", torch.float32), ("large", torch.float16)):
        with pytest.raises(CheckpointError, match=f"'{name}' .* holds what is no number in {dtype}"):
            file.fill(torch.empty(2, dtype=dtype), name)
    numbers = torch.empty(2)
    file.fill(numbers, "large")
    assert float(numbers[1]) == pytest.approx(1e30)


def test_a_file_that_shrinks_while_it_is_read_is_refused(tmp_path: Path) -> None:
    file = read_header(write(tmp_path / "model.gguf", {}, {"w": stored(MATRIX)}))
    file.path.write_bytes(file.path.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"model\.gguf ended while 'w' was being read"):
        file.fill(torch.empty(6, 32), "w")


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match=r"none\.gguf cannot be read"):
        read_header(tmp_path / "none.gguf")
