"""Files that are either whole or absent, and hashes of content."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from cascadevl.core.errors import ConfigError


def content_hash(data: bytes | str) -> str:
    """First 16 hexadecimal digits of SHA-256."""
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def canonical_json(data: Any) -> str:
    """The same data always gives the same bytes."""
    return json.dumps(data, sort_keys=True, ensure_ascii=False, separators=(",", ":"))


def write_text(path: Path, text: str) -> None:
    """Replace `path` in one step: a reader sees the old text or the new one, never a half."""
    with tempfile.NamedTemporaryFile(
        "w", encoding="utf-8", dir=path.parent, prefix=f".{path.name}.", delete=False
    ) as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    as_usual(Path(file.name))
    os.replace(file.name, path)


def write_json(path: Path, data: Any) -> None:
    write_text(path, json.dumps(data, indent=2, ensure_ascii=False) + "\n")


def writable_folder(path: Path) -> Path:
    """The folder, made if need be. Raises ConfigError where none can be, or nothing can be written to it."""
    try:
        path.mkdir(parents=True, exist_ok=True)
        tempfile.TemporaryFile(dir=path).close()
    except OSError as error:
        raise ConfigError(
            f"Nothing can be written to the folder {str(path)!r}: {error.strerror}. Choose another place."
        ) from error
    return path


@contextlib.contextmanager
def atomic_folder(target: Path) -> Iterator[Path]:
    """Fill a temporary folder beside `target`, which replaces it when all went well.

    On an error nothing of it is left and an older `target` stays as it was. Raises ConfigError where nothing can be
    written.
    """
    target = Path(target)
    work = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=writable_folder(target.parent)))
    try:
        as_usual(work)
        yield work
        if target.exists():
            _swap(work, target)
        else:
            os.replace(work, target)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise


def _swap(work: Path, target: Path) -> None:
    """Put `work` in the place of an older `target`, which comes back if that fails."""
    old = Path(tempfile.mkdtemp(prefix=f".{target.name}.old.", dir=target.parent))
    try:
        os.replace(target, old / target.name)
        try:
            os.replace(work, target)
        except BaseException:
            os.replace(old / target.name, target)
            raise
    finally:
        shutil.rmtree(old, ignore_errors=True)


def as_usual(path: Path) -> None:
    """Give a file or folder the permissions it would have had if simply created; temporary ones are private."""
    mask = os.umask(0)
    os.umask(mask)
    path.chmod((0o777 if path.is_dir() else 0o666) & ~mask)
