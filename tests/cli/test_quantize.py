"""`cascadevl quantize` as a user meets it."""

import json
from pathlib import Path

import pytest

from cascadevl.checkpoints.tiny import write_tiny
from tests.cli.conftest import Command


def rows(path: Path) -> Path:
    row = {"messages": [{"role": "user", "content": "What?"}, {"role": "assistant", "content": "That."}]}
    path.write_text(f"{json.dumps(row)}\n" * 4)
    return path


@pytest.mark.parametrize("weights", ["int8", "int4"])
def test_it_writes_a_folder_that_answers(command: Command, tmp_path: Path, weights: str) -> None:
    source, data = write_tiny(tmp_path / "tiny", "qwen3", num_layers=1, mlp_size=64), rows(tmp_path / "rows.jsonl")
    ran = command(
        "quantize", source, "--out", tmp_path / "few", "--weights", weights, "--kv", "int8", "--calibration", data
    )
    assert ran.code == 0, ran.err
    assert "perplexity" in ran.out and "of the bytes" in ran.out
    assert (tmp_path / "few" / "quality.md").is_file()
    assert command("ask", "--model", tmp_path / "few", "--max-new-tokens", "3", "What?").code == 0


def test_mistakes_are_told_and_leave_nothing(command: Command, tmp_path: Path) -> None:
    source, data = write_tiny(tmp_path / "tiny", "qwen3", num_layers=1), rows(tmp_path / "rows.jsonl")
    wrong = command("quantize", source, "--out", tmp_path / "few", "--weights", "int5", torch=False)
    assert wrong.code == 2 and "'int5' is no format we know" in wrong.err
    harsh = command(
        "quantize", source, "--out", tmp_path / "few", "--weights", "int8", "--calibration", data, "--max-kl", "1e-12"
    )
    assert harsh.code == 2 and "loses too much" in harsh.err
    assert not (tmp_path / "few").exists()
