"""Packs: nothing lost, nothing reordered, nothing over budget."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from cascadevl.core.errors import ConfigError
from cascadevl.core.messages import Conversation, Image, Text, Turn
from cascadevl.data.packing import Packer, pack, shortened
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


SIZES = st.lists(st.tuples(st.integers(1, 12), st.integers(0, 5)), max_size=60)


@given(SIZES, st.integers(1, 6))
def test_best_fit_loses_nothing_and_keeps_to_budget_and_buffer(sizes: list[tuple[int, int]], max_open: int) -> None:
    packer: Packer[int] = Packer(12, 5, max_open)
    given_out = []
    for number, size in enumerate(sizes):
        ready = packer.add(number, *size)
        given_out += [ready] if ready else []
        assert len(packer.packs) <= max_open
    while rest := packer.take():
        given_out.append(rest)
    assert sorted(number for each in given_out for number in each.items) == list(range(len(sizes)))
    for each in given_out:
        tokens, tiles = (sum(sizes[number][axis] for number in each.items) for axis in (0, 1))
        assert (each.num_tokens, each.num_tiles) == (tokens, tiles)
        assert tokens <= 12 and tiles <= 5


def test_a_sample_goes_where_it_leaves_the_least_room() -> None:
    packer: Packer[str] = Packer(10, 100)
    for name, size in (("a", 7), ("b", 5), ("c", 4), ("d", 3)):
        ready = packer.add(name, size, 0)
    assert ready is not None and ready.items == ["a", "d"], "3 fill up 7, and full packs go at once"
    assert [each.items for each in packer.packs] == [["b", "c"]], "4 beside 5, not beside 7, where it has no room"


def test_tiles_bind_as_tokens_do() -> None:
    packer: Packer[str] = Packer(10, 4)
    assert packer.add("a", 1, 3) is None
    assert packer.add("b", 1, 2) is None
    assert [each.items for each in packer.packs] == [["a"], ["b"]]
    full = packer.add("c", 1, 1)
    assert full is not None and full.items == ["a", "c"], "full of tiles, though not of tokens"


def test_of_too_many_open_packs_the_fullest_goes() -> None:
    packer: Packer[int] = Packer(10, 100, max_open=2)
    assert packer.add(0, 6, 0) is None
    assert packer.add(1, 8, 0) is None
    fullest = packer.add(2, 7, 0)
    assert fullest is not None and fullest.items == [1]


def _talk(*roles: str) -> Conversation:
    return Conversation(tuple(Turn(role, (Text(f"{role}{n}"),)) for n, role in enumerate(roles)))


def test_shortening_drops_the_last_question_and_answer_and_keeps_one() -> None:
    whole = _talk("system", "user", "assistant", "user", "assistant")
    assert shortened(whole) == Conversation(whole.turns[:3])
    assert shortened(Conversation(whole.turns[:3])) is None
    assert shortened(_talk("user")) is None


def test_shortening_a_document_drops_its_last_part() -> None:
    parts = (Text("a"), Image("b"), Text("c"))
    found = shortened(Conversation((Turn("assistant", parts),)))
    assert found == Conversation((Turn("assistant", parts[:2]),))
    assert shortened(Conversation((Turn("assistant", parts[:1]),))) is None
