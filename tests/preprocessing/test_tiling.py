import random
from dataclasses import FrozenInstanceError, replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.core.shapes import Grid, num_tiles
from cascadevl.preprocessing.tiling import Tiling


def noise(width_px: int, height_px: int, seed: int = 0) -> Image.Image:
    """The hardest picture for a resampler: neighbours have nothing in common."""
    generator = np.random.default_rng(seed)
    return Image.fromarray(generator.integers(0, 256, (height_px, width_px, 3), dtype=np.uint8))


# ---- the grid

# width × height, then the grid with at most 12 and with at most 6 tiles; worked out from the rule by hand.
GRIDS: list[tuple[str, Grid, Grid]] = [
    ("448×448 224×224 100×100 633×633", (1, 1), (1, 1)),
    ("634×634 950×950", (2, 2), (2, 2)),
    ("951×951 1000×1000 2000×2000", (3, 3), (2, 2)),
    ("800×1300", (2, 3), (2, 3)),
    ("1300×800", (3, 2), (3, 2)),
    ("1920×1080 1280×720 3840×2160", (4, 2), (2, 1)),
    ("1080×1920", (2, 4), (1, 2)),
    ("640×480 1024×768 1792×1344 1250×1000", (4, 3), (3, 2)),
    ("1200×1500", (3, 4), (2, 3)),
    ("300×600 448×896 600×1200", (1, 2), (1, 2)),
    ("634×1268", (2, 4), (1, 2)),
    ("896×448", (2, 1), (2, 1)),
    ("900×600 1344×896", (3, 2), (3, 2)),
    ("2480×3508 595×842", (2, 3), (2, 3)),
    ("4000×500", (8, 1), (6, 1)),
    ("500×4000", (1, 8), (1, 6)),
    ("1000×10 10000×1", (12, 1), (6, 1)),
    ("10×1000 1×10000", (1, 12), (1, 6)),
    ("1750×1000", (4, 2), (3, 2)),
    ("700×400", (2, 1), (2, 1)),
    ("1×1", (1, 1), (1, 1)),
]


@pytest.mark.parametrize(("sizes", "at_most_12", "at_most_6"), GRIDS)
def test_known_grids(sizes: str, at_most_12: Grid, at_most_6: Grid) -> None:
    for size in sizes.split():
        width, height = map(int, size.split("×"))
        assert Tiling(max_tiles=12).grid(width, height) == at_most_12, size
        assert Tiling(max_tiles=6).grid(width, height) == at_most_6, size


def test_known_grids_of_other_limits() -> None:
    assert Tiling(max_tiles=3).grid(1920, 1080) == (2, 1)
    assert Tiling(max_tiles=3).grid(800, 1300) == (1, 2)
    assert Tiling(max_tiles=2).grid(640, 480) == (1, 1)
    assert Tiling(max_tiles=1).grid(10000, 1) == (1, 1)
    # Exactly four tiles, 1000 / 1600 = 0.625, as far from 1:4 as from 2:2, and the area justifies the second.
    assert Tiling(min_tiles=4, max_tiles=4).grid(1000, 1600) == (2, 2)


def published_ratios(least: int, most: int) -> list[Grid]:
    every = [(i, j) for i in range(1, most + 1) for j in range(1, most + 1)]
    return [ratio for ratio in every if least <= ratio[0] * ratio[1] <= most]


def published_rule(width: int, height: int, tile_px: int, ratios: list[Grid]) -> Grid:
    """`find_closest_aspect_ratio` of the released code, written down again without looking at ours."""
    aspect_ratio, area = width / height, width * height
    best_difference, best_ratio = float("inf"), (1, 1)
    for ratio in sorted(ratios, key=lambda ratio: ratio[0] * ratio[1]):
        difference = abs(aspect_ratio - ratio[0] / ratio[1])
        if difference < best_difference:
            best_difference, best_ratio = difference, ratio
        elif difference == best_difference and area > 0.5 * tile_px * tile_px * ratio[0] * ratio[1]:
            best_ratio = ratio
    return best_ratio


def many_sizes(count: int) -> list[tuple[int, int]]:
    """Random sizes; multiples of a tile and one pixel beside them; and exact ties between two aspects."""
    generator = random.Random(0)
    sizes = [(generator.randint(1, 4000), generator.randint(1, 4000)) for _ in range(count)]
    for first in range(1, 13):
        for second in range(1, 13):
            sizes += [(448 * first + d, 448 * second + e) for d in (-1, 0) for e in (0, 1)]
            # In the middle between the aspects first : 1 and first : second, small and large.
            sizes += [(first * (second + 1) * scale, 2 * second * scale) for scale in (1, 7, 50, 90)]
    return sizes


@pytest.mark.parametrize(
    ("least", "most", "count"),
    [
        (1, 12, 5000),
        (1, 6, 2000),
        (1, 1, 9),
        (1, 2, 300),
        (1, 24, 500),
        (1, 40, 100),
        (2, 6, 500),
        (5, 9, 500),
    ],
)
def test_grid_equals_the_published_rule(least: int, most: int, count: int) -> None:
    # No outcome depends on the order inside equal products, so it is shuffled for every size.
    tiling, ratios, shuffle = (
        Tiling(min_tiles=least, max_tiles=most),
        published_ratios(least, most),
        random.Random(1),
    )
    for width, height in many_sizes(count):
        shuffle.shuffle(ratios)
        assert tiling.grid(width, height) == published_rule(width, height, 448, ratios), (width, height)


def test_the_area_rule_depends_on_the_side_of_a_tile() -> None:
    assert Tiling(tile_px=448).grid(448, 448) == (1, 1)
    assert Tiling(tile_px=224).grid(448, 448) == (2, 2)
    for width, height in many_sizes(300):
        assert Tiling(tile_px=112).grid(width, height) == published_rule(width, height, 112, published_ratios(1, 12))


# ---- the tiles


def reference(image: Image.Image, grid: Grid, tile_px: int, thumbnail: bool) -> np.ndarray:
    """Resize, crop tile by tile, append the thumbnail: `dynamic_preprocess` of the released code."""
    columns, rows = grid
    resized = image.resize((columns * tile_px, rows * tile_px))
    tiles = []
    for i in range(columns * rows):
        left, top = i % columns * tile_px, i // columns * tile_px
        tiles.append(resized.crop((left, top, left + tile_px, top + tile_px)))
    if thumbnail and len(tiles) != 1:
        tiles.append(image.resize((tile_px, tile_px)))
    return np.stack([np.asarray(tile).transpose(2, 0, 1) for tile in tiles])


SIZES = [
    (640, 480),
    (300, 600),
    (448, 448),
    (896, 448),
    (100, 100),
    (1001, 333),
    (1, 1),
    (1, 3000),
    (3000, 1),
]


@pytest.mark.parametrize("thumbnail", [True, False])
@pytest.mark.parametrize("size", SIZES)
def test_pil_tiles_equal_plain_pillow(size: tuple[int, int], thumbnail: bool) -> None:
    image, tiling = noise(*size), Tiling(tile_px=112, thumbnail=thumbnail)
    grid, tiles_SCYX = tiling(image)
    assert grid == tiling.grid(*size)
    assert np.array_equal(tiles_SCYX.numpy(), reference(image, grid, 112, thumbnail))


@pytest.mark.parametrize("size", SIZES)
def test_torch_tiles_are_within_two_levels_of_pillow(size: tuple[int, int]) -> None:
    image = noise(*size)
    grid, tiles_SCYX = Tiling(tile_px=112, resize="torch_uint8")(image)
    apart = np.abs(tiles_SCYX.numpy().astype(int) - reference(image, grid, 112, True))
    assert apart.max() <= 2
    assert (apart > 0).mean() < 0.02


@pytest.mark.parametrize("resize", ["pil", "torch_uint8"])
def test_a_picture_of_the_right_size_is_only_cut(resize: Any) -> None:
    # Each pixel says where it comes from, in tiles of 2×2: (column, row, 0).
    rows, columns = np.mgrid[0:4, 0:6]
    image = Image.fromarray(np.stack([columns, rows, 0 * rows], axis=-1).astype(np.uint8))
    tiling = Tiling(tile_px=2, min_tiles=6, max_tiles=6, thumbnail=False, resize=resize)
    grid, tiles_SCYX = tiling(image)
    assert grid == (3, 2)
    assert tiles_SCYX[:, 0, 0, 0].tolist() == [0, 2, 4, 0, 2, 4]
    assert tiles_SCYX[:, 1, 0, 0].tolist() == [0, 0, 0, 2, 2, 2]
    assert tiles_SCYX[4, :2].tolist() == [[[2, 3], [2, 3]], [[2, 2], [3, 3]]]


@pytest.mark.parametrize("resize", ["pil", "torch_uint8"])
def test_the_picture_and_earlier_tiles_stay_unchanged(resize: Any) -> None:
    tiling = Tiling(tile_px=32, resize=resize)
    for size in ((64, 64), (32, 32), (50, 20)):
        image = noise(*size)
        before = image.tobytes()
        _, tiles_SCYX = tiling(image)
        tiles_SCYX.zero_()
        assert image.tobytes() == before
        _, again_SCYX = tiling(image)
        assert again_SCYX.any() and not tiles_SCYX.any()


@settings(max_examples=60, deadline=None)
@given(
    width=st.integers(1, 3000),
    height=st.integers(1, 3000),
    max_tiles=st.integers(1, 24),
    thumbnail=st.booleans(),
    resize=st.sampled_from(["pil", "torch_uint8"]),
)
def test_shapes_follow_from_the_grid(width: int, height: int, max_tiles: int, thumbnail: bool, resize: Any) -> None:
    tiling = Tiling(tile_px=28, max_tiles=max_tiles, thumbnail=thumbnail, resize=resize)
    grid, tiles_SCYX = tiling(Image.new("RGB", (width, height), (1, 2, 3)))
    assert 1 <= grid[0] * grid[1] <= max_tiles
    assert tiles_SCYX.shape == (num_tiles(grid, thumbnail), 3, 28, 28)
    assert tiles_SCYX.dtype == torch.uint8 and tiles_SCYX.is_contiguous()
    assert (tiles_SCYX == torch.tensor([1, 2, 3]).view(1, 3, 1, 1)).all()


# ---- against transformers, the oracle

IMAGENET = {"image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225]}


def oracle(**settings: Any) -> Any:
    """The PIL processor of InternVL, with the settings of the released `preprocessor_config.json`."""
    module = pytest.importorskip(
        "transformers.models.got_ocr2.image_processing_pil_got_ocr2", reason="transformers is not installed"
    )
    size = {"height": 448, "width": 448}
    return module.GotOcr2ImageProcessorPil(size=size, crop_to_patches=True, **IMAGENET, **settings)


def test_pixels_equal_transformers() -> None:
    generator = random.Random(3)
    sizes = [(generator.randint(20, 1200), generator.randint(20, 1200)) for _ in range(11)]
    raw = oracle(do_rescale=False, do_normalize=False)
    for number, size in enumerate([*sizes, (1250, 1000)]):
        image = noise(*size, seed=number)
        most = 12 if number % 2 else 6
        _, tiles_SCYX = Tiling(max_tiles=most)(image)
        expected = raw(image, max_patches=most, return_tensors="pt")["pixel_values"]
        assert torch.equal(tiles_SCYX, expected.to(torch.uint8)), size


def test_normalised_pixels_equal_transformers() -> None:
    image = noise(700, 500)
    _, tiles_SCYX = Tiling(max_tiles=2)(image)
    mean, std = (torch.tensor(IMAGENET[key]).view(3, 1, 1) for key in ("image_mean", "image_std"))
    expected = oracle()(image, max_patches=2, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close((tiles_SCYX / 255 - mean) / std, expected, rtol=0, atol=1e-5)


def test_grids_equal_transformers() -> None:
    module = pytest.importorskip(
        "transformers.models.got_ocr2.image_processing_pil_got_ocr2", reason="transformers is not installed"
    )
    for least, most in ((1, 12), (1, 6), (4, 4), (3, 10)):
        tiling = Tiling(min_tiles=least, max_tiles=most)
        for width, height in many_sizes(1000):
            expected = module.get_optimal_tiled_canvas((height, width), (448, 448), least, most)
            assert tiling.grid(width, height) == expected, (width, height, least, most)


# ---- what is refused


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"tile_px": 0}, "tile_px is 0"),
        ({"min_tiles": 0}, "min_tiles is 0"),
        ({"min_tiles": 13}, "min_tiles is 13 and max_tiles 12"),
        ({"max_tiles": 0}, "max_tiles 0"),
        ({"resize": "bilinear"}, "resize is 'bilinear': expected one of pil, torch_uint8"),
    ],
)
def test_settings_that_contradict_each_other(wrong: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Tiling(**wrong)
    with pytest.raises(ConfigError, match=message):
        replace(Tiling(), **wrong)


def test_a_tiling_is_frozen_and_names_its_defaults() -> None:
    assert Tiling() == Tiling(tile_px=448, min_tiles=1, max_tiles=12, thumbnail=True, resize="pil")
    with pytest.raises(FrozenInstanceError):
        Tiling().max_tiles = 3  # type: ignore[misc]


def test_a_picture_without_pixels_has_no_grid() -> None:
    with pytest.raises(MediaError, match="0×5 pixels: expected at least 1×1"):
        Tiling().grid(0, 5)
