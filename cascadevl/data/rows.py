"""Files of rows: JSON lines, JSON lists, parquet and WebDataset tars, each row by its number.

A file is never read whole. JSON is found by the offsets of its rows, parquet by its row groups, a tar by the
offsets of its members; what it takes to find them is kept in the user's cache folder for large files.
"""

import bisect
import contextlib
import itertools
import json
import mmap
import os
import re
import tarfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any, Protocol

import numpy as np

from cascadevl.core.errors import DataError, MissingExtra
from cascadevl.core.files import content_hash
from cascadevl.core.native import cache_folder

BOM = b"\xef\xbb\xbf"
GZIP = b"\x1f\x8b"
COMPRESSED = (".gz", ".tgz", ".bz2", ".xz", ".zst", ".zip")
SMALL_BYTES = 16 * 2**20
"""The offsets of smaller files are found anew each time."""
KEPT_BYTES = 512 * 2**20
"""Row groups of one parquet file in memory; shuffled reading is fast where they hold the file, or are small."""


@dataclass(slots=True)
class Row:
    """A row being read: where it stands, and what is done about what is wrong with it."""

    where: str
    """`receipts.jsonl:17`."""
    mending: bool = False
    """Whether what can be put right without guessing is put right and noted, instead of refused."""
    mended: list[DataError] = field(default_factory=list)
    """What was put right."""

    def bad(self, kind: str, problem: str, fix: str) -> DataError:
        return DataError(self.where, problem, fix, kind)

    def mend(self, kind: str, problem: str, fix: str) -> None:
        """Raises DataError unless `mending`; the caller goes on to do what `fix` says."""
        problem_found = self.bad(kind, problem, fix)
        if not self.mending:
            raise problem_found
        self.mended.append(problem_found)


class Rows(Protocol):
    """A file of rows. Can be pickled; what is open is opened again on the other side."""

    @property
    def path(self) -> Path: ...

    def __len__(self) -> int: ...

    def read(self, index: int, row: Row) -> dict[str, Any]:
        """Raises DataError for what is no row."""
        ...


def open_rows(path: Path) -> Rows:
    """By the end of its name. Raises DataError for an unknown one, and for a file without rows."""
    if not path.is_file():
        problem = "This is a folder, not a file." if path.is_dir() else "There is no such file."
        raise DataError(str(path), problem, f"Check the path, seen from {os.getcwd()}.", "no file")
    if not path.stat().st_size:
        raise DataError(str(path), "The file is empty: 0 bytes.", "Write or download it again.", "empty file")
    kind = READERS.get(path.suffix.lower())
    if kind is None:
        unpack = "Unpack it first. " if path.suffix.lower() in COMPRESSED else ""
        raise DataError(
            str(path),
            f"Files that end with {path.suffix!r} are not read.",
            f"{unpack}Expected {', '.join(READERS)}.",
            "no data",
        )
    rows = kind(path)
    if not len(rows):
        raise DataError(str(path), "The file has no rows.", "Write at least one sample into it.", "empty file")
    return rows


class _Opened:
    """What a process opens for itself is left behind when the rows travel to another one."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._opened: Any = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_opened": None}


class JsonRows(_Opened):
    """Objects of a JSON file, one a line or the items of one list."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        with path.open("rb") as file:
            head = file.read(4096).removeprefix(BOM).lstrip()
        self._is_list = path.suffix.lower() == ".json" and head.startswith(b"[")
        if head.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\x00" in head[:4]:
            raise DataError(
                str(path),
                "The file is UTF-16, or no text at all.",
                "Save it as UTF-8, such as with `iconv -f UTF-16 -t UTF-8`.",
                "not UTF-8",
            )
        if head.startswith(GZIP):
            raise DataError(
                str(path), "The file is compressed.", "Unpack it first, such as with gunzip.", "compressed file"
            )
        self._num_rows = len(self._open()[1]) - 1

    def __len__(self) -> int:
        return self._num_rows

    def read(self, index: int, row: Row) -> dict[str, Any]:
        memory, offsets = self._open()
        data: bytes = memory[int(offsets[index]) : int(offsets[index + 1])]
        if data.startswith(BOM):
            row.mend("byte order mark", "The file begins with a byte order mark.", "Save it as UTF-8 without one.")
            data = data.removeprefix(BOM)
        return read_object(data.strip(b" \t\r\n," if self._is_list else b" \t\r\n"), row)

    def _open(self) -> tuple[mmap.mmap, np.ndarray]:
        """The file in memory as far as it is touched, and where each row begins, and the end."""
        if self._opened is None:
            with self.path.open("rb") as file:
                memory = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
            self._opened = memory, _remembered(self.path, list_offsets if self._is_list else line_offsets, memory)
        return self._opened


def read_object(data: bytes, row: Row) -> dict[str, Any]:
    """One JSON object, or why it is none."""
    if not data:
        raise row.bad("empty row", "The row is empty.", "Delete the line.")
    if b"\x00" in data:
        place = data.index(b"\x00") + 1
        raise row.bad(
            "zero byte",
            f"Byte {place} of the row is zero: the file is damaged or UTF-16.",
            "Write the row again as UTF-8.",
        )
    try:
        value = json.loads(data)
    except UnicodeDecodeError as error:
        raise row.bad(
            "not UTF-8", f"Byte {error.start + 1} of the row is no UTF-8 ({error.reason}).", "Save the file as UTF-8."
        ) from None
    except json.JSONDecodeError as error:
        near = error.doc[max(0, error.pos - 20) : error.pos + 20]
        raise row.bad(
            "not JSON", f"{error.msg} at character {error.pos + 1}, near {near!r}.", "Write the row as one JSON object."
        ) from None
    except ValueError as error:  # a number of thousands of digits
        raise row.bad("not JSON", f"{error}.", "Write the row as one JSON object.") from None
    except RecursionError:
        raise row.bad("not JSON", "The row is nested too deeply.", "Write the row as one flat JSON object.") from None
    if not isinstance(value, dict):
        raise row.bad(
            "not an object", f"The row is a JSON {type(value).__name__}, {value!r:.40}.", "Expected an object, {…}."
        )
    return value


def line_offsets(memory: mmap.mmap) -> np.ndarray:
    """Where each line begins, and where the last one ends; blank lines behind it are none."""
    breaks = [
        np.flatnonzero(np.frombuffer(memory[start : start + 2**24], np.uint8) == ord("\n")) + start + 1
        for start in range(0, len(memory), 2**24)
    ]
    offsets = np.concatenate([[0], *breaks, [len(memory)]]).astype(np.uint64)
    num = len(offsets) - 1
    while num and not memory[int(offsets[num - 1]) : int(offsets[num])].strip():
        num -= 1
    return offsets[: num + 1]


_TOKENS = re.compile(rb'"(?:[^"\\]|\\.)*"|[\[\]{},]', re.DOTALL)


def list_offsets(memory: mmap.mmap) -> np.ndarray:
    """Where each item of the outermost list begins, and where the last one ends.

    Only brackets, commas and strings are looked at. A list that is not closed gives the items up to its end.
    """
    offsets, depth, end, empty = [], 0, len(memory), True
    for match in _TOKENS.finditer(memory):
        token = match[0]
        if token in b"[{":
            empty &= depth == 0
            depth += 1
            if depth == 1:
                offsets.append(match.end())
        elif token in b"]}":
            depth -= 1
            if depth == 0:
                end = match.start()
                break
        elif depth == 1:
            empty = False
            if token == b",":
                offsets.append(match.end())
    if empty:
        offsets = []
    return np.array([*offsets, end], dtype=np.uint64)


def _remembered(path: Path, find: Callable[[mmap.mmap], np.ndarray], memory: mmap.mmap) -> np.ndarray:
    """What `find` finds; of a large file it is kept, and found again while size and time are the same."""
    if len(memory) < SMALL_BYTES:
        return find(memory)
    folder = cache_folder()
    if folder is None:
        return find(memory)
    status = path.stat()
    identity = f"{path.resolve()}|{status.st_size}|{status.st_mtime_ns}|{find.__name__}"
    kept = folder / f"rows-{content_hash(identity)}.npy"
    try:
        return np.load(kept, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError):  # not there
        offsets = find(memory)
    with contextlib.suppress(OSError):  # no room: they are found again next time
        folder.mkdir(parents=True, exist_ok=True)
        work = kept.with_suffix(f".{os.getpid()}.npy")
        np.save(work, offsets)
        os.replace(work, kept)
    return offsets


class ParquetRows(_Opened):
    """Rows of a parquet file. Row groups that were read lately stay in memory, up to `KEPT_BYTES`."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        metadata = self._open()[0].metadata
        counts = [metadata.row_group(number).num_rows for number in range(metadata.num_row_groups)]
        self._starts = [0, *itertools.accumulate(counts)]

    def __len__(self) -> int:
        return self._starts[-1]

    def read(self, index: int, row: Row) -> dict[str, Any]:
        number = bisect.bisect_right(self._starts, index) - 1
        file, groups = self._open()
        if number not in groups:
            try:
                groups[number] = file.read_row_group(number, use_threads=False)
            except (OSError, ValueError) as error:  # pyarrow's own errors are these too
                raise row.bad(
                    "damaged parquet",
                    f"Row group {number} cannot be read: {error}.",
                    "Write or download the file again.",
                ) from None
            while len(groups) > 1 and sum(group.nbytes for group in groups.values()) > KEPT_BYTES:
                del groups[next(iter(groups))]
        groups[number] = groups.pop(number)  # the last one is the one that was used last
        return groups[number].slice(index - self._starts[number], 1).to_pylist()[0]

    def _open(self) -> tuple[Any, dict[int, Any]]:
        """The file, and row groups by number."""
        if self._opened is None:
            try:
                from pyarrow.parquet import ParquetFile
            except ImportError as error:
                raise MissingExtra("Reading parquet needs pyarrow: pip install 'cascadevl[data]'") from error
            try:
                self._opened = ParquetFile(self.path, memory_map=True), {}
            except (OSError, ValueError) as error:
                raise DataError(
                    str(self.path),
                    f"This is no parquet file: {error}.",
                    "Write or download it again.",
                    "damaged parquet",
                ) from None
        return self._opened


PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm")
VIDEOS = (".mp4", ".webm", ".mkv", ".mov", ".avi")


@dataclass(frozen=True, slots=True)
class Member:
    """One file of a tar."""

    suffix: str
    """Behind the key: `.jpg`, `.0.jpg`."""
    offset: int
    size_bytes: int


class TarRows(_Opened):
    """Samples of a WebDataset tar: neighbouring members whose names agree up to the first dot.

    `.json` holds the fields, or `.txt` a caption; the pictures and videos beside it belong to it in order.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with tarfile.open(path, "r:") as tar:
                self._samples = list(samples_of(tar))
                if tar.offset <= path.stat().st_size and not _ends(path, tar.offset):
                    self._samples.append(("", ()))  # a row that says what may be missing
        except (tarfile.TarError, OSError) as error:
            raise DataError(
                str(path), f"This is no tar file: {error}.", "Expected an uncompressed tar: gunzip it.", "damaged tar"
            ) from None

    def __len__(self) -> int:
        return len(self._samples)

    def read(self, index: int, row: Row) -> dict[str, Any]:
        key, members = self._samples[index]
        if not members:
            raise row.bad(
                "damaged tar",
                "Here the tar breaks off, or goes on with what is no member: what followed is lost.",
                "Download or write it again; several tars are not joined by `cat`.",
            )
        by_kind: dict[str, list[Member]] = {}
        for member in members:
            end = "." + member.suffix.rpartition(".")[2].lower()
            by_kind.setdefault("picture" if end in PICTURES else "video" if end in VIDEOS else end, []).append(member)
        if texts := by_kind.get(".json"):
            fields = read_object(self._bytes(texts[0], row), row)
        elif texts := by_kind.get(".txt"):
            fields = {"caption": self._bytes(texts[0], row).decode("utf-8", "replace")}
        else:
            suffixes = ", ".join(member.suffix for member in members)
            raise row.bad(
                "no text", f"{key!r} has neither .json nor .txt, only {suffixes}.", f"Add {key}.json or {key}.txt."
            )
        for kind, name in (("picture", "image"), ("video", "video")):
            found = [self._bytes(member, row) for member in by_kind.get(kind, ())]
            if found:
                _put(fields, name, found, row)
        return {"id": key, **fields}

    def _bytes(self, member: Member, row: Row) -> bytes:
        if self._opened is None:
            with self.path.open("rb") as file:
                self._opened = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
        data = self._opened[member.offset : member.offset + member.size_bytes]
        if len(data) < member.size_bytes:
            raise row.bad("damaged tar", f"The tar ends within {member.suffix!r}.", "Download or write it again.")
        return data


def _ends(path: Path, offset: int) -> bool:
    """Whether a block of zeros and nothing else stands behind the last member.

    Python stops reading without a word at anything else, where a tar is cut off or damaged.
    """
    with path.open("rb") as file:
        file.seek(offset)
        block = file.read(tarfile.BLOCKSIZE)
        rest = iter(lambda: file.read(2**20), b"")
        return block == tarfile.NUL * tarfile.BLOCKSIZE and not any(chunk.strip(tarfile.NUL) for chunk in rest)


def samples_of(tar: tarfile.TarFile) -> Iterator[tuple[str, tuple[Member, ...]]]:
    """Each key with its members, in the order of the tar."""

    def split(name: str) -> tuple[str, str]:
        folder, slash, file = name.rpartition("/")
        stem, dot, suffix = file.partition(".")
        return folder + slash + stem, dot + suffix

    files = (member for member in tar if member.isfile() and not PurePosixPath(member.name).name.startswith("."))
    for key, group in itertools.groupby(files, key=lambda member: split(member.name)[0]):
        yield key, tuple(Member(split(each.name)[1], each.offset_data, each.size) for each in group)


def _put(fields: dict[str, Any], name: str, found: Sequence[bytes], row: Row) -> None:
    """Members take the place of the names by which the fields call them."""
    for key in (name, name + "s"):
        if (named := fields.pop(key, None)) is not None:
            num_named = len(named) if isinstance(named, list) else 1
            if num_named != len(found):
                raise row.bad(
                    f"number of {name}s",
                    f"The fields name {num_named} {name}(s), the tar holds {len(found)} beside them.",
                    "Put exactly the files that the fields name under the same key.",
                )
    fields[name + "s"] = list(found)


READERS: dict[str, Callable[[Path], Rows]] = {
    ".jsonl": JsonRows,
    ".ndjson": JsonRows,
    ".json": JsonRows,
    ".parquet": ParquetRows,
    ".tar": TarRows,
}
"""End of a file's name -> how it is read."""
