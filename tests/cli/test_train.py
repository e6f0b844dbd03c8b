"""`cascadevl train` as a user meets it: help and mistakes without torch, YAML and flags."""

from pathlib import Path

import pytest

from cascadevl.cli import train
from cascadevl.core.config import evolve
from cascadevl.recipes.sft import tiny
from cascadevl.training.config import write_config
from tests.cli.conftest import Command


def test_help_lists_recipes_and_needs_no_torch(command: Command) -> None:
    for words in (["--help"], ["tiny", "--help"], ["nano", "--help"]):
        ran = command("train", *words, torch=False)
        assert ran.code == 0, ran.err
    listed = command("train", "--help", torch=False).out
    assert "internvl3_5_SIZE_sft" in listed and "sft_nano" in listed and "torchrun" in listed


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["sft_nanno", "--out", "x"], "Did you mean 'sft_nano'"),
        (["--out", "x"], "The recipe comes first"),
        (["--config"], "--config needs a file"),
        (["--config", "no.yaml", "--out", "x"], "no.yaml cannot be read"),
        (["sft_nano", "--out", "x"], "what to learn from: add --data"),
        (["internvl3_8b_sft", "--out", "x", "--data", "."], "what to start from: add --init"),
        (["sft_nano", "--out", "x", "--data", "no.jsonl"], "no data at 'no.jsonl'"),
        (["sft_nano", "--out", "x", "--data", ".", "--init", "nonano"], "nonano"),
        (["tiny", "--out", "x", "--resume"], "holds no run to go on with"),
        (["tiny", "--out", "x", "--lora.dora"], "set lora.rank"),
        (["tiny", "--out", "x", "--schedule.warmup-steps", "99"], "99 warm-up steps exceed"),
        (["nano", "--out", "x", "--resume"], "holds no run to go on with"),
    ],
)
def test_mistakes_are_told_before_torch_is_loaded(words: list[str], told: str, command: Command) -> None:
    ran = command("train", *words, torch=False)
    assert ran.code == 2, ran.err
    assert told in ran.err and "Traceback" not in ran.err


def test_files_that_cannot_be_read_are_told_before_torch_is_loaded(command: Command, tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_bytes('{"text": "Ü"}'.encode("utf-16"))
    ran = command("train", "sft_nano", "--out", "run", "--data", "x.jsonl", torch=False)
    assert ran.code == 2 and "UTF-16" in ran.err and "Traceback" not in ran.err
    assert not (tmp_path / "run").exists()


def test_a_folder_with_a_run_is_not_written_over(command: Command, tmp_path: Path) -> None:
    (tmp_path / "run" / "states" / "00000001").mkdir(parents=True)
    ran = command("train", "tiny", "--out", "run", torch=False)
    assert ran.code == 2 and "add --resume to go on with it" in ran.err


def test_flags_change_what_the_yaml_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = evolve(tiny(), steps=7, optim={"lr": 3e-3})
    write_config(config, tmp_path / "run.yaml")
    seen = []
    monkeypatch.setattr("cascadevl.recipes.run.train", lambda *a, **k: seen.append((a, k)) or tmp_path / "model")
    train.main(["--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run"), "--optim.eps", "1e-5"])
    assert seen == [((evolve(config, optim={"eps": 1e-5}), tmp_path / "run"), {"resume": False})]


def test_resume_needs_only_the_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "run" / "states" / "00000001").mkdir(parents=True)
    write_config(evolve(tiny(), steps=7), tmp_path / "run" / "config.yaml")
    seen = []
    monkeypatch.setattr("cascadevl.recipes.run.train", lambda *a, **k: seen.append((a, k)) or tmp_path / "model")
    train.main(["--out", str(tmp_path / "run"), "--resume"])
    assert seen == [((evolve(tiny(), steps=7), tmp_path / "run"), {"resume": True})]
