"""Every row is looked at before training: what is wrong with it, what to do, and the row as it should be."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from cascadevl.core.errors import DataError, MediaError, MessageError
from cascadevl.core.messages import Conversation, Image, Part, Turn, Video
from cascadevl.data.conversations import read_conversation
from cascadevl.data.pictures import Look, Size, elsewhere, picture_size
from cascadevl.data.rows import Row
from cascadevl.data.sources import Dataset, FileSource
from cascadevl.preprocessing.frame_rules import find_clip
from cascadevl.preprocessing.video import open_footage

if TYPE_CHECKING:  # it needs torch
    from cascadevl.data.lengths import Length

CountTokens = Callable[[Conversation, Sequence[Size], int | None], "Length"]
"""(conversation, sizes of its pictures, tile limit) -> its length; see `lengths.Lengths`."""


@dataclass(frozen=True, slots=True)
class Checked:
    """One row and what was found in it."""

    where: str
    id: Any
    """As the row says; None where it says nothing."""
    conversation: Conversation | None
    """With everything put right that can be put right without guessing; None where that is not enough."""
    problems: tuple[DataError, ...]
    """Those that were put right first; the last one is final where there is no conversation."""
    length: "Length | None" = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Check:
    """What is looked at; callable on data sets."""

    look: Look = "header"
    """`header` finds pictures that are missing, empty or cut off; `decode` also those that are damaged inside."""
    count_tokens: CountTokens | None = None
    max_tokens: int | None = None
    """Longer samples are refused; needs `count_tokens`."""

    def __call__(self, datasets: Sequence[Dataset]) -> Iterator[Checked]:
        for dataset in datasets:
            first_rows: dict[str, str] = {}
            for index in range(len(dataset.source)):
                yield self._check(dataset, index, first_rows)

    def _check(self, dataset: Dataset, index: int, first_rows: dict[str, str]) -> Checked:
        source = dataset.source
        assert isinstance(source, FileSource), "only files can be mended"
        row = source.row(index, mending=True)
        fields: dict[str, Any] = {}
        conversation, length, problems = None, None, row.mended
        try:
            fields = source.rows.read(index, row)
            conversation, sizes = self._look_at(read_conversation(fields, source.form, source.root, row), source, row)
            _compare_sizes(fields, sizes, row)
            _compare_ids(fields.get("id"), first_rows, row)
            length = self._measure(conversation, sizes, dataset.max_tiles, row)
        except DataError as error:
            conversation, problems = None, [*row.mended, error]
        return Checked(row.where, fields.get("id"), conversation, tuple(problems), length)

    def _look_at(self, conversation: Conversation, source: FileSource, row: Row) -> tuple[Conversation, list[Size]]:
        """The conversation with pictures where they are found, and the sizes of those that are no frames."""
        sizes: list[Size] = []

        def looked_at(part: Part) -> Part:
            if isinstance(part, Image):
                path, size = self._picture(part.source, source, row)
                sizes.append(size)
                return part if path is part.source else Image(path, part.max_tiles)
            if isinstance(part, Video):
                _look_at_video(part, row)
            return part

        turns = [Turn(turn.role, tuple(map(looked_at, turn.parts))) for turn in conversation.turns]
        return Conversation(tuple(turns)), sizes

    def _picture(self, picture: Any, source: FileSource, row: Row) -> tuple[Any, Size]:
        try:
            return picture, picture_size(picture, self.look)
        except MediaError as error:
            found = elsewhere(picture, source.root) if isinstance(picture, str) else None
            if found is None or found == picture:
                raise _unusable("picture", picture, error, source, row) from None
            row.mend(
                "picture elsewhere", f"{picture!r} does not exist, {found!r} does.", "Give that path, or the root."
            )
            return found, picture_size(found, self.look)

    def _measure(
        self, conversation: Conversation, sizes: Sequence[Size], max_tiles: int | None, row: Row
    ) -> "Length | None":
        if self.count_tokens is None:
            return None
        try:
            length = self.count_tokens(conversation, sizes, max_tiles)
        except (MessageError, MediaError) as error:
            raise row.bad("cannot be rendered", f"{error}", "Correct the row.") from None
        if not length.num_trained:
            raise row.bad("nothing to learn", "No token of the sample is learned.", "Give it an answer.")
        if self.max_tokens is not None and length.num_tokens > self.max_tokens:
            raise row.bad(
                "too long",
                f"The sample has {length.num_tokens} tokens, {length.num_visual} of them visual; "
                f"at most {self.max_tokens} fit.",
                "Shorten or split it, lower the tile limit, or raise --max-tokens.",
            )
        return length


def _unusable(kind: str, picture: Any, error: MediaError, source: FileSource, row: Row) -> DataError:
    text = str(error)
    if "does not exist" in text:
        fix = f"Put it there or correct the path; relative paths begin at {str(source.root)!r} (--root)."
        return row.bad(f"missing {kind}", f"{picture!r:.300} does not exist.", fix)
    if "0 bytes" in text:
        return row.bad(f"empty {kind}", f"{picture!r:.200} has 0 bytes.", "Download it again, or leave the row out.")
    return row.bad(f"damaged {kind}", text, "Or leave the row out.")


def _look_at_video(video: Video, row: Row) -> None:
    try:
        with contextlib.closing(open_footage(video)) as footage:
            if video.start_s is not None or video.end_s is not None:
                find_clip(video, len(footage), footage.fps, footage.name)
    except MediaError as error:
        kind = "missing video" if "does not exist" in str(error) else "damaged video"
        raise row.bad(kind, f"{error}", "Or leave the row out.") from None


def _compare_sizes(fields: dict[str, Any], sizes: Sequence[Size], row: Row) -> None:
    """What InternVL's rows say beside their pictures. It is not used here, but tells of a wrong picture."""
    widths, heights = (fields.get(f"{name}_list", fields.get(name)) for name in ("width", "height"))
    if widths is None or heights is None or not sizes:
        return
    stated = list(zip(_as_list(widths), _as_list(heights), strict=False))
    lying = [size[::-1] for size in sizes]  # before the camera's note on how it was held is obeyed
    if len(stated) != len(sizes) or any(each not in both for each, *both in zip(stated, sizes, lying, strict=True)):
        row.mend(
            "wrong width and height",
            f"The row says {_sizes(stated)}, the pictures have {_sizes(sizes)}.",
            "Look whether these are the right pictures; then correct width and height, or leave them out.",
        )


def _as_list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]


def _sizes(sizes: Sequence[tuple[Any, Any]]) -> str:
    return ", ".join(f"{width}×{height}" for width, height in sizes)


def _compare_ids(id: Any, first_rows: dict[str, str], row: Row) -> None:
    if id is None:
        return
    first = first_rows.setdefault(str(id), row.where)
    if first is not row.where:
        row.mend("id twice", f"The id {id!r} stands at {first} already.", "Give every row an id of its own, or none.")


@dataclass(slots=True)
class Problem:
    """All rows with one kind of problem."""

    kind: str
    first: DataError
    num_mended: int = 0
    num_bad: int = 0
    rows: list[str] = field(default_factory=list)
    """The first of them."""


NUM_NAMED = 100
"""Rows of each kind of problem that are remembered by name."""


@dataclass(slots=True)
class Tally:
    """What was found in all rows."""

    num_rows: int = 0
    num_mended: int = 0
    """Rows with problems that could be put right."""
    num_bad: int = 0
    """Rows that cannot be used at all."""
    problems: dict[str, Problem] = field(default_factory=dict)

    def add(self, checked: Checked) -> None:
        self.num_rows += 1
        self.num_bad += checked.conversation is None
        self.num_mended += checked.conversation is not None and bool(checked.problems)
        for number, found in enumerate(checked.problems, 1):
            problem = self.problems.setdefault(found.kind, Problem(found.kind, found))
            final = checked.conversation is None and number == len(checked.problems)
            problem.num_bad += final
            problem.num_mended += not final
            if len(problem.rows) < NUM_NAMED and (not problem.rows or problem.rows[-1] != checked.where):
                problem.rows.append(checked.where)

    @property
    def share(self) -> float:
        """Of rows with any problem: training reads rows as they are and refuses those."""
        return (self.num_bad + self.num_mended) / self.num_rows if self.num_rows else 0.0
