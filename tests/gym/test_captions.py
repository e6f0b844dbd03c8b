from collections import Counter
from pathlib import Path

from PIL import ImageChops

from cascadevl.gym import assets
from cascadevl.gym.captions import HELD_OUT, PHRASINGS, STUDIOS, Captions, drawing, names, sets

PICTURES = Path(assets.FOLDER) / "pictures"
WHOLE = [STUDIOS[studio][0] for studio in HELD_OUT]


def test_every_sheet_has_a_licence_and_all_of_them_are_small() -> None:
    origins = (PICTURES / "README.md").read_text("utf-8").splitlines()
    for drawings in (name for theirs in STUDIOS.values() for name in theirs):
        row = next(line for line in origins if f"| {drawings}.webp |" in line)
        assert any(licence in row for licence in ("Apache-2.0", "MIT", "CC-BY-4.0"))
    assert {"Apache-2.0.txt", "MIT.txt", "Unicode-3.0.txt"} <= {path.name for path in PICTURES.iterdir()}
    assert sum(path.stat().st_size for path in PICTURES.iterdir()) < 2.5 * 2**20


def test_every_thing_is_drawn_by_every_studio_that_is_held_out_and_no_two_drawings_are_equal() -> None:
    assert len(names()) > 250 and len(set(names())) == len(names())
    for name in names():
        alphas = [drawing(drawings, name).getchannel("A") for drawings in WHOLE]
        assert all(alpha.histogram()[255] > 100 for alpha in alphas), name
    for name in names()[::10]:
        first, *others = (drawing(drawings, name).convert("RGB") for drawings in WHOLE)
        assert all(ImageChops.difference(first, other).getbbox() for other in others)


def test_the_studio_of_a_test_picture_drew_no_training_picture_of_that_thing() -> None:
    held_out = Counter()
    for name in names():
        (test,) = sets(name, "test")
        (studio,) = (studio for studio, theirs in STUDIOS.items() if test in theirs)
        assert len(sets(name, "train")) >= 4 and not set(STUDIOS[studio]) & set(sets(name, "train"))
        held_out[test] += 1
    assert min(held_out.values()) > 0.15 * len(names())


def test_a_set_shows_only_what_it_draws() -> None:
    assert "streamline-emojis" not in sets("turkey", "train")
    assert all(drawing(drawings, name).getbbox() for name in names() for drawings in sets(name, "train"))


def test_answers_are_names_and_every_kind_of_question_is_asked() -> None:
    samples = list(Captions().samples(150))
    assert {sample.facts["kind"] for sample in samples} == set(PHRASINGS)
    for sample in samples:
        assert sample.answer in sample.facts["names"] and sample.answer in names()
        if sample.facts["kind"] == "either":
            assert sample.answer in sample.question


def test_an_article_does_not_make_an_answer_wrong() -> None:
    task = Captions()
    sample = task.sample(0)
    assert task.score(sample, f"A {sample.answer}.") == task.score(sample, f"the {sample.answer.title()}") == 1.0
    other = next(name for name in names() if name not in sample.facts["names"])
    assert task.score(sample, other) == 0.0
