"""Random JPEG: as Pillow does it at the quality drawn, seeded, and only where asked."""

import io
import random

import numpy as np
import torch
from PIL import Image

from cascadevl.data.augment import QUALITIES, random_jpeg

TILES = torch.randint(256, (4, 3, 32, 48), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def test_each_tile_is_what_a_jpeg_of_the_quality_drawn_shows() -> None:
    got, draw = random_jpeg(TILES, [True] * 4, "7/1"), random.Random("7/1")
    for before, after in zip(TILES, got, strict=True):
        file = io.BytesIO()
        Image.fromarray(np.moveaxis(before.numpy(), 0, 2)).save(file, "JPEG", quality=draw.choice(range(75, 101)))
        assert np.array_equal(np.moveaxis(after.numpy(), 0, 2), np.array(Image.open(file)))


def test_qualities_are_those_of_the_paper() -> None:
    assert (min(QUALITIES), max(QUALITIES)) == (75, 100)


def test_frames_stay_as_they_are_and_so_does_the_original() -> None:
    before = TILES.clone()
    got = random_jpeg(TILES, [True, False, True, False], "a")
    assert torch.equal(TILES, before)
    assert [torch.equal(a, b) for a, b in zip(got, TILES, strict=True)] == [False, True, False, True]


def test_the_seed_is_all_that_is_drawn_from() -> None:
    one, same, other = (random_jpeg(TILES, [True] * 4, seed) for seed in ("a", "a", "b"))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_no_tile_is_no_work() -> None:
    assert random_jpeg(TILES[:0], [], "a").shape == (0, 3, 32, 48)
