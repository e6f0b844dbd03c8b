"""The recipe builds, its batches are reproducible, and a run that is resumed goes on bit for bit."""

import dataclasses
import itertools
from pathlib import Path

import pytest
import torch

from cascadevl.data.batch import IGNORE, Batch
from cascadevl.gym import TASKS
from cascadevl.models.internvl import InternVL
from cascadevl.recipes import nano


@pytest.fixture(scope="module")
def parts() -> nano.Parts:
    return nano.new_parts()


def test_every_stage_names_families_that_exist_and_steps_that_fit() -> None:
    for stage in nano.stages():
        assert stage.warmup + stage.decay <= stage.steps
        for name in stage.mixture:
            assert name.partition(":")[0] in TASKS
            assert nano.make_task(name).sample(0).answer


def test_nano_is_within_its_size(parts: nano.Parts) -> None:
    num_parameters = sum(p.numel() for p in parts.model.parameters())
    assert 5e6 <= num_parameters <= 10e6
    assert parts.spec.resize == "pil" and parts.spec.max_tiles == 6


def test_the_answer_and_its_end_are_what_is_trained(parts: nano.Parts) -> None:
    task = nano.make_task("line")
    sample = task.sample(5)
    inputs = parts.processor(nano.taught(task, sample))
    said = inputs.token_ids[inputs.trained].tolist()
    assert said[-1] == parts.tokenizer.id("<|im_end|>")
    assert parts.tokenizer.decode(said[:-1]) == sample.answer


def batches(parts: nano.Parts, position: int = 0) -> nano.GymBatches:
    mixture = {"line": 1.0, "keyvalue": 1.0}
    return nano.GymBatches(
        mixture=mixture, processor=parts.processor, max_tokens=2048, max_tiles=24, seed=3, position=position
    )


def test_batches_go_on_where_their_position_says(parts: nano.Parts) -> None:
    whole = batches(parts)
    uninterrupted = list(itertools.islice(whole, 4))
    first = batches(parts)
    list(itertools.islice(first, 2))
    resumed = list(itertools.islice(batches(parts, first.position), 2))
    for expected, got in zip(uninterrupted[2:], resumed, strict=True):
        assert_same(expected, got)


def assert_same(expected: Batch, got: Batch) -> None:
    for field in dataclasses.fields(Batch):
        ours, theirs = getattr(expected, field.name), getattr(got, field.name)
        assert torch.equal(ours, theirs) if isinstance(ours, torch.Tensor) else ours == theirs, field.name


def test_targets_stay_inside_their_sample(parts: nano.Parts) -> None:
    batch = next(iter(batches(parts)))
    for targets in batch.targets.split(batch.lengths):
        assert targets[-1] == IGNORE
        assert (targets != IGNORE).any()


def test_questions_about_several_pictures_and_videos_have_targets_for_every_tile(parts: nano.Parts) -> None:
    mixture = {"several": 1.0, "clips": 1.0, "captions": 1.0}
    gym = nano.GymBatches(mixture=mixture, processor=parts.processor, max_tokens=4096, max_tiles=48, seed=3)
    batch = next(iter(gym))
    assert batch.glyphs is not None and batch.pointers is not None
    assert len(batch.glyphs) == len(batch.tiles) and (batch.glyphs > 0).any()
    said, shown = batch.pointers
    assert len(said) > 20 and (batch.targets[said] != IGNORE).all()
    assert (batch.token_ids[shown] == parts.tokenizer.id(parts.spec.image_context)).all()


def run(parts: nano.Parts, out: Path, stops: list[int], seed: int = 0) -> dict[str, torch.Tensor]:
    """Train a few steps, interrupted and resumed at each of `stops`; returns the final weights."""
    stage = nano.Stage(name="short", mixture={"line": 1.0}, steps=stops[-1], lr=1e-3, warmup=1, max_tiles=12)
    modules: dict[str, torch.nn.Module] = {
        "model": nano.new_parts(seed).model,
        "head": nano.new_head(nano.VISION.hidden_size, torch.Generator().manual_seed(seed)),
    }
    model = modules["model"]
    assert isinstance(model, InternVL)
    fresh = dataclasses.replace(parts, model=model)
    for number, stop in enumerate(stops):
        part = dataclasses.replace(stage, steps=stop)
        nano.run_stage(part, 0, fresh, modules, out, seed=seed, resume=number > 0, echo=lambda line: None)
        state = out / "last" / "state.json"
        state.write_text(
            state.read_text().replace('"stage": 1,', '"stage": 0,').replace('"step": 0', f'"step": {stop}')
        )
    return {name: p.detach().clone() for name, p in modules["model"].named_parameters()}


def test_a_resumed_run_equals_an_uninterrupted_one_bit_for_bit(parts: nano.Parts, tmp_path: Path) -> None:
    straight = run(parts, tmp_path / "a", [4])
    resumed = run(parts, tmp_path / "b", [2, 4])
    assert straight.keys() == resumed.keys()
    for name, weight in straight.items():
        assert torch.equal(weight, resumed[name]), name
