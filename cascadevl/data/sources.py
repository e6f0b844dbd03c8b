"""Where samples come from: a file, a folder or an InternVL meta file becomes rows that may be asked for by number."""

import difflib
import json
import os
from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from cascadevl.core.config import fits
from cascadevl.core.errors import ConfigError, DataError
from cascadevl.core.messages import Conversation
from cascadevl.data.conversations import FORMS, find_form, read_conversation
from cascadevl.data.rows import BOM, READERS, Row, Rows, open_rows


@dataclass(frozen=True, slots=True)
class Example:
    """One conversation to learn from, and where it stands."""

    conversation: Conversation
    """Pictures and videos are unopened: paths, data URLs, or the bytes of files."""
    id: str
    """`receipts.jsonl:17`: the file and the row, counted from 1."""


class Source(Protocol):
    """Rows by number. Opening is cheap, and reading a row touches only that row; a source can be pickled."""

    @property
    def name(self) -> str: ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Example:
        """Raises DataError for a row that cannot be learned from, IndexError behind the last."""
        ...


class FileSource:
    """The rows of one file, all of one form."""

    def __init__(self, rows: Rows, form: str, root: Path, name: str | None = None) -> None:
        self.name = name or rows.path.name
        self.rows = rows
        self.form = form
        """One of `conversations.FORMS`."""
        self.root = root
        """Where relative paths of pictures begin."""

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> Example:
        if not 0 <= index < len(self.rows):
            raise IndexError(f"{self.name} has {len(self.rows)} rows; asked for number {index}, counted from 0.")
        row = self.row(index)
        return Example(read_conversation(self.rows.read(index, row), self.form, self.root, row), row.where)

    def row(self, index: int, *, mending: bool = False) -> Row:
        return Row(f"{self.name}:{index + 1}", mending)


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A source and how it is used; the settings are those of InternVL's meta files."""

    source: Source
    repeat: float = 1.0
    """How often every row is seen in an epoch; below 1, that share of the rows, the first ones."""
    weight: float | None = None
    """Share of the draws among the data sets; None: as its rows are among all rows."""
    max_tiles: int | None = None
    """Tile limit of each picture; None leaves it to the preprocessing spec."""
    augment: bool = False
    """Pictures are seen through a JPEG of random quality."""


def open_data(path: str | Path, format: str = "auto", root: str | Path | None = None) -> list[Dataset]:
    """A file, a folder of files, or an InternVL meta file, whose sets come one by one.

    `format` is one of `conversations.FORMS`, or "auto": what the first readable row has. Relative paths of
    pictures begin at `root`, or else where the file lies. Raises DataError for what cannot be read at all.
    """
    if format != "auto" and format not in FORMS:
        raise ConfigError(f"Unknown format {format!r}. Expected auto, {', '.join(FORMS)}.")
    path = Path(path)
    if path.is_dir():
        files = sorted(each for each in path.iterdir() if each.suffix.lower() in READERS and each.name[0] != ".")
        if not files:
            raise DataError(
                str(path), "The folder holds no data.", f"Expected files such as {', '.join(READERS)}.", "no data"
            )
        return [dataset for file in files for dataset in open_data(file, format, root)]
    if (meta := _read_meta(path)) is not None:
        if root is not None:
            raise ConfigError("A meta file names the root of each of its sets: leave `root` out.")
        files = Counter(os.path.basename(str(entry.get("annotation"))) for entry in meta.values())
        shared = {file for file, count in files.items() if count > 1}
        return [_entry(path, name, entry, format, shared) for name, entry in meta.items()]
    return [Dataset(source=_open_file(path, format, Path(root) if root is not None else path.parent))]


def _open_file(path: Path, format: str, root: Path, name: str | None = None) -> FileSource:
    rows = open_rows(path)
    return FileSource(rows, _first_form(rows) if format == "auto" else format, root, name)


NUM_LOOKED_AT = 20
"""Rows in which a form is looked for."""


def _first_form(rows: Rows) -> str:
    fields: dict[str, Any] = {}
    for index in range(min(len(rows), NUM_LOOKED_AT)):
        row = Row(f"{rows.path.name}:{index + 1}", mending=True)
        try:
            fields = {key: value for key, value in rows.read(index, row).items() if value is not None}
            if form := find_form(fields):
                return form
        except DataError:  # told when the row is read
            continue
    return next(iter(FORMS))  # every row says what is wrong with it


def _read_meta(path: Path) -> dict[str, Any] | None:
    """The entries of an InternVL meta file: an object of objects that name an annotation. None for anything else."""
    if path.suffix.lower() != ".json" or not path.is_file():
        return None
    with path.open("rb") as file:
        if not file.read(4096).removeprefix(BOM).lstrip().startswith(b"{"):
            return None
        file.seek(0)
        try:
            json.loads(file.readline())
            if file.readline().strip():
                return None  # JSON lines in a file that is called .json
        except ValueError:
            pass
    try:
        meta = json.loads(path.read_bytes().removeprefix(BOM))
    except ValueError as error:
        raise DataError(
            str(path), f"This is no JSON: {error}.", "Correct it, or call JSON lines .jsonl.", "not JSON"
        ) from None
    if find_form(meta):
        return None  # a single row
    if not meta or not all(isinstance(entry, dict) for entry in meta.values()):
        raise DataError(
            str(path),
            "The file is one JSON object, but no meta file of data sets.",
            "Expected {name: {'root': …, 'annotation': …}}, a list of rows, or a row a line.",
            "no meta file",
        )
    return meta


_ENTRY = ("root", "annotation", "data_augment", "max_dynamic_patch", "repeat_time", "length", "conv_style")
"""Keys of an entry. `length` is what the writer counted, `conv_style` belongs to our preprocessing spec: not used."""


def _entry(meta: Path, name: str, entry: dict[str, Any], format: str, shared: Collection[str]) -> Dataset:
    """`shared` are names of several files: theirs are called by their entries as well, `docs/train.jsonl`."""
    where = f"{meta.name}: {name}"
    for key in entry:
        if key not in _ENTRY:
            close = difflib.get_close_matches(key, _ENTRY, n=1)
            hint = f" Did you mean {close[0]!r}?" if close else ""
            raise DataError(where, f"Unknown key {key!r}.{hint}", f"Expected {', '.join(_ENTRY)}.", "meta file")
    if not isinstance(entry.get("annotation"), str):
        raise DataError(where, "The entry has no 'annotation'.", "Name its .jsonl file there.", "meta file")
    repeat, max_tiles = entry.get("repeat_time", 1), entry.get("max_dynamic_patch")
    if not fits(float, repeat) or not repeat > 0 or (repeat > 1 and repeat != int(repeat)):
        raise DataError(
            where, f"repeat_time is {repeat!r}.", "Expected a whole number, or one between 0 and 1.", "meta file"
        )
    if max_tiles is not None and not (fits(int, max_tiles) and max_tiles >= 1):
        raise DataError(where, f"max_dynamic_patch is {max_tiles!r}.", "Expected a whole number from 1.", "meta file")
    annotation, root = (_beside(meta, entry.get(key) or "") for key in ("annotation", "root"))
    return Dataset(
        source=_open_file(annotation, format, root, f"{name}/{annotation.name}" if annotation.name in shared else None),
        repeat=float(repeat),
        max_tiles=max_tiles,
        augment=bool(entry.get("data_augment", False)),
    )


def _beside(meta: Path, path: str) -> Path:
    """Relative paths of a meta file begin where the program runs, as in the released code, or beside the file."""
    return Path(path) if path and os.path.exists(path) else meta.parent / path
