"""The log, what it keeps after a resume, quiet terminals, trackers, and what the model says as it learns."""

import io
import json
from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from rich.console import Console

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import MissingExtra
from cascadevl.distributed.mesh import World
from cascadevl.training import observe
from cascadevl.training.fit import FitState
from cascadevl.training.objectives import Loss
from cascadevl.training.observe import Observer, Screen, TensorBoard, answered, cut_log, make_trackers, question
from tests.training.samples import batch_of

PARTS = tiny_parts("qwen3", std=0.2)


class Kept:
    """A tracker that keeps what it is sent."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, dict[str, float]]] = []

    def log(self, step: int, values: Mapping[str, float]) -> None:
        self.seen.append((step, dict(values)))

    def close(self) -> None:
        self.seen.append((-1, {}))


def observer(out: Path, screen: Screen | None = None, **more: object) -> Observer:
    return Observer(
        out=out,
        world=World(),
        learning_rate=lambda: 0.5,
        flops=lambda batches: 1000,
        flops_per_s=1e6,
        trackers=[Kept()],
        screen=screen,
        **more,  # type: ignore[arg-type]
    )


def test_every_step_is_a_line_and_trackers_get_the_same(tmp_path: Path) -> None:
    watch = observer(tmp_path)
    for step in (1, 2):
        state = FitState(step=step, num_samples=3 * step, num_tokens=100 * step)
        watch(state, Loss(torch.tensor(2.0), {"next_token": 1.5}, 7), 0.25)
    watch.close()
    rows = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    assert [(r["step"], r["samples"], r["tokens"]) for r in rows] == [(1, 3, 100), (2, 6, 200)]
    assert (rows[1]["loss"], rows[1]["next_token"], rows[1]["lr"], rows[1]["gradient_norm"]) == (2.0, 1.5, 0.5, 0.25)
    assert rows[1]["tokens_per_s"] == pytest.approx(100 / rows[1]["step_s"])
    assert rows[1]["mfu"] == pytest.approx(1e-3 / rows[1]["step_s"])
    kept = watch.trackers[0]
    assert isinstance(kept, Kept)
    assert [step for step, _ in kept.seen] == [1, 2, -1]
    assert kept.seen[0][1] == {key: value for key, value in rows[0].items() if key != "step"}


def test_a_resumed_run_cuts_the_log_back_to_its_state(tmp_path: Path) -> None:
    path = tmp_path / "log.jsonl"
    path.write_text("".join(json.dumps({"step": step}) + "\n" for step in (1, 2, 3)) + '{"step": 4, "lo')
    cut_log(path, 2)
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'
    cut_log(tmp_path / "none.jsonl", 2)
    assert not (tmp_path / "none.jsonl").exists()


@pytest.mark.parametrize("terminal", [True, False])
def test_the_screen_speaks_to_terminals_alone(terminal: bool) -> None:
    text = io.StringIO()
    screen = Screen(10, Console(file=text, force_terminal=terminal, width=120))
    screen.show({"step": 3, "loss": 1.25, "tokens_per_s": 1234.0, "mfu": 0.5, "memory_bytes": 2**30})
    screen.say("hello")
    screen.close()
    assert ("loss 1.25" in text.getvalue() and "hello" in text.getvalue()) == terminal
    assert bool(text.getvalue().strip()) == terminal


def test_trackers_are_made_by_name_and_missing_ones_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(observe.importlib.util, "find_spec", lambda name: None)
    assert make_trackers(("tensorboard",), tmp_path, "x", {}) == []
    with pytest.raises(MissingExtra, match="pip install wandb"):
        make_trackers(("wandb",), tmp_path, "x", {})


@pytest.mark.filterwarnings("ignore")
def test_tensorboard_writes_an_event_file(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard", reason="the extra `train` is not installed")
    tracker = TensorBoard(tmp_path, "x", {})
    tracker.log(1, {"loss": 2.0})
    tracker.close()
    (file,) = (tmp_path / "tensorboard").iterdir()
    assert b"loss" in file.read_bytes()


def test_hosted_trackers_get_config_and_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "trackio.py").write_text(
        "calls = []\n"
        "def init(**settings): calls.append(settings)\n"
        "def log(values, step): calls.append((values, step))\n"
        "def finish(): calls.append('end')\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    (tracker,) = make_trackers(("trackio",), tmp_path / "run", "mine", {"seed": 1})
    tracker.log(4, {"loss": 2.0})
    tracker.close()
    import trackio  # type: ignore[import-not-found]

    settings = {"project": "cascadevl", "name": "mine-run", "config": {"seed": 1}}
    assert trackio.calls == [settings, ({"loss": 2.0}, 4), "end"]


@pytest.mark.parametrize(("index", "word"), [(0, "seven"), (1, "a"), (2, "total")])
def test_a_sample_of_a_pack_becomes_the_question_it_was(index: int, word: str) -> None:
    batch = batch_of(PARTS, "seven", "a", "total")
    inputs, expected = question(PARTS, batch, index)
    asked = PARTS.processor([{"role": "user", "content": content_of(word)}])
    assert expected == word
    assert torch.equal(inputs.token_ids, asked.token_ids)
    assert torch.equal(inputs.tiles, asked.tiles)


def content_of(word: str) -> list[dict]:
    from tests.training.samples import picture

    return [{"type": "image", "image": picture(word)}, {"type": "text", "text": "Read."}]


def test_answers_are_written_down_and_training_goes_on(tmp_path: Path) -> None:
    PARTS.model.train()
    watch = observer(tmp_path, sample_every=2, parts=PARTS)
    before = torch.get_rng_state()
    for step in (1, 2, 3):
        state = FitState(step=step, last=(batch_of(PARTS, "seven", "a"),))
        watch(state, Loss(torch.tensor(2.0), {}, 7), 0.25)
    (row,) = [json.loads(line) for line in (tmp_path / "samples.jsonl").read_text().splitlines()]
    assert (row["step"], row["id"], row["expected"]) == (2, "seven", "seven")
    assert row["said"] == answered(PARTS, batch_of(PARTS, "seven", "a"), 2)["said"]
    assert PARTS.model.training and torch.equal(torch.get_rng_state(), before)
