"""What holds for every family of the gym."""

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import cascadevl.gym
from cascadevl.core.messages import Text
from cascadevl.core.task import Sample
from cascadevl.gym import TASKS, assets, text
from cascadevl.gym.assets import Split
from cascadevl.gym.family import Family
from cascadevl.gym.page import GRIDS, TILE_PX

NUM = 100
KINDS = ("english", "first_names", "surnames", "products", "shop_names", "shop_kinds")
LISTED = {word.lower() for kind in KINDS for split in ("train", "test") for word in assets.words(split, kind)}
LISTED -= {name.lower() for month in text.MONTHS for name in (month, month[:3])} | {"am", "pm"}
every_family = pytest.mark.parametrize("family", TASKS)


@cache
def drawn(family: str, split: Split) -> list[Sample]:
    return list(TASKS[family](split=split).samples(NUM))


def pixels(sample: Sample) -> bytes:
    return b"".join(shown.image.tobytes() for shown in sample.shown)


def grid_of(width_px: int, height_px: int) -> tuple[int, int]:
    """The official choice of (columns, rows), written from its description."""
    best, least = (1, 1), float("inf")
    for columns, rows in sorted(GRIDS, key=lambda grid: grid[0] * grid[1]):
        apart = abs(width_px / height_px - columns / rows)
        if apart < least:
            best, least = (columns, rows), apart
        elif apart == least and width_px * height_px > 0.5 * TILE_PX**2 * columns * rows:
            best = (columns, rows)
    return best


def _families_in(folder: Path) -> Iterator[str]:
    for path in folder.glob("*.py"):
        for node in ast.parse(path.read_text("utf-8")).body:
            if isinstance(node, ast.ClassDef) and any(ast.unparse(base) == "Family" for base in node.bases):
                yield node.name


def test_the_table_names_every_family_of_the_folder() -> None:
    written = set(_families_in(Path(cascadevl.gym.__file__).parent))
    assert written == {task.__name__ for task in TASKS.values()}
    assert all(issubclass(task, Family) and task.name == family for family, task in TASKS.items())


@every_family
def test_a_sample_depends_on_nothing_but_settings_and_index(family: str) -> None:
    first, again = TASKS[family]().sample(7), list(TASKS[family]().samples(3, start=5))[2]
    assert pixels(first) == pixels(again)
    assert [shown.glyphs for shown in first.shown] == [shown.glyphs for shown in again.shown]
    assert (first.id, first.question, first.answer, first.more) == (
        again.id, again.question, again.answer, again.more,
    )  # fmt: skip
    others = TASKS[family](seed=1).sample(7), TASKS[family](split="test").sample(7), TASKS[family]().sample(8)
    assert len({pixels(sample) for sample in (first, *others)}) == 4


@every_family
def test_the_reference_scores_one_and_other_answers_less(family: str) -> None:
    task = TASKS[family]()
    for sample in drawn(family, "train"):
        assert sample.answer
        assert task.score(sample, sample.answer) == 1.0
        assert task.score(sample, f" {sample.answer}\n") == 1.0
        for wrong in ("", "I do not know", f"The answer is {sample.answer}x", "<box>[[0, 0, 1, 1]]</box>"):
            score = task.score(sample, wrong)
            # Paragraphs are scored by their characters, some of which stand in any answer.
            partly = (family == "locate" and "answer" in wrong) or (family == "paragraph" and score < 1.0)
            assert score == 0.0 or partly


@every_family
def test_the_pictures_come_before_the_question_in_their_order(family: str) -> None:
    sample = drawn(family, "train")[0]
    conversation = TASKS[family]().prompt(sample)
    *media, _ = conversation.turns[0].parts
    assert not any(isinstance(part, Text) for part in media)
    sources = [part.source for part in conversation.media]
    sources = list(sources[0]) if sample.is_video else sources
    assert len(sources) == len(sample.shown)
    assert all(source is shown.image for source, shown in zip(sources, sample.shown, strict=True))
    assert conversation.turns[-1].text == sample.question
    assert "{" not in sample.question or sample.family == "line"


@every_family
def test_there_are_ten_phrasings_of_each_question_and_two_are_held_out(family: str) -> None:
    for kind, ways in TASKS[family].phrasings.items():
        assert len({*ways.trained, *ways.held_out}) == len(ways.trained) + len(ways.held_out) >= 10, kind
        assert len(ways.held_out) >= 2, kind
    held_out = {way for ways in TASKS[family].phrasings.values() for way in ways.held_out}
    trained = {way for task in TASKS.values() for ways in task.phrasings.values() for way in ways.trained}
    assert not held_out & trained


def test_the_two_questions_of_the_readme_are_trained() -> None:
    assert "Read the text." in TASKS["line"].phrasings["read"].trained
    assert "What is the total?" in TASKS["keyvalue"].phrasings["total"].trained


@every_family
def test_half_of_the_test_questions_are_held_out_and_no_training_question_is(family: str) -> None:
    assert {sample.facts["phrasing"] for sample in drawn(family, "train")} == {"trained"}
    share = sum(sample.facts["phrasing"] == "held_out" for sample in drawn(family, "test")) / NUM
    assert 0.35 < share < 0.65


@every_family
def test_train_and_test_share_no_font_and_no_word(family: str) -> None:
    for split in ("train", "test"):
        for sample in drawn(family, split):
            assert sample.facts["font"] == "" or sample.facts["font"].startswith(f"{split}/")
            for word in sample.facts.get("words", ()):
                plain = word.strip(".!?:,").lower()
                if plain in LISTED:
                    assert assets.held_out(plain) == (split == "test"), word


@pytest.mark.parametrize("family", ["shapes", "locate", "several", "clips"])
def test_some_coloured_shapes_are_never_drawn_in_training(family: str) -> None:
    def held_out(sample: Sample) -> bool:
        return any(assets.held_out(" ".join(pair)) for pair in sample.facts.get("pairs", ()))

    assert not any(map(held_out, drawn(family, "train")))
    assert sum(map(held_out, drawn(family, "test"))) > 0.3 * NUM


@every_family
def test_every_character_lies_inside_the_picture_and_is_legible_after_tiling(family: str) -> None:
    for split in ("train", "test"):
        for sample in drawn(family, split):
            for image, glyphs in sample.shown:
                width, height = image.size
                columns, rows = grid_of(width, height)
                assert columns * rows <= (1 if sample.is_video else 6)
                for char, left, top, right, bottom in glyphs:
                    assert not char.isspace()
                    assert 0 <= left < right <= width and 0 <= top < bottom <= height, sample.id
                    assert (bottom - top) * rows * TILE_PX / height >= 12, sample.id


@every_family
def test_printed_characters_spell_what_can_be_read(family: str) -> None:
    for sample in drawn(family, "train"):
        if family in ("line", "paragraph"):
            assert "".join(glyph.char for glyph in sample.glyphs) == "".join(sample.answer.split())
        elif family == "keyvalue":
            assert "".join(sample.answer.split()) in "".join(glyph.char for glyph in sample.glyphs)
