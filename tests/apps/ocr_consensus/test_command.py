import json
import stat

import pytest

from cascadevl.cli.main import main
from tests.apps.ocr_consensus.fakes import page


@pytest.fixture
def programs(tmp_path, monkeypatch):
    """gocr and ocrad as scripts that print what stands in a file beside them."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("gocr", "ocrad"):
        program = folder / name
        program.write_text(f'#!/bin/sh\n[ "$1" = --version ] && echo 1.0 || {{ cat >&-; cat {folder}/{name}.txt; }}\n')
        program.chmod(program.stat().st_mode | stat.S_IXUSR)
        (folder / f"{name}.txt").write_text("total 12 for a good long line of words\n")
    monkeypatch.setenv("PATH", str(folder), prepend=":")
    return folder


def command(tmp_path, *words: str) -> int:
    scan = page(tmp_path / "scan.png", 240)
    return main(["app", "ocr", str(scan), "--out", str(tmp_path / "out"), "--readers", "gocr,ocrad", *words])


def test_agreement_is_exit_code_0(programs, tmp_path, capsys):
    assert command(tmp_path, "--json") == 0
    out, err = capsys.readouterr()
    assert json.loads(out)["num_doubtful"] == 0
    assert "1 pages, 0 doubtful" in err
    assert (tmp_path / "out" / "scan.txt").read_text() == "total 12 for a good long line of words\n"


def test_doubt_is_exit_code_3_unless_it_is_allowed(programs, tmp_path):
    (programs / "ocrad.txt").write_text("total 72 for a good long line of words\n")
    assert command(tmp_path) == 3
    assert command(tmp_path, "--max-number-doubt", "0.6") == 0
    assert command(tmp_path, "--max-number-doubt", "0.6", "--max-doubt", "0.01") == 3
    assert command(tmp_path, "--max-number-doubt", "0.6", "--max-error", "0.01") == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--max-doubt", "7"], "max_doubt must lie in"),
        (["--max-error", "7"], "max_error must lie in"),
        (["--readers", "gocr"], "nobody to disagree with"),
        (["--expert", "gocr"], "must be one model"),
    ],
)
def test_mistakes_are_exit_code_2(programs, tmp_path, capsys, words, message):
    assert command(tmp_path, *words) == 2
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("word", "value"), [("--workers", "0"), ("--timeout", "-1"), ("--truth", "none/such")])
def test_impossible_values_are_exit_code_2(programs, tmp_path, capsys, word, value):
    with pytest.raises(SystemExit) as ended:
        command(tmp_path, word, value)
    assert ended.value.code == 2
    assert word in capsys.readouterr().err


def test_pages_that_are_not_there_are_a_mistake(programs, tmp_path, capsys):
    assert main(["app", "ocr", str(tmp_path / "x.png"), "--out", str(tmp_path), "--readers", "gocr,ocrad"]) == 2
    assert "No such page" in capsys.readouterr().err
