from collections import Counter

from cascadevl.gym.several import ORDINALS, PHRASINGS, Several

SAMPLES = tuple(Several().samples(200))


def printed(sample, number: int) -> str:
    return "".join(glyph.char for glyph in sample.shown[number].glyphs)


def test_every_kind_of_question_is_asked_about_two_to_four_pictures() -> None:
    kinds = Counter(sample.facts["kind"] for sample in SAMPLES)
    assert set(kinds) == set(PHRASINGS) and min(kinds.values()) >= 5
    assert {len(sample.shown) for sample in SAMPLES} == {2, 3, 4}


def test_the_text_of_a_picture_is_printed_in_that_picture_and_in_no_other() -> None:
    checked = 0
    for sample in SAMPLES:
        if sample.facts["kind"] != "says":
            continue
        (number,) = {n for n, word in enumerate(ORDINALS) if word in sample.question} | {
            n for n in range(4) if str(n + 1) in sample.question
        } or {len(sample.shown) - 1}
        texts = [printed(sample, n) for n in range(len(sample.shown))]
        assert texts.count("".join(sample.answer.split())) == 1
        assert texts[number] == "".join(sample.answer.split())
        checked += 1
    assert checked > 20


def test_the_named_picture_says_what_was_asked_for() -> None:
    asked = [sample for sample in SAMPLES if sample.facts["kind"] == "which_says"]
    assert len(asked) > 20 and {sample.answer for sample in asked} == set(ORDINALS)
    for sample in asked:
        assert printed(sample, ORDINALS.index(sample.answer)) in "".join(sample.question.split())


def test_shapes_of_the_same_kind_are_asked_for_as_often_as_different_ones() -> None:
    answers = Counter(
        answer
        for sample in Several().samples(500)
        for question, answer, _ in ((sample.question, sample.answer, ()), *sample.more)
        if "same" in question or "shape of" in question
    )
    assert set(answers) == {"yes", "no"} and 0.35 < answers["yes"] / sum(answers.values()) < 0.65


def test_a_place_may_be_said_with_an_article_and_a_full_stop() -> None:
    task = Several()
    sample = next(sample for sample in SAMPLES if sample.facts["kind"] == "which_says")
    assert task.score(sample, f"The {sample.answer}.") == 1.0
    assert task.score(sample, next(word for word in ORDINALS if word != sample.answer)) == 0.0
