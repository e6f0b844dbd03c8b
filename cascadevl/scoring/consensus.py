"""Consensus Entropy: readings of one page that are right agree, errors scatter (https://arxiv.org/abs/2504.11101).

The released definition: d(a, b) = edit distance / longer length (0 if both are empty), the entropy of a reading is
its mean distance to the others, and the reading with the least is the medoid. The paper motivates this by an entropy
of normalised similarities, which is not 0 for identical readings (it is log n) and is therefore not used.

What differs from the release, which only hands out the medoid:
- distances are taken on texts without markup and with single spaces, lines in one common order; `raw_doubt` is the
  figure on the texts as they are;
- the text is voted per token in a lattice, with weights of 1 / entropy;
- doubt is told for the page, for each line and for each token, and for numbers apart: a wrong digit is 1/3000 of a
  long page;
- readers may be trusted by different degrees, so that two weak ones cannot agree against a strong one.

What it cannot see: errors that readers share. Two models of one family agree on the same wrong text.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

from cascadevl.core.errors import ConfigError
from cascadevl.scoring.expectation import expected_error
from cascadevl.scoring.lattice import Candidate, Column, build, rapidfuzz_levenshtein
from cascadevl.scoring.tokens import Token, apart, tokenise

FLOOR = 0.01
"""Added to entropies before they are inverted: one error a page more or less is no reason for another weight."""
SAME_LINE = 0.6
"""Similarity from which on a line of one reading is taken for a line, or half of a line, of another."""
NEARLY = 0.8
"""Similarity from which on a line is taken for the one that is expected, and no other is looked at."""


@dataclass(frozen=True, slots=True)
class LineQuality:
    """A line of the consensus."""

    text: str
    doubt: float
    """Consensus entropy of what the readings have in it."""
    columns: range
    """Which columns of the page it is made of."""


@dataclass(frozen=True, kw_only=True, slots=True)
class PageQuality:
    """What several readings of a page come to."""

    text: str
    """The consensus: in identical readings, the very text."""
    doubt: float
    """Entropy of the medoid, from 0 (all say the same) to 1. A lone reading has 1: nothing confirms it."""
    number_doubt: float
    """The largest doubt of any token that holds a digit; 1 for a lone reading with such tokens."""
    raw_doubt: float
    """`doubt` by the released definition, on the texts as they are."""
    unconfirmed: float
    """Distance of the medoid to the reading nearest to it, 1 for a lone one. Tells bad pages better than `doubt`:
    one reader that fails on a page that two others read alike is no reason to doubt them."""
    expected_error: float
    """Error rate to expect of the text, by `unconfirmed` and, where it is known, the best reader's own confidence.
    Predicts the true one better than either of them."""
    medoid: int
    """The reading that is nearest to all others, as far as it is trusted. Of two neither is: trust decides."""
    entropies: tuple[float, ...]
    weights: tuple[float, ...]
    """Of each reading's vote; their sum is 1."""
    columns: tuple[Column, ...]
    per_line: tuple[LineQuality, ...]

    @property
    def doubts(self) -> tuple[Column, ...]:
        """The places about which readings disagree, in reading order."""
        return tuple(column for column in self.columns if column.doubt > 0)


def distance(first: str, second: str) -> float:
    """Edit distance over the longer length; 0 if both are empty."""
    return rapidfuzz_levenshtein().normalized_distance(first, second)


def entropies(readings: Sequence[str], trust: Sequence[float] | None = None) -> list[float]:
    """Mean distance of each reading to the others, weighted by how far those are trusted; 1 for a lone one."""
    return _entropies(_distances(readings), trust or [1.0] * len(readings))


def _distances(readings: Sequence[str]) -> list[list[float]]:
    """Of every reading to every other."""
    between = rapidfuzz_levenshtein().normalized_distance
    apart = [[0.0] * len(readings) for _ in readings]
    for i in range(len(readings)):
        for j in range(i):
            apart[i][j] = apart[j][i] = between(readings[i], readings[j])
    return apart


def _entropies(apart: list[list[float]], trust: Sequence[float]) -> list[float]:
    num = len(apart)
    if num < 2:
        return [1.0] * num
    total = sum(trust)
    return [sum(t * d for t, d in zip(trust, row, strict=True)) / (total - trust[i]) for i, row in enumerate(apart)]


def score(readings: Sequence[str], trust: Sequence[float] | None = None, own_doubt: float | None = None) -> PageQuality:
    """The consensus of one or more readings; their order does not matter.

    `trust` (1 for all by default) multiplies the vote of a reading and decides ties. `own_doubt` (see
    `expected_error`) changes what is expected of the page, not what stands on it.
    """
    if own_doubt is not None and not 0 <= own_doubt <= 1:
        raise ConfigError(f"own_doubt must lie in [0, 1], got {own_doubt}.")
    trust = _checked(readings, trust)
    # A fixed order of our own, so that sums and ties come out the same for every order of the arguments.
    order = sorted(range(len(readings)), key=lambda i: (-trust[i], readings[i]))
    page = _score([readings[i] for i in order], [trust[i] for i in order], own_doubt)
    if order == sorted(order):
        return page
    back = sorted(range(len(order)), key=order.__getitem__)
    return replace(
        page,
        medoid=order[page.medoid],
        entropies=tuple(page.entropies[at] for at in back),
        weights=tuple(page.weights[at] for at in back),
        columns=tuple(_renumbered(column, order, back) for column in page.columns),
    )


def rank(pages: Mapping[str, PageQuality]) -> list[str]:
    """Names of pages, the worst that is to be expected first; doubts of page and numbers decide between equals."""

    def key(name: str) -> tuple[float, float, float, str]:
        page = pages[name]
        return -page.expected_error, -page.doubt, -page.number_doubt, name

    return sorted(pages, key=key)


def in_order(tokens: list[Token], model: list[Token]) -> list[Token]:
    """The lines of a reading in the order in which another one has them, if that brings the two closer.

    A line is put where the most similar line of the model stands; one that is like none stays behind the
    line before it. Halves of a line go where the whole is.
    """
    lines, wanted = _lines(tokens), _lines(model)
    places = _places([_said(line) for line in lines], [_said(line) for line in wanted])
    if places == sorted(places):
        return tokens
    moved = [lines[at] for at in sorted(range(len(lines)), key=lambda at: (places[at], at))]
    result = [token for line in moved for token in [replace(line[0], gap="\n"), *line[1:]]]
    before, after = (distance(_said(each), _said(model)) for each in (tokens, result))
    return result if after < before else tokens


def _checked(readings: Sequence[str], trust: Sequence[float] | None) -> list[float]:
    if not readings or isinstance(readings, str):
        raise ConfigError(f"Expected a list of one or more readings, got {readings!r:.40}.")
    if trust is None:
        return [1.0] * len(readings)
    if len(trust) != len(readings) or not all(0 < each < float("inf") for each in trust):
        raise ConfigError(f"Expected a positive trust for each of {len(readings)} readings, got {list(trust)}.")
    return list(trust)


def _score(readings: list[str], trust: list[float], own_doubt: float | None) -> PageQuality:
    read, tails = map(list, zip(*map(tokenise, readings), strict=True))
    apart = _distances([_said(each) for each in read])
    found = _entropies(apart, trust)
    first = _medoid(_inverse(found, trust))
    tokens = [each if at == first else in_order(each, read[first]) for at, each in enumerate(read)]
    if any(each is not before for each, before in zip(tokens, read, strict=True)):
        apart = _distances([_said(each) for each in tokens])
        found = _entropies(apart, trust)
    inverse = _inverse(found, trust)
    medoid = _medoid(inverse)
    weights = tuple(each / sum(inverse) for each in inverse)
    columns = build(tokens, weights, medoid)
    lone = len(readings) == 1
    unconfirmed = min((d for at, d in enumerate(apart[medoid]) if at != medoid), default=1.0)
    numbers = [1.0 if lone else column.doubt for column in columns if column.kind == "number"]
    return PageQuality(
        text="".join(column.gap + column.text for column in columns if column.text) + tails[medoid],
        doubt=found[medoid],
        number_doubt=max(numbers, default=0.0),
        raw_doubt=min(entropies(readings, trust)),
        unconfirmed=unconfirmed,
        expected_error=expected_error(unconfirmed, own_doubt),
        medoid=medoid,
        entropies=tuple(found),
        weights=weights,
        columns=tuple(columns),
        per_line=tuple(_line_qualities(columns, trust)),
    )


def _inverse(found: list[float], trust: list[float]) -> list[float]:
    return [each / (entropy + FLOOR) for each, entropy in zip(trust, found, strict=True)]


def _medoid(inverse: list[float]) -> int:
    """The first of the largest, which at equal trust has the least entropy; rounding alone decides nothing."""
    return max(range(len(inverse)), key=lambda at: (round(inverse[at], 7), -at))


def _said(tokens: Sequence[Token]) -> str:
    """Keys with single spaces where anything stood between them: what distances compare."""
    return "".join((" " if at and apart(token.gap) else "") + token.key for at, token in enumerate(tokens))


def _lines(tokens: list[Token]) -> list[list[Token]]:
    lines: list[list[Token]] = []
    for token in tokens:
        if not lines or apart(token.gap) == "\n":
            lines.append([])
        lines[-1].append(token)
    return lines


def _places(lines: list[str], wanted: list[str]) -> list[float]:
    """Per line the number of the most similar wanted line: an equal one if there is, in its turn."""
    turns: dict[str, list[int]] = {}
    for at, line in enumerate(wanted):
        turns.setdefault(line, []).append(at)
    places: list[float] = []
    for line in lines:
        if equal := turns.get(line):
            places.append(equal.pop(0) if len(equal) > 1 else equal[0])
            continue
        expected = places[-1] if places else -1.0
        similar = _similar(line, wanted, expected + 1)
        places.append(expected if similar is None else similar)
    return places


def _similar(line: str, wanted: list[str], expected: float) -> int | None:
    """The most similar line, of equals the one nearest to where it is expected; one nearly equal there will do."""
    from rapidfuzz.distance import Indel

    at = int(expected)
    if 0 <= at < len(wanted) and Indel.normalized_similarity(line, wanted[at]) >= NEARLY:
        return at
    best: tuple[float, float] = (SAME_LINE, -float("inf"))
    found = None
    for at, other in enumerate(wanted):
        candidate = Indel.normalized_similarity(line, other, score_cutoff=best[0]), -abs(at - expected)
        if candidate >= best:
            best, found = candidate, at
    return found


def _line_qualities(columns: list[Column], trust: list[float]) -> list[LineQuality]:
    starts = [at for at, column in enumerate(columns) if at == 0 or (column.text and apart(column.gap) == "\n")]
    lines = []
    alone = len(trust) == 1
    for start, end in pairwise([*starts, len(columns)]):
        part = columns[start:end]
        text = "".join(column.gap + column.text for column in part if column.text).strip()
        doubt = 0.0
        if alone or any(column.doubt for column in part):
            said = [" ".join(filter(None, texts)) for texts in zip(*(column.texts for column in part), strict=True)]
            doubt = min(entropies(said, trust))
        lines.append(LineQuality(text, doubt, range(start, end)))
    return lines


def _renumbered(column: Column, order: list[int], back: list[int]) -> Column:
    """The column in the caller's numbers of readings. Made anew by hand: `replace` takes thrice the time."""
    return Column(
        column.gap,
        column.text,
        column.kind,
        column.doubt,
        tuple([Candidate(c.text, c.share, tuple(sorted([order[at] for at in c.readings]))) for c in column.candidates]),
        tuple([column.texts[at] for at in back]),
        tuple([column.places[at] for at in back]),
    )
