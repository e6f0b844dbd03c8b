import json
import re
from collections import Counter

from PIL import Image, ImageChops

from cascadevl.core.task import Sample
from cascadevl.gym import scene
from cascadevl.gym.clips import PHRASINGS, Clips
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import TextTokenizer, train_tokenizer

SAMPLES = tuple(Clips().samples(240))


def of_kind(kind: str) -> list[Sample]:
    return [sample for sample in SAMPLES if sample.facts["kind"] == kind]


def ink(sample: Sample, frame: int) -> tuple[float, float]:
    """Centre of what differs from the paper, of a clip with one shape."""
    image = sample.shown[frame].image.convert("L")
    paper = image.getpixel((0, 0))
    assert isinstance(paper, int | float)
    dark = [(i % image.width, i // image.width) for i, grey in enumerate(image.tobytes()) if abs(grey - paper) > 40]
    return sum(x for x, _ in dark) / len(dark), sum(y for _, y in dark) / len(dark)


def test_every_kind_of_question_is_asked_about_three_to_six_frames_of_one_size() -> None:
    kinds = Counter(sample.facts["kind"] for sample in SAMPLES)
    assert set(kinds) == set(PHRASINGS) and min(kinds.values()) >= 5
    assert {len(sample.shown) for sample in SAMPLES} == {3, 4, 5, 6}
    assert all(len({shown.image.size for shown in sample.shown}) == 1 for sample in SAMPLES)


def test_shapes_move_where_the_answer_says() -> None:
    checked = Counter()
    for sample in of_kind("direction"):
        if len(sample.facts["pairs"]) > 1 or "yellow" in sample.facts["pairs"][0]:
            continue
        (x1, y1), (x2, y2) = ink(sample, 0), ink(sample, len(sample.shown) - 1)
        across, down = x2 - x1, y2 - y1
        moved = ("right" if across > 0 else "left") if abs(across) > abs(down) else ("down" if down > 0 else "up")
        assert moved == sample.answer, sample.id
        checked[moved] += 1
    assert sum(checked.values()) >= 10 and len(checked) == 4


def test_frames_are_counted_from_one_and_say_what_they_are_asked_for() -> None:
    for sample in of_kind("when"):
        texts = [re.escape("".join(glyph.char for glyph in shown.glyphs)) for shown in sample.shown]
        named = [n for n, text in enumerate(texts, start=1) if re.search(f'[ "]{text}[ "?.]', sample.question)]
        assert [str(n) for n in named] == [sample.answer]
    for sample in of_kind("end"):
        assert sample.answer in (
            "".join(glyph.char for glyph in sample.shown[at].glyphs) for at in (0, -1)
        ), sample.id  # fmt: skip


def test_what_appears_was_not_there_before_and_is_there_then() -> None:
    checked = 0
    for sample in of_kind("appears"):
        colours = [colour for colour, _ in sample.facts["pairs"]]
        if len(set(colours)) < len(colours) or len(sample.facts["pairs"]) > 2:
            continue
        # The moving shape comes first, whichever is asked for.
        wanted = scene.COLOURS[colours[1]]
        seen = [near(shown.image, wanted) for shown in sample.shown]
        assert seen.index(True) + 1 == int(sample.answer), sample.id
        checked += 1
    assert checked >= 5


def near(image: Image.Image, colour: tuple[int, int, int]) -> bool:
    """Whether more than twenty pixels have about this colour."""
    apart = ImageChops.difference(image, Image.new("RGB", image.size, colour))
    bands = [band.point([255] * 40 + [0] * 216) for band in apart.split()]
    hits = ImageChops.darker(ImageChops.darker(bands[0], bands[1]), bands[2])
    return hits.histogram()[255] > 20


def test_frames_get_the_official_labels_and_one_tile_each() -> None:
    files = train_tokenizer([], 256)
    tokenizer = TextTokenizer(json.loads(files["tokenizer.json"]), files)
    sample = SAMPLES[0]
    inputs = Processor(Spec(max_tiles=6), tokenizer)(Clips().prompt(sample))
    assert inputs.grids == [(1, 1)] * len(sample.shown) and all(inputs.frames)
    text = tokenizer.decode(inputs.token_ids.tolist())
    assert [f"Frame{n + 1}: " in text for n in range(7)] == [n < len(sample.shown) for n in range(7)]
