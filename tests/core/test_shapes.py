"""Integers that lead from pictures to tokens, as the papers give them."""

import pytest

from cascadevl.core.shapes import num_tiles, visual_tokens_per_tile


@pytest.mark.parametrize(("sizes", "tokens"), [((448, 14, 0.5), 256), ((448, 14, 0.25), 64), ((112, 14, 0.5), 16)])
def test_tokens_of_a_tile(sizes: tuple[int, int, float], tokens: int) -> None:
    assert visual_tokens_per_tile(*sizes) == tokens


@pytest.mark.parametrize(
    ("grid", "thumbnail", "tiles"), [((1, 1), True, 1), ((4, 3), True, 13), ((4, 3), False, 12), ((1, 2), True, 3)]
)
def test_a_thumbnail_follows_more_than_one_tile(grid: tuple[int, int], thumbnail: bool, tiles: int) -> None:
    assert num_tiles(grid, thumbnail) == tiles
