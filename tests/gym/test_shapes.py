import random
from collections import Counter

from cascadevl.core.task import Glyph
from cascadevl.gym.glyph_targets import ALPHABET, glyph_targets
from cascadevl.gym.scene import COLOURS, MARKS, SHAPES, Thing, blank_page, mixed, pairs, scatter
from cascadevl.gym.shapes import Shapes


def test_yes_and_no_are_balanced() -> None:
    asked = [s.answer for s in Shapes().samples(700) if s.facts["kind"] == "relation"]
    assert len(asked) > 120
    assert 0.4 < Counter(asked)["yes"] / len(asked) < 0.6


def test_counts_are_spread_from_none_to_six() -> None:
    counts = Counter(s.answer for s in Shapes().samples(400) if s.facts["kind"] == "count")
    assert set(counts) == set("0123456")
    assert max(counts.values()) < 0.35 * sum(counts.values())


def test_counts_agree_with_what_was_drawn() -> None:
    checked = 0
    for sample in Shapes().samples(300):
        words = sample.question.lower().replace("?", "").replace(".", "").split()
        if sample.facts["kind"] != "count" or "shapes" not in words:
            continue
        named = [word for word in words if word in COLOURS]
        assert int(sample.answer) == sum(not named or colour in named for colour, _ in sample.facts["pairs"])
        checked += 1
    assert checked > 20


def test_colours_and_shapes_that_are_answers_are_in_the_picture() -> None:
    for sample in Shapes(split="test").samples(200):
        if sample.facts["kind"] in ("colour", "shape"):
            assert sample.answer in {name for pair in sample.facts["pairs"] for name in pair}


def test_shapes_do_not_overlap_and_names_are_unique() -> None:
    rng = random.Random(0)
    for _ in range(60):
        page = blank_page(rng)
        things = scatter(rng, page, mixed(rng, "test", 5))
        names = [thing.called(rng, [other for other in things if other is not thing]) for thing in things]
        assert len(set(names)) == len(things)
        assert all(_apart(one, other) for one in things for other in things if one is not other)
        assert all(thing.x - thing.radius > 0 and thing.x + thing.radius < page.width for thing in things)


def _apart(one: Thing, other: Thing) -> bool:
    return (one.x - other.x) ** 2 + (one.y - other.y) ** 2 > (one.radius + other.radius) ** 2


def test_the_tower_is_asked_for_colour_and_kind_of_a_shape_in_turn() -> None:
    mark = MARKS["red", "star"]
    targets = glyph_targets([Glyph(mark, 0, 0, 56, 112)], (112, 112), (1, 1), 112, 14, False)
    red = len(ALPHABET) + 1 + list(COLOURS).index("red")
    star = len(ALPHABET) + 1 + len(COLOURS) + SHAPES.index("star")
    tile = targets[0].reshape(8, 8, 4)
    assert (tile[:, :4] == [red, star, red, star]).all() and (tile[:, 4:] == 0).all()


def test_which_point_is_asked_for_the_colour_does_not_depend_on_where_the_shape_begins() -> None:
    red, star = glyph_targets([Glyph(MARKS["red", "star"], 0, 0, 56, 112)], (112, 112), (1, 1), 112, 14, False)[
        0, 0, :2
    ]
    later = glyph_targets([Glyph(MARKS["red", "star"], 3.5, 0, 56, 112)], (112, 112), (1, 1), 112, 14, False)
    assert later[0, 0].tolist() == [0, star, red, star] and later[0, 1].tolist() == [red, star, red, star]


def test_test_pictures_hold_one_pair_that_is_never_drawn_in_training_and_trained_ones_around_it() -> None:
    held_out = set(pairs("test"))
    for seed in range(20):
        first, *others = mixed(random.Random(seed), "test", 4)
        assert first in held_out and held_out.isdisjoint(others)
        assert held_out.isdisjoint(mixed(random.Random(seed), "train", 4))


def test_the_things_asked_for_are_said() -> None:
    for sample in Shapes().samples(40):
        kind = sample.facts["kind"]
        if kind == "count":
            assert len(sample.about) == int(sample.answer)
        elif kind == "colour":
            assert sample.about[0].char in {MARKS[sample.answer, shape] for shape in SHAPES}
        assert set(sample.about) <= set(sample.glyphs)
