"""`pil` is Pillow, whoever does the work. What `torch_uint8` does is in test_tiling.py."""

import functools
import hashlib
import logging
import os
import random
import shutil
import subprocess
import sys
import typing
from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cascadevl.core import native
from cascadevl.preprocessing import resize
from cascadevl.preprocessing.resize import KERNELS
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tiling import Tiling

ROOT = Path(__file__).parents[2]
SOURCE = Path(resize.__file__).with_suffix(".c")

needs_compiler = pytest.mark.skipif(not any(map(shutil.which, native.COMPILERS)), reason="no C compiler here")


def picture(width: int, height: int, seed: int = 0) -> Image.Image:
    """By turns noise; black and white, which overshoots most; and smooth light."""
    generator = np.random.default_rng(seed)
    noise = generator.integers(0, 256, (height, width, 3), dtype=np.uint8)
    if seed % 3 == 1:
        noise = (noise > 127).astype(np.uint8) * 255
    if seed % 3 == 2:
        rows, columns = np.mgrid[0:height, 0:width]
        noise = np.stack([columns * 255 // width, rows * 255 // height, (rows + columns) % 256], -1).astype(np.uint8)
    return Image.fromarray(noise)


def stretched(image: Image.Image, columns: int, rows: int, side: int) -> np.ndarray:
    # One tile more on each side, to see that nothing is written beyond.
    memory = np.full((rows * columns + 2, 3, side, side), 77, np.uint8)
    KERNELS["pil"](image)(memory[1:-1].reshape(rows, columns, 3, side, side))
    assert (memory[[0, -1]] == 77).all()
    return memory[1:-1]


def by_pillow(image: Image.Image, columns: int, rows: int, side: int) -> np.ndarray:
    canvas = np.asarray(image.resize((columns * side, rows * side), Image.Resampling.BICUBIC))
    corners = [(row * side, column * side) for row in range(rows) for column in range(columns)]
    return np.stack([canvas[y : y + side, x : x + side] for y, x in corners]).transpose(0, 3, 1, 2)


def assert_equal(width: int, height: int, columns: int, rows: int, side: int, seed: int = 0) -> None:
    image = picture(width, height, seed)
    wrong = (stretched(image, columns, rows, side) != by_pillow(image, columns, rows, side)).sum()
    assert wrong == 0, f"{width}×{height} to {columns}×{rows} tiles of {side}, seed {seed}: {wrong} values differ"


@needs_compiler
def test_c_does_the_work_where_there_is_a_compiler():
    # Else all that follows would compare Pillow with itself.
    stretch = KERNELS["pil"](picture(5, 4))
    switched_off = os.environ.get("CASCADEVL_NATIVE") == "0"
    expected = resize._stretch_by_pillow if switched_off else resize._stretch_natively
    assert isinstance(stretch, functools.partial) and stretch.func is expected


def test_random_sizes():
    generator = random.Random(0)
    for seed in range(400):
        width, height = (int(2 ** generator.uniform(0, 9.5)) for _ in range(2))
        columns, rows, side = generator.randint(1, 4), generator.randint(1, 4), int(2 ** generator.uniform(0, 7))
        assert_equal(width, height, columns, rows, side, seed)


@settings(max_examples=200)
@given(
    width=st.integers(1, 400),
    height=st.integers(1, 400),
    columns=st.integers(1, 4),
    rows=st.integers(1, 4),
    side=st.integers(1, 70),
    seed=st.integers(0, 2),
)
def test_any_size(width, height, columns, rows, side, seed):
    assert_equal(width, height, columns, rows, side, seed)


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (21, 22), (22, 21), (15, 17), (64, 1), (1, 65)])
@pytest.mark.parametrize("tiles", [(1, 1, 1), (1, 1, 64), (3, 2, 7), (12, 1, 16), (1, 12, 16)])
def test_small_pictures(size, tiles):
    for seed in range(3):
        assert_equal(*size, *tiles, seed=seed)


@pytest.mark.parametrize("other", [1, 47, 48, 49, 300])
def test_an_axis_that_keeps_its_length_is_not_filtered(other):
    assert_equal(48, other, 3, 2, 16, seed=1)
    assert_equal(other, 48, 2, 3, 16, seed=1)


@pytest.mark.parametrize("off", [-2, -1, 0, 1, 2])
@pytest.mark.parametrize("narrower", [-40, -1, 0, 1, 30])
def test_the_height_goes_first_where_pillow_lets_it(narrower, off):
    # Black and white, on which the two orders are far apart, around height − H = 2 (width − W).
    assert_equal(64 + narrower, max(1, 64 + 2 * narrower + off), 2, 2, 32, seed=1)
    assert_equal(64 + narrower, 64 + off, 2, 2, 32, seed=1)


@pytest.mark.parametrize(
    ("size", "tiles"),
    [
        ((20_000, 3), (1, 1, 448)),
        ((3, 20_000), (1, 1, 448)),
        ((65_535, 1), (12, 1, 28)),
        ((1, 65_535), (1, 12, 28)),
        ((3000, 2000), (1, 1, 16)),
        ((10, 1000), (1, 12, 112)),
        ((30, 20), (3, 2, 448)),
        ((1920, 1080), (4, 2, 448)),
        ((1080, 1920), (2, 4, 448)),
        ((1080, 1920), (1, 1, 448)),
    ],
)
def test_extreme_and_usual_sizes(size, tiles):
    assert_equal(*size, *tiles, seed=1)


def test_very_long_pictures_are_pillows():
    image = picture(resize.NATIVE_MAX_SIDE_PX + 1, 1)
    stretch = KERNELS["pil"](image)
    assert isinstance(stretch, functools.partial) and stretch.func is resize._stretch_by_pillow
    assert np.array_equal(stretched(image, 4, 1, 16), by_pillow(image, 4, 1, 16))


def test_threads_do_not_disturb_each_other():
    image = picture(300, 500)
    expected = by_pillow(image, 3, 2, 64)
    with ThreadPoolExecutor(4) as pool:
        for tiles in pool.map(lambda _: stretched(image, 3, 2, 64), range(16)):
            assert np.array_equal(tiles, expected)


def test_short_memory_is_an_error():
    with pytest.raises(MemoryError, match="5×4 pixels to 1×1 tiles of 8"):
        resize._stretch_natively(lambda *_: 0, np.asarray(picture(5, 4)), np.empty((1, 1, 3, 8, 8), np.uint8))


def digest_of_tiles() -> str:
    digest = hashlib.sha256()
    for size in ((1, 1), (500, 300), (90, 800), (224, 448), (7, 1000)):
        digest.update(Tiling(tile_px=112)(picture(*size, seed=1))[1].numpy().tobytes())
    return digest.hexdigest()


@needs_compiler
def test_switched_off_gives_the_same_tiles():
    code = f"""
import runpy
from cascadevl.preprocessing import resize
test = runpy.run_path({__file__!r})
print(resize.native_resize(), test["digest_of_tiles"]())
"""
    environment = os.environ | {"CASCADEVL_NATIVE": "0"}
    command = [sys.executable, "-W", "ignore", "-c", code]
    ran = subprocess.run(command, cwd=ROOT, env=environment, check=True, capture_output=True, text=True)
    assert ran.stdout.split() == ["None", digest_of_tiles()]


@needs_compiler
@pytest.mark.parametrize("change", [("height_first = height", "height_first = 0 && height"), ("a = -0.5", "a = -0.75")])
def test_code_that_is_not_pillows_is_not_used(tmp_path, monkeypatch, caplog, change):
    caplog.set_level(logging.WARNING, logger="cascadevl")
    monkeypatch.setenv("CASCADEVL_CACHE", str(tmp_path))
    monkeypatch.delenv("CASCADEVL_NATIVE", raising=False)
    other = tmp_path / "resize.c"
    other.write_text(SOURCE.read_text().replace(*change))
    assert other.read_text() != SOURCE.read_text()
    load = native.load
    monkeypatch.setattr(native, "load", lambda source: load(other))
    assert resize.native_resize.__wrapped__() is None
    (record,) = caplog.records
    assert "differ: Pillow resizes" in record.getMessage()


def test_the_table_names_what_specs_and_tilings_allow():
    for cls in (Spec, Tiling):
        (kind,) = (field.type for field in fields(cls) if field.name == "resize")
        assert typing.get_args(kind) == tuple(KERNELS)
