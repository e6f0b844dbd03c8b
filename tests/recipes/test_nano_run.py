"""A run of nano: stopped and resumed it goes on bit for bit, begun later it leaves stages out."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from cascadevl.checkpoints.load import load_parts
from cascadevl.core.errors import ConfigError
from cascadevl.core.hardware import cpu_multiplies_bf16
from cascadevl.recipes.nano_run import train
from cascadevl.recipes.nano_stages import Stage

SHORT = Stage(name="short", mixture={"line:difficulty=easy,max_tiles=1": 1.0}, steps=2, lr=1e-3, warmup=1, max_tiles=4)
COURSE = (
    dataclasses.replace(SHORT, name="tower", parts=("vision_model.", "out."), next_token=False),
    dataclasses.replace(SHORT, name="whole", mixture={"line:max_tiles=2": 1.0, **SHORT.mixture}, steps=3),
)
Weights = dict[str, torch.Tensor]
needs_bf16 = pytest.mark.skipif(not cpu_multiplies_bf16(), reason="no units for bf16")


def trained(out: Path, **settings: Any) -> Weights:
    """The weights at the end of a run that saves its state after every stage only, unless told otherwise."""
    quiet = {"echo": lambda line: None, "log_every": 1, "save_every_s": 1e9}
    return train(out, **{"course": COURSE, "precision": "float32", **quiet, **settings}).model.state_dict()


def assert_same(expected: Weights, got: Weights) -> None:
    assert expected.keys() == got.keys()
    for name, tensor in expected.items():
        assert torch.equal(tensor, got[name]), name


def differ(one: Weights, other: Weights) -> set[str]:
    """Parts of the model that are not the same."""
    return {name.partition(".")[0] for name, tensor in one.items() if not torch.equal(tensor, other[name])}


class Stopped(Exception):
    pass


def stop_before(line: int) -> Callable[[str], None]:
    """An `echo` that ends the run at its line of this number: the step is taken, and not yet saved."""
    lines: list[str] = []

    def echo(text: str) -> None:
        lines.append(text)
        if len(lines) == line:
            raise Stopped

    return echo


@pytest.fixture(scope="module")
def straight(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Weights]:
    out = tmp_path_factory.mktemp("runs") / "straight"
    return out, trained(out)


@pytest.mark.parametrize("line", [2, 3, 5])
def test_a_run_that_is_stopped_goes_on_bit_for_bit(line: int, straight: tuple[Path, Weights], tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        trained(tmp_path, echo=stop_before(line), save_every_s=0)
    assert not (tmp_path / "model").exists()
    assert_same(straight[1], trained(tmp_path, resume=True))


def test_every_step_is_logged_with_its_stage(straight: tuple[Path, Weights]) -> None:
    rows = [json.loads(line) for line in (straight[0] / "log.jsonl").read_text().splitlines()]
    assert [(row["stage"], row["step"]) for row in rows] == [
        *[("tower", 1), ("tower", 2)],
        *[("whole", 1), ("whole", 2), ("whole", 3)],
    ]
    assert all(row["samples_per_s"] > 0 for row in rows) and "next_token" not in rows[0]


def test_stages_before_the_first_are_left_out(tmp_path: Path) -> None:
    alone = trained(tmp_path / "tower", course=COURSE[:1])
    begun = load_parts(tmp_path / "tower" / "start", dtype="float32").model.state_dict()
    assert differ(begun, alone) == {"vision_model"}
    later = trained(tmp_path / "later", from_stage="whole")
    rows = [json.loads(line) for line in (tmp_path / "later" / "log.jsonl").read_text().splitlines()]
    assert [row["stage"] for row in rows] == ["whole"] * 3
    assert differ(begun, later) == {"vision_model", "mlp1", "language_model"}
    with pytest.raises(ConfigError, match="no stage 'wohle'"):
        trained(tmp_path / "never", from_stage="wohle")


def test_a_run_begun_with_the_state_of_another_ends_like_one_run(
    straight: tuple[Path, Weights], tmp_path: Path
) -> None:
    trained(tmp_path / "first", course=COURSE[:1])
    assert_same(straight[1], trained(tmp_path / "second", init=str(tmp_path / "first"), from_stage="whole"))


@needs_bf16
def test_products_of_bf16_leave_weights_float32_and_near(straight: tuple[Path, Weights], tmp_path: Path) -> None:
    brief = trained(tmp_path, precision="bfloat16")
    assert all(tensor.dtype == torch.float32 for tensor in brief.values())
    begun = load_parts(tmp_path / "start", dtype="float32").model.state_dict()
    moved = torch.cat([(straight[1][name] - begun[name]).flatten() for name in brief])
    moved_brief = torch.cat([(brief[name] - begun[name]).flatten() for name in brief])
    assert differ(straight[1], brief) and torch.cosine_similarity(moved, moved_brief, dim=0) > 0.9


@needs_bf16
def test_a_run_goes_on_with_the_products_it_began_with(tmp_path: Path) -> None:
    whole = trained(tmp_path / "whole", precision="bfloat16")
    with pytest.raises(Stopped):
        trained(tmp_path / "stopped", precision="bfloat16", echo=stop_before(5), save_every_s=0)
    with pytest.raises(ConfigError, match="begun with bfloat16 products"):
        trained(tmp_path / "stopped", resume=True, precision="float32")
    assert_same(whole, trained(tmp_path / "stopped", resume=True, precision="auto"))


def test_what_comes_out_keeps_a_share_of_what_went_in(straight: tuple[Path, Weights], tmp_path: Path) -> None:
    begun = load_parts(straight[0] / "start", dtype="float32").model.state_dict()
    kept = trained(tmp_path, keep=0.25)
    for name, weight in straight[1].items():
        torch.testing.assert_close(kept[name], 0.75 * weight + 0.25 * begun[name])
    assert "language_model" in differ(kept, straight[1])
    assert_same(straight[1], trained(tmp_path, resume=True))


@pytest.mark.parametrize("keep", [-0.1, 1.0, float("nan")])
def test_a_share_is_a_share(keep: float, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="keep is a share"):
        trained(tmp_path, keep=keep)
