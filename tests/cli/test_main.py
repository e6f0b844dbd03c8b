import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

import cascadevl
from cascadevl.cli import main as cli
from cascadevl.core.errors import ConfigError


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"]])
def test_help_lists_every_verb(words, capsys):
    assert cli.main(words) == 0
    out = capsys.readouterr().out
    for verb, (_, line) in cli.VERBS.items():
        assert verb in out
        assert line in out


def test_version_is_the_package_version(capsys):
    assert cli.main(["--version"]) == 0
    assert capsys.readouterr().out == f"cascadevl {cascadevl.__version__}\n"


def test_unknown_verb_names_the_nearest(capsys):
    assert cli.main(["doctr"]) == 2
    assert "Did you mean 'doctor'?" in capsys.readouterr().err
    assert cli.main(["receipt.png", "What?"]) == 2
    assert "Expected one of ask," in capsys.readouterr().err


@pytest.mark.parametrize(
    ("raised", "code", "said"),
    [
        (ConfigError("too few."), 2, "error: too few.\n"),
        (KeyboardInterrupt(), 130, ""),
        (ZeroDivisionError("oops"), 1, "this is our mistake, not yours"),
        (OSError(errno.ENOSPC, "No space left on device", "a.txt"), 2, "error: No space left on device (a.txt). Make"),
        (PermissionError(errno.EACCES, "Permission denied", "a.txt"), 2, "error: Permission denied (a.txt)."),
        (OSError(errno.EIO, "Input/output error"), 1, "this is our mistake, not yours"),
    ],
)
def test_exit_code_tells_whose_mistake_it_was(raised, code, said, monkeypatch, capsys):
    def room(verb):
        class Room:
            @staticmethod
            def main(arguments):
                raise raised

        return Room

    monkeypatch.setattr(cli, "_room", room)
    assert cli.main(["ask"]) == code
    err = capsys.readouterr().err
    assert said in err
    assert ("Traceback" in err) == (code == 1)


def test_debug_shows_the_traceback_of_a_users_mistake(monkeypatch, capsys):
    monkeypatch.setenv("CASCADEVL_DEBUG", "1")
    assert cli.main(["nonsense"]) == 2
    assert "Traceback" in capsys.readouterr().err


@pytest.mark.parametrize("words", ["doctor", "--help"])
def test_closed_pipe_is_quiet(words: str):
    process = subprocess.Popen(
        [sys.executable, "-m", "cascadevl", words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout and process.stderr
    process.stdout.close()
    assert process.wait(timeout=60) == cli.PIPE_CLOSED
    assert process.stderr.read() == ""
    process.stderr.close()


def test_table_and_folder_agree():
    files = {path.stem for path in Path(cli.__file__).parent.glob("*.py")}
    parts = {"__init__", "main", "batch", "overlay", "view"}  # of verbs
    parts |= {"bench_serve", "data_check", "data_diff", "data_schema", "data_show", "data_stats"}
    assert files - parts == set(cli.VERBS)
    assert {f"cascadevl.cli.{verb}" for verb in cli.VERBS} == {room for room, _ in cli.VERBS.values()}
