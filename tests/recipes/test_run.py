"""Runs from their config to their folder: killed and resumed, fine-tuned and asked, full and by LoRA."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import SafetensorError

from cascadevl.api import load
from cascadevl.checkpoints.load import load_parts
from cascadevl.core.config import evolve
from cascadevl.core.errors import ConfigError
from cascadevl.recipes.run import train
from cascadevl.recipes.sft import sft_nano, sft_nano_lora, tiny
from cascadevl.training.config import TrainConfig, read_config, write_config
from cascadevl.training.interrupt import alone
from cascadevl.training.observe import TIMINGS
from cascadevl.training.states import states
from tests.distributed.ranks import run_ranks
from tests.training.samples import picture

ROOT = Path(__file__).parents[2]
WORDS = ("one", "two", "six", "ten", "red", "sun", "map", "cat", "dog", "ice")

HELD = """
import os, signal, sys
from pathlib import Path
from cascadevl.recipes import run
from cascadevl.training.config import read_config
config, out, last, when = sys.argv[1:]
inner, last = run.Run.save, int(last)
def save(self, state):
    if state.step == last and when == "before":
        os.kill(os.getpid(), signal.SIGKILL)
    inner(self, state)
    if state.step == last and when == "after":
        os.kill(os.getpid(), signal.SIGKILL)
run.Run.save = save
run.train(read_config(Path(config)), Path(out), resume=False)
"""
"""A run that is killed, as by -9, right before or after a state is saved."""

ASKED = """
import os, sys
from cascadevl.cli.main import main
from cascadevl.training import observe
inner, number = observe.Observer.__call__, int(sys.argv.pop())
def told(self, state, loss, norm):
    if state.step == 3:
        os.kill(os.getpid(), number)
    inner(self, state, loss, norm)
observe.Observer.__call__ = told
sys.exit(main(["train", *sys.argv[1:]]))
"""
"""A run that gets a signal in its third step."""


def small(**changes: Any) -> TrainConfig:
    """Six steps with everything that has a state: drop path, LoRA dropout excepted, EMA, accumulation."""
    settings: dict[str, Any] = {
        "steps": 6,
        "drop_path": 0.3,
        "packs": {"max_tokens": 512, "max_tiles": 12, "per_step": 2},
        "optim": {"ema": 0.9},
        "watch": {"save_every": 1, "trackers": ()},
    }
    return evolve(tiny(), **{**settings, **changes})


def rows(out: Path) -> list[dict[str, Any]]:
    """The log without what the clock says."""
    read = [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]
    return [{key: value for key, value in row.items() if key not in TIMINGS} for row in read]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    return dict(load_parts(folder, dtype="float32").model.named_parameters())


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("whole") / "run"
    train(small(), out)
    return out


@pytest.mark.parametrize(("step", "when"), [(3, "before"), (4, "after")])
def test_a_run_that_was_killed_goes_on_bit_for_bit(step: int, when: str, uninterrupted: Path, tmp_path: Path) -> None:
    write_config(small(), tmp_path / "run.yaml")
    words = [sys.executable, "-c", HELD, str(tmp_path / "run.yaml"), str(tmp_path / "run"), str(step), when]
    ran = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert ran.returncode == -signal.SIGKILL, ran.stderr
    assert len(rows(tmp_path / "run")) == step and not (tmp_path / "run" / "model").exists()
    train(small(), tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(uninterrupted)
    whole, resumed = weights(uninterrupted / "model"), weights(tmp_path / "run" / "model")
    assert all(torch.equal(tensor, resumed[name]) for name, tensor in whole.items())


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_asked_to_stop_saves_its_step(
    number: signal.Signals, uninterrupted: Path, tmp_path: Path
) -> None:
    config = small(watch={"save_every": 100})
    write_config(config, tmp_path / "run.yaml")
    words = ["-c", ASKED, "--config", str(tmp_path / "run.yaml"), "--out", str(tmp_path / "run")]
    ran = subprocess.run(
        [sys.executable, *words, str(int(number))], cwd=ROOT, capture_output=True, text=True, timeout=300
    )
    assert ran.returncode == 128 + number, ran.stderr
    assert "Stopped after step 3, which is saved" in ran.stderr and "Traceback" not in ran.stderr
    assert [path.name for path in states(tmp_path / "run" / "states")] == ["00000003"]
    train(config, tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == rows(uninterrupted)


def test_a_folder_has_one_run_at_a_time(tmp_path: Path) -> None:
    with alone(tmp_path / "run"), pytest.raises(ConfigError, match="Another process trains in"):
        train(small(), tmp_path / "run")
    assert not any((tmp_path / "run").iterdir())


def test_a_full_disk_is_told_as_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*arguments: Any) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("cascadevl.checkpoints.weights.save_file", full)
    with pytest.raises(OSError, match="No space left on device") as caught:
        train(small(), tmp_path / "run")
    assert caught.value.errno == errno.ENOSPC


def test_a_state_that_was_half_written_is_passed_over(uninterrupted: Path, tmp_path: Path) -> None:
    """A crash while saving leaves a folder of another name, or one without its last file."""
    train(small(steps=4, schedule={"kind": "constant"}), tmp_path / "run")
    kept = states(tmp_path / "run" / "states")
    assert [path.name for path in kept] == ["00000003", "00000004"]
    (kept[-1] / "state.json").unlink()
    before = rows(tmp_path / "run")
    train(small(steps=4, schedule={"kind": "constant"}), tmp_path / "run", resume=True)
    assert rows(tmp_path / "run") == before


def test_resuming_with_other_settings_is_refused_by_name(uninterrupted: Path) -> None:
    with pytest.raises(ConfigError, match=r"begun with another optim\.ema"):
        train(small(optim={"ema": 0.5}), uninterrupted, resume=True)
    with pytest.raises(ConfigError, match="add --resume"):
        train(small(), uninterrupted)


def test_two_processes_make_one_run_and_two_must_resume_it(tmp_path: Path) -> None:
    out = tmp_path / "run"
    words = ["-m", "cascadevl", "train", "tiny", "--out", str(out), "--steps", "2", "--watch.trackers"]
    for ran in run_ranks([*words, "--packs.per-step", "2", "--watch.save-every", "1"], 2):
        assert ran.returncode == 0, ran.stderr
    assert [row["step"] for row in rows(out)] == [1, 2]
    assert (out / "model" / "config.json").is_file()
    state = json.loads((states(out / "states")[-1] / "state.json").read_text())
    read = [rank["loader"]["plan"]["rank"] for rank in state["ranks"]]
    assert read == [0, 1] and sum(rank["num_samples"] for rank in state["ranks"]) == rows(out)[-1]["samples"]
    with pytest.raises(ConfigError, match="had 2 processes and cannot go on with 1"):
        train(read_config(out / "config.yaml"), out, resume=True)


def test_what_a_run_leaves_tells_what_it_was(uninterrupted: Path) -> None:
    page = (uninterrupted / "report.html").read_text()
    assert "<polyline" in page and "http" not in page.replace("http-equiv", ""), "one file that needs nothing else"
    spec = load_parts(uninterrupted / "model").spec.hash
    for words in (spec, "max_tokens: 512", "1,000,000", torch.__version__):
        assert words in page
    card = (uninterrupted / "model" / "README.md").read_text()
    assert card.startswith("---\nbase_model:") and spec in card


def test_the_average_is_what_is_saved(uninterrupted: Path, tmp_path: Path) -> None:
    train(small(optim={"ema": 0.0}), tmp_path / "run")
    averaged, last = weights(uninterrupted / "model"), weights(tmp_path / "run" / "model")
    assert rows(tmp_path / "run") == rows(uninterrupted), "the average takes no part in learning"
    assert any(not torch.equal(tensor, last[name]) for name, tensor in averaged.items())


@pytest.fixture(scope="module")
def mine(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stranger's data: ten pictures, and OpenAI messages that name them."""
    folder = tmp_path_factory.mktemp("mine")
    with open(folder / "mine.jsonl", "w", encoding="utf-8") as file:
        for word in WORDS:
            picture(word).save(folder / f"{word}.png")
            content = [{"type": "image_url", "image_url": {"url": f"{word}.png"}}, {"type": "text", "text": "Which?"}]
            messages = [{"role": "user", "content": content}, {"role": "assistant", "content": f"It is {word}."}]
            file.write(json.dumps({"messages": messages}) + "\n")
    return folder / "mine.jsonl"


def cascadevl(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "cascadevl", *map(str, words)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, timeout=400)


def test_ten_pictures_of_a_stranger_fine_tune_nano_by_one_command(mine: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    ran = cascadevl("train", "sft_nano", "--data", mine, "--out", out, "--steps", "12", "--packs.max-tiles", "10")
    assert ran.returncode == 0, ran.stderr
    assert "OUT" not in ran.stderr and "step" not in ran.stderr, "quiet where nobody looks"
    losses = [row["loss"] for row in rows(out)]
    assert len(losses) == 12 and sum(losses[-3:]) < 0.3 * sum(losses[:3])
    asked = cascadevl("ask", "--model", out / "model", mine.parent / "cat.png", "Which?")
    assert asked.returncode == 0, asked.stderr
    assert asked.stdout.startswith("It is ")


@pytest.mark.parametrize("more", [{}, {"quantize": "int4-g64"}, {"dora": True}])
def test_the_lora_of_ten_pictures_is_an_adapter_that_answers(mine: Path, tmp_path: Path, more: dict[str, Any]) -> None:
    lora = {"merge": True, **more}
    config = evolve(
        sft_nano_lora(), data=str(mine), steps=15, lora=lora, packs={"max_tiles": 10}, watch={"trackers": ()}
    )
    result = train(config, tmp_path / "run")
    assert result == tmp_path / "run" / "adapter"
    losses = [row["loss"] for row in rows(tmp_path / "run")]
    assert sum(losses[-3:]) < 0.4 * sum(losses[:3])
    with_adapter, merged = load("nano", adapter=result), load(tmp_path / "run" / "model")
    question = ("Which?", [mine.parent / "cat.png"])
    assert with_adapter.ask(*question) == merged.ask(*question) != load("nano").ask(*question)


def test_bad_samples_are_recorded_and_too_many_stop_the_run(mine: Path, tmp_path: Path) -> None:
    """One of eleven is bad: allowed at a fifth of all, refused at the default."""
    lines = [*mine.read_text().splitlines(), json.dumps({"messages": [{"role": "user", "content": "And?"}]})]
    bad = mine.parent / "bad.jsonl"
    bad.write_text("\n".join(lines) + "\n")
    config = evolve(sft_nano(), data=str(bad), steps=2, packs={"max_tiles": 10, "max_bad_share": 0.2})
    train(evolve(config, watch={"trackers": ()}), tmp_path / "run")
    recorded = [json.loads(line) for line in (tmp_path / "run" / "bad_samples.jsonl").read_text().splitlines()]
    assert {row["id"] for row in recorded} == {"bad.jsonl:11"}
