"""Readings laid side by side: columns of what each of them has in one place, and a weighted vote in every column.

A word lattice as in ROVER (Fiscus 1997, https://doi.org/10.1109/ASRU.1997.659110), but aligned by characters: one
reading, the backbone, gives the places, the others are laid on it by their edit operations, white space left out.
So words that one reader splits and another joins, and lines that end elsewhere, fall into the same columns.
"""

import functools
import re
from collections import Counter, defaultdict
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from itertools import accumulate
from types import ModuleType

from cascadevl.core.errors import MissingExtra
from cascadevl.scoring.tokens import Kind, Token, apart

LIKE_ENOUGH = 0.5
"""A token over two columns is divided if each part agrees with its column in this share of the characters."""
NUMERIC = 0.25
"""A column is about a number if readings with more than this share of the votes have a digit in it."""
SAME_SHARE = 1e-9
"""Shares that differ by less are equal: the order of an addition decides nothing."""


Opcode = tuple[str, int, int, int, int]
"""Of rapidfuzz: equal, replace, insert or delete; from and to in the backbone; from and to in the reading."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """What some readings have in a column; an empty text: they have nothing there."""

    text: str
    share: float
    """Their part of all weights; of a word that was put together, the mean share of its characters."""
    readings: tuple[int, ...]
    """Which readings; none for a word that was put together from several."""


@dataclass(frozen=True, slots=True)
class Column:
    """One place of the page: what is written there, and how sure that is."""

    gap: str
    """White space and markup before it."""
    text: str
    kind: Kind
    doubt: float
    """1 less the share of those who agree with `text`: 0 if all do."""
    candidates: tuple[Candidate, ...]
    """The winner first, then by share."""
    texts: tuple[str, ...]
    """Per reading, what it has here."""
    places: tuple[tuple[int, int] | None, ...]
    """Per reading, the first and one behind the last character of that."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A token of a reading, or the part of it that belongs to one column."""

    text: str
    key: str
    gap: str
    start: int
    kind: Kind


@dataclass(slots=True)
class Slot:
    """A column being filled: the pieces of every reading that has some."""

    pieces: dict[int, list[Piece]] = field(default_factory=lambda: defaultdict(list))

    def text(self, reading: int) -> str:
        """As it stands there, with single spaces inside."""
        pieces = self.pieces.get(reading, ())
        if len(pieces) == 1:
            return pieces[0].text
        return "".join((" " if at and apart(piece.gap) else "") + piece.text for at, piece in enumerate(pieces))

    def key(self, reading: int) -> str:
        """White space is no disagreement, unless it divides a number: `1 284` is not `1284`."""
        pieces = self.pieces.get(reading, ())
        if len(pieces) == 1:
            return pieces[0].key
        spaced = "".join((" " if at and apart(piece.gap) else "") + piece.key for at, piece in enumerate(pieces))
        return re.sub(r"(?<![\d.,'])\s|\s(?!\d)", "", spaced) if self.kind == "number" else spaced.replace(" ", "")

    @property
    def kind(self) -> Kind:
        kinds = {piece.kind for pieces in self.pieces.values() for piece in pieces}
        return "number" if "number" in kinds else "word" if "word" in kinds else "mark"


@functools.cache
def rapidfuzz_levenshtein() -> ModuleType:
    """Edit distances in C; the extra `ocr` brings them."""
    try:
        from rapidfuzz.distance import Levenshtein
    except ImportError as error:
        raise MissingExtra("Comparing readings needs rapidfuzz: pip install 'cascadevl[ocr]'.") from error
    return Levenshtein


def build(readings: Sequence[Sequence[Token]], weights: Sequence[float], backbone: int) -> list[Column]:
    """The columns of readings whose weights sum to one; the others are laid on number `backbone`."""
    # The beginning of a reading counts as the beginning of a line, wherever on the page its first token falls.
    pieces = [
        [Piece(t.text, t.key, t.gap if at else "\n" + t.gap, t.start, t.kind) for at, t in enumerate(tokens)]
        for tokens in readings
    ]
    columns = _columns(pieces, weights, backbone)
    first = next((at for at, column in enumerate(columns) if column.text), None)
    if first is not None:
        columns[first] = replace(columns[first], gap=columns[first].gap.removeprefix("\n"))
    return columns


def _columns(readings: list[list[Piece]], weights: Sequence[float], backbone: int) -> list[Column]:
    inserts, slots = lay(readings, backbone)
    columns: list[Column] = []
    for number, insert in enumerate(inserts):
        if insert.pieces:
            columns += _inserted(insert, weights)
        if number < len(slots) and slots[number].pieces:
            columns.append(_decide(slots[number], weights, backbone))
    return columns


def lay(readings: list[list[Piece]], backbone: int) -> tuple[list[Slot], list[Slot]]:
    """What stands before each token of the backbone (and behind the last), and what in its place."""
    spine = readings[backbone]
    slots = [Slot() for _ in spine]
    inserts = [Slot() for _ in range(len(spine) + 1)]
    for slot, piece in zip(slots, spine, strict=True):
        slot.pieces[backbone].append(piece)
    spine_key = "".join(piece.key for piece in spine)
    owners = [number for number, piece in enumerate(spine) for _ in piece.key]
    levenshtein = rapidfuzz_levenshtein()
    for number, pieces in enumerate(readings):
        if number == backbone or not pieces:
            continue
        key = "".join(piece.key for piece in pieces)
        ends = list(accumulate(len(piece.key) for piece in pieces))
        matches = _matches(levenshtein.opcodes(spine_key, key).as_list(), key, {0, *ends})
        for piece, end in zip(pieces, ends, strict=True):
            _place(number, piece, matches[end - len(piece.key) : end], owners, spine, inserts, slots)
    _join_divided_numbers(inserts, slots, backbone)
    return inserts, slots


def _matches(opcodes: list[Opcode], key: str, borders: set[int]) -> list[tuple[int, str]]:
    """Per character of a reading: where in the backbone it lies, and whether it is equal, replaced or inserted."""
    matches: list[tuple[int, str]] = [(0, "insert")] * len(key)
    for tag, spine_start, _, start, end in opcodes:
        step = 0 if tag == "insert" else 1
        for at in range(start, end):
            matches[at] = (spine_start + step * (at - start), tag)
    for number, (tag, spine_start, _, start, end) in enumerate(opcodes):
        if tag != "insert":
            continue
        shift = _shift(opcodes, number, key, borders)
        for at in range(min(start, start + shift), max(end, end + shift)):
            inside = start + shift <= at < end + shift
            before = at < start + shift
            at_spine = spine_start + shift if inside else spine_start + (at - start if before else at - end)
            matches[at] = (at_spine, "insert" if inside else "equal")
    return matches


def _shift(opcodes: list[Opcode], number: int, key: str, borders: set[int]) -> int:
    """By how much an insertion can be moved, at the same cost, to begin and end with tokens.

    Between `one` and `three`, `two` may be inserted as `two` or as `wot` behind the t of three.
    """
    _, _, _, start, end = opcodes[number]
    if start in borders and end in borders:
        return 0
    before = opcodes[number - 1] if number else ("", 0, 0, 0, 0)
    after = opcodes[number + 1] if number + 1 < len(opcodes) else ("", 0, 0, 0, 0)
    for by in range(1, 1 + (before[4] - before[3] if before[0] == "equal" else 0)):
        if key[start - by] != key[end - by]:
            break
        if start - by in borders and end - by in borders:
            return -by
    for by in range(1, 1 + (after[4] - after[3] if after[0] == "equal" else 0)):
        if key[start + by - 1] != key[end + by - 1]:
            break
        if start + by in borders and end + by in borders:
            return by
    return 0


def _place(
    reading: int, piece: Piece, matches: list[tuple[int, str]], owners: list[int], spine: list[Piece],
    inserts: list[Slot], slots: list[Slot],
) -> None:  # fmt: skip
    """Put a token of a reading where its characters lie: into a column, between two, or divided over several."""
    first, last = matches[0], matches[-1]
    if first[1] != "insert" != last[1] and owners[first[0]] == owners[last[0]]:
        slots[owners[first[0]]].pieces[reading].append(piece)
        return
    aligned = [(owners[at], tag) for at, tag in matches if tag != "insert"]
    if not aligned:
        at = first[0]
        after = owners[at] if at < len(owners) else len(spine)
        inside = 0 < at < len(owners) and owners[at - 1] == after
        (slots if inside else inserts)[after].pieces[reading].append(piece)
        return
    if aligned[0][0] == aligned[-1][0]:
        slots[aligned[0][0]].pieces[reading].append(piece)
        return
    parts = _divided(piece, matches, owners)
    if parts and all(_alike(part, equal, spine[owner]) for owner, part, equal in parts):
        for owner, part, _ in parts:
            slots[owner].pieces[reading].append(part)
        return
    equal = Counter(owner for owner, tag in aligned if tag == "equal") or Counter(owner for owner, _ in aligned)
    slots[max(equal, key=lambda owner: (equal[owner], -owner))].pieces[reading].append(piece)


def _divided(piece: Piece, matches: list[tuple[int, str]], owners: list[int]) -> list[tuple[int, Piece, int]]:
    """(column, part, number of equal characters); nothing if key and text do not run in parallel."""
    if len(piece.key) != len(piece.text):
        return []
    owner = next(owners[at] for at, tag in matches if tag != "insert")
    cuts = [(0, owner)]
    equal = Counter[int]()
    for offset, (at, tag) in enumerate(matches):
        if tag != "insert" and owners[at] != owner:
            owner = owners[at]
            cuts.append((offset, owner))
        equal[owner] += tag == "equal"
    ends = [offset for offset, _ in cuts[1:]] + [len(piece.key)]
    return [
        (
            owner,
            Piece(piece.text[a:b], piece.key[a:b], "" if a else piece.gap, piece.start + a, piece.kind),
            equal[owner],
        )
        for (a, owner), b in zip(cuts, ends, strict=True)
    ]


def _alike(part: Piece, equal: int, spine: Piece) -> bool:
    return equal >= LIKE_ENOUGH * max(len(part.key), len(spine.key))


def _join_divided_numbers(inserts: list[Slot], slots: list[Slot], backbone: int) -> None:
    """Where a reading writes without a space what the backbone holds for two numbers, both share one column."""
    for number in range(len(slots) - 1, 0, -1):
        left, right = slots[number - 1], slots[number]
        own = left.pieces[backbone][0], right.pieces[backbone][0]
        if inserts[number].pieces or {piece.kind for piece in own} != {"number"} or apart(own[1].gap) != " ":
            continue
        if any(not pieces[0].gap and reading in left.pieces for reading, pieces in right.pieces.items()):
            for reading, pieces in right.pieces.items():
                left.pieces[reading] += pieces
            right.pieces = {}


def _inserted(slot: Slot, weights: Sequence[float]) -> list[Column]:
    """What the backbone lacks: a lattice of its own if most readings have something here, else one doubt."""
    present = sum(weights[reading] for reading in sorted(slot.pieces))
    if present <= 0.5 + SAME_SHARE:
        return [_decide(slot, weights, None)]
    heaviest = max(sorted(slot.pieces), key=lambda reading: weights[reading])
    return _columns([slot.pieces.get(reading, []) for reading in range(len(weights))], weights, heaviest)


def _decide(slot: Slot, weights: Sequence[float], backbone: int | None) -> Column:
    """Is there anything (a tie goes to the backbone), and if so, what: the key with the largest share."""
    if agreed := _agreed(slot, len(weights)):
        return agreed
    readings = range(len(weights))
    keys, texts = [slot.key(reading) for reading in readings], [slot.text(reading) for reading in readings]
    shares: dict[str, float] = defaultdict(float)
    for key, weight in zip(keys, weights, strict=True):
        shares[key] += weight
    own = keys[backbone] if backbone is not None else ""

    def rank(key: str) -> tuple[float, bool, str]:
        return round(shares[key] / SAME_SHARE), key == own, key

    present = 1 - shares.get("", 0.0)
    filled = present > 0.5 + SAME_SHARE or (own != "" and present >= 0.5 - SAME_SHARE)
    order = sorted(shares, key=rank, reverse=True)
    winner = next(key for key in order if key) if filled else ""
    order = [winner, *(key for key in order if key != winner)] if winner in shares else order
    candidates = [_candidate(key, keys, texts, weights, shares[key], backbone) for key in order]
    if filled and slot.kind == "word" and len(shares) > 2 and shares[winner] <= present / 2:
        composed = compose([(key, weight) for key, weight in zip(keys, weights, strict=True) if key], winner)
        if composed.text not in shares:
            candidates.insert(0, composed)
    places = tuple(
        (pieces[0].start, pieces[-1].start + len(pieces[-1].text)) if (pieces := slot.pieces.get(reading)) else None
        for reading in readings
    )
    first = candidates[0]
    doubt = 1 - first.share if len(candidates) > 1 else 0.0
    gap = _gap(slot, weights, backbone)
    return Column(gap, first.text, _kind(slot, weights), doubt, tuple(candidates), tuple(texts), places)


def _kind(slot: Slot, weights: Sequence[float]) -> Kind:
    """A column is a number if enough readings have a digit there: `1n` for `in` by a weak one is a misread word."""
    kind = slot.kind
    if kind != "number":
        return kind
    numeric = sum(
        weights[reading]
        for reading, pieces in sorted(slot.pieces.items())
        if any(piece.kind == "number" for piece in pieces)
    )
    return "number" if numeric > NUMERIC + SAME_SHARE else "word"


def _agreed(slot: Slot, num: int) -> Column | None:
    """The column of one token that all readings write in the same way: most of a page, so it is made quickly."""
    if len(slot.pieces) < num:
        return None
    everyone = [slot.pieces[reading] for reading in range(num)]
    first = everyone[0][0]
    for pieces in everyone:
        if len(pieces) > 1 or pieces[0].text != first.text or pieces[0].gap != first.gap:
            return None
    places = tuple((piece.start, piece.start + len(piece.text)) for [piece] in everyone)
    winner = Candidate(first.text, 1.0, tuple(range(num)))
    return Column(first.gap, first.text, first.kind, 0.0, (winner,), (first.text,) * num, places)


def _candidate(
    key: str, keys: list[str], texts: list[str], weights: Sequence[float], share: float, backbone: int | None
) -> Candidate:
    """A key as most of its supporters write it, the backbone deciding a tie."""
    supporters = tuple(reading for reading, own in enumerate(keys) if own == key)
    written: dict[str, float] = defaultdict(float)
    for reading in supporters:
        written[texts[reading]] += weights[reading]
    own = texts[backbone] if backbone in supporters else None
    text = max(written, key=lambda text: (round(written[text] / SAME_SHARE), text == own, text))
    return Candidate(text, min(share, 1.0), supporters)


def _gap(slot: Slot, weights: Sequence[float], backbone: int | None) -> str:
    """Nothing, a space or a line break, by vote; within the winning class the backbone's own, with its markup."""
    votes: dict[str, float] = defaultdict(float)
    gaps: dict[str, str] = {}
    for reading in sorted(slot.pieces, key=lambda reading: (reading != backbone, -weights[reading], reading)):
        gap = slot.pieces[reading][0].gap
        votes[apart(gap)] += weights[reading]
        gaps.setdefault(apart(gap), gap)
    own = apart(slot.pieces[backbone][0].gap) if backbone in slot.pieces else None
    return gaps[max(votes, key=lambda kind: (round(votes[kind] / SAME_SHARE), kind == own, kind))]


def compose(words: Sequence[tuple[str, float]], pivot: str) -> Candidate:
    """One word from several that all differ: every character by vote over their alignment with `pivot`.

    Meant for words alone. A number that nobody has read must not be written.
    """
    levenshtein = rapidfuzz_levenshtein()
    total = sum(weight for _, weight in words)
    inside: list[dict[str, float]] = [defaultdict(float) for _ in pivot]
    before: list[dict[str, float]] = [defaultdict(float) for _ in range(len(pivot) + 1)]
    for word, weight in words:
        added: dict[int, str] = {}
        for tag, start, end, word_start, word_end in levenshtein.opcodes(pivot, word):
            if tag == "insert":
                added[start] = word[word_start:word_end]
            for at in range(start, end):
                inside[at][word[word_start + at - start] if tag != "delete" else ""] += weight
        for at in range(len(pivot) + 1):
            before[at][added.get(at, "")] += weight
    text, shares = "", []
    for at in range(len(pivot) + 1):
        for votes, own in ((before[at], ""), *([(inside[at], pivot[at])] if at < len(pivot) else [])):
            best = max(votes, key=lambda char: (round(votes[char] / SAME_SHARE), char == own, char))
            text += best
            if best or own:
                shares.append(votes[best] / total)
    return Candidate(text, min(1.0, sum(shares) / len(shares)), ())
