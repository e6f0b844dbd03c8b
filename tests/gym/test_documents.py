import re
from collections import Counter

from cascadevl.gym.documents import PHRASINGS, KeyValue


def test_answers_have_the_form_that_their_question_asks_for() -> None:
    money = re.compile(r"[$€£]?[\d,]+(\.\d\d)?")
    kinds = Counter()
    for sample in KeyValue().samples(150):
        kind = sample.facts["kind"]
        kinds[kind] += 1
        if kind in ("total", "price"):
            assert money.fullmatch(sample.answer), sample.answer
        elif kind in ("date", "due"):
            assert re.search(r"\d", sample.answer)
        elif kind in ("customer", "shop"):
            assert len(sample.answer.split()) == 2
    assert set(kinds) == set(PHRASINGS)
    assert kinds.most_common(1)[0][0] == "total"
