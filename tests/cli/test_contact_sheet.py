"""Tiles on one sheet: a picture of one tile has no thumbnail, whatever the spec says of others."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

from cascadevl.cli.data_show import GAP_PX, contact_sheet


@pytest.mark.parametrize("thumbnail", [True, False])
def test_every_tile_stands_at_its_place_of_its_picture(thumbnail: bool) -> None:
    grids = [(1, 1), (2, 1)]
    places = [(0, 0), (0, 1), (1, 1), *([(2, 1)] if thumbnail else [])]
    shades = [40 * (number + 1) for number in range(len(places))]
    tiles = torch.tensor(shades, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, 8, 8)
    view: Any = SimpleNamespace(tiles=tiles, grids=grids, spec={"thumbnail": thumbnail, "tile_px": 8})
    sheet, side = contact_sheet(view), 8 + GAP_PX
    assert sheet.size == ((3 if thumbnail else 2) * side + GAP_PX, 2 * side + GAP_PX)
    for shade, (column, row) in zip(shades, places, strict=True):
        assert sheet.getpixel((column * side + GAP_PX, row * side + GAP_PX)) == (shade,) * 3
    assert sheet.getpixel((side + GAP_PX, GAP_PX)) == (255,) * 3, "beside the lone tile there is nothing"
