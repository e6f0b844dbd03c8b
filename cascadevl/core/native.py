"""C sources, compiled at first use by whatever compiler the machine has.

No build step, one wheel for every system, and the instructions of the very processor. Whoever calls has a slower
way to the same result, for machines without a compiler and for CASCADEVL_NATIVE=0.
"""

import ctypes
import functools
import logging
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

from cascadevl.core.files import content_hash
from cascadevl.core.hardware import cpu_flags

COMPILERS = ("cc", "gcc", "clang")

FLAGS = ("-O3", "-ffp-contract=off", "-fno-fast-math", "-fPIC", "-shared")
"""Fast, but floats are rounded as the source says: nothing is fused or reordered."""

_log = logging.getLogger("cascadevl")


@functools.cache
def load(source: Path, flags: tuple[str, ...] = ()) -> ctypes.CDLL | None:
    """The library made of one C file, and of those beside it; None, and one line in the log, where there can be none.

    It is kept in $CASCADEVL_CACHE, else $XDG_CACHE_HOME/cascadevl, else ~/.cache/cascadevl, for the next process;
    where that cannot be written, it ends with this one.
    """
    if os.environ.get("CASCADEVL_NATIVE") == "0":
        return None
    # A processor whose features are unknown cannot be told from another that shares the cache.
    flags = (*FLAGS, *(["-march=native"] if cpu_flags() else []), *flags)
    texts = [path.read_text(encoding="utf-8") for path in sorted(source.parent.glob("*.c"))]  # it may include others
    made_for = (source.name, texts, flags, platform.machine(), sorted(cpu_flags()))
    folder, name = cache_folder(), f"{source.stem}-{content_hash(repr(made_for))}"
    for kept in _kept(folder, name):
        try:
            return ctypes.CDLL(str(kept))
        except OSError:  # made for another C library, perhaps
            continue
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        _log.info("No C compiler (%s): slower code does the work of %s.", ", ".join(COMPILERS), source.name)
        return None
    try:
        try:
            return _build([compiler, *flags, str(source)], folder, name)
        except OSError:
            return _build([compiler, *flags, str(source)], None, name)
    except (OSError, subprocess.SubprocessError) as problem:
        reason = (getattr(problem, "stderr", None) or str(problem)).strip()
        _log.warning("Slower code does the work of %s, which %s does not compile: %s", source.name, compiler, reason)
        return None


def cache_folder() -> Path | None:
    """Where what was made or measured once on this machine is kept; None: nowhere."""
    own, common = (os.environ.get(name) for name in ("CASCADEVL_CACHE", "XDG_CACHE_HOME"))
    try:
        return Path(own) if own else Path(common or "~/.cache").expanduser() / "cascadevl"
    except RuntimeError:  # a user without a home
        return None


def _kept(folder: Path | None, name: str) -> Iterator[Path]:
    """Libraries of that name which are whole: to load a damaged one may end the process."""
    for path in folder.glob(f"{name}-*.so") if folder else ():
        try:
            if path.stem == f"{name}-{content_hash(path.read_bytes())}":
                yield path
        except OSError:  # not ours to read
            continue


def _build(command: list[str], folder: Path | None, name: str) -> ctypes.CDLL:
    """Compile, keep in `folder` if there is one, load. Processes may race: each moves a whole file into its place."""
    if folder:
        folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{name}.", dir=folder) as work:
        path = Path(work) / f"{name}.so"
        subprocess.run([*command, "-o", str(path)], check=True, capture_output=True, text=True, timeout=120)
        if folder:
            path = path.replace(folder / f"{name}-{content_hash(path.read_bytes())}.so")
        return ctypes.CDLL(str(path))  # which outlives its file
