"""Packs: nothing lost, nothing reordered, nothing over budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import ConfigError
from cascadevl.data.packing import pack
from cascadevl.preprocessing.processor import ModelInputs


def _inputs(num_tokens: int, num_tiles: int) -> ModelInputs:
    return ModelInputs(
        token_ids=torch.zeros(num_tokens, dtype=torch.int64),
        tiles=torch.zeros(num_tiles, 3, 1, 1, dtype=torch.uint8),
        grids=[],
        sizes=[],
        trained=torch.zeros(num_tokens, dtype=torch.bool),
        num_visual_tokens=0,
        spec_hash="",
    )


@given(st.lists(st.tuples(st.integers(1, 10), st.integers(0, 4)), max_size=25))
def test_packs_hold_everything_in_order_and_no_more_than_the_budget(sizes: list[tuple[int, int]]) -> None:
    samples = [(_inputs(*size), number) for number, size in enumerate(sizes)]
    packs = list(pack(iter(samples), max_tokens=12, max_tiles=5))
    assert [number for each in packs for _, number in each] == list(range(len(sizes)))
    used = [[sum(len(getattr(x, name)) for x, _ in each) for name in ("token_ids", "tiles")] for each in packs]
    assert all(tokens <= 12 and tiles <= 5 for tokens, tiles in used)
    for (tokens, tiles), following in zip(used, packs[1:], strict=False):
        first = following[0][0]
        assert tokens + len(first.token_ids) > 12 or tiles + len(first.tiles) > 5, "the next one would have fitted"


def test_a_pack_is_given_out_as_soon_as_it_is_full() -> None:
    """An endless stream is no reason to wait."""
    endless = iter(lambda: (_inputs(5, 1), None), ())
    packs = pack(endless, max_tokens=12, max_tiles=9)
    assert [len(next(packs)) for _ in range(3)] == [2, 2, 2]


@pytest.mark.parametrize(("tokens", "tiles"), [(13, 0), (1, 6)])
def test_a_sample_that_fits_no_pack_is_refused_with_all_numbers(tokens: int, tiles: int) -> None:
    with pytest.raises(ConfigError, match=rf"{tokens} tokens and {tiles} tiles exceeds .*\(12 tokens, 5 tiles\)"):
        list(pack([(_inputs(tokens, tiles), None)], max_tokens=12, max_tiles=5))
