"""The command line as a user meets it: a process with exit code, stdout and stderr."""

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import pytest
from PIL import Image

from cascadevl.checkpoints.tiny import write_tiny

NO_TORCH = """
import sys

class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            raise ModuleNotFoundError("No module named 'torch'", name=name)

sys.meta_path.insert(0, NoTorch())
"""


@dataclass(frozen=True)
class Ran:
    code: int
    out: str
    err: str


class Command(Protocol):
    def __call__(self, *words: str | Path, stdin: str = "", torch: bool = True) -> Ran: ...


@pytest.fixture
def command(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Command:
    """`python -m cascadevl WORDS` in an empty folder. `torch=False`: importing torch fails there."""
    blocked = tmp_path_factory.mktemp("without_torch")
    (blocked / "sitecustomize.py").write_text(NO_TORCH)

    def run(*words: str | Path, stdin: str = "", torch: bool = True) -> Ran:
        root = Path(__file__).parents[2]
        path = [str(root)] if torch else [str(blocked), str(root)]
        done = subprocess.run(
            [
                sys.executable,
                "-W",
                "error::DeprecationWarning:cascadevl",
                "-m",
                "cascadevl",
                *map(str, words),
            ],
            input=stdin,
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path), "COLUMNS": "100"},
            timeout=120,
        )
        return Ran(done.returncode, done.stdout, done.stderr)

    return run


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[[int], Path]:
    """A tiny random member as a folder, one per seed."""
    home = tmp_path_factory.mktemp("models")

    def folder(seed: int = 0) -> Path:
        path = home / f"tiny-{seed}"
        return path if path.exists() else write_tiny(path, "qwen3", seed=seed)

    return folder


@pytest.fixture
def picture(tmp_path: Path) -> Path:
    """A PNG of 200 × 100 pixels."""
    path = tmp_path / "picture.png"
    Image.linear_gradient("L").resize((200, 100)).convert("RGB").save(path)
    return path
