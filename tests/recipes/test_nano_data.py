"""nano's batches: what is trained, that they are reproducible, and that targets fit what is shown."""

import dataclasses
import itertools

import pytest
import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.data.batch import IGNORE, Batch
from cascadevl.recipes.nano import new_parts
from cascadevl.recipes.nano_data import GymBatches, make_task, taught


@pytest.fixture(scope="module")
def parts() -> Parts:
    return new_parts()


def test_the_answer_and_its_end_are_what_is_trained(parts: Parts) -> None:
    task = make_task("line")
    sample = task.sample(5)
    inputs = parts.processor(taught(task, sample))
    said = inputs.token_ids[inputs.trained].tolist()
    assert said[-1] == parts.tokenizer.id("<|im_end|>")
    assert parts.tokenizer.decode(said[:-1]) == sample.answer


def batches(parts: Parts, position: int = 0) -> GymBatches:
    mixture = {"line": 1.0, "keyvalue": 1.0}
    return GymBatches(
        mixture=mixture, processor=parts.processor, max_tokens=2048, max_tiles=24, seed=3, position=position
    )


def test_batches_go_on_where_their_position_says(parts: Parts) -> None:
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


def test_targets_stay_inside_their_sample(parts: Parts) -> None:
    batch = next(iter(batches(parts)))
    for targets in batch.targets.split(batch.lengths):
        assert targets[-1] == IGNORE
        assert (targets != IGNORE).any()


def test_questions_about_several_pictures_and_videos_have_targets_for_every_tile(parts: Parts) -> None:
    mixture = {"several": 1.0, "clips": 1.0, "captions": 1.0}
    gym = GymBatches(mixture=mixture, processor=parts.processor, max_tokens=4096, max_tiles=48, seed=3)
    batch = next(iter(gym))
    assert batch.glyphs is not None and batch.pointers is not None
    assert len(batch.glyphs) == len(batch.tiles) and (batch.glyphs > 0).any()
    said, shown = batch.pointers
    assert len(said) > 20 and (batch.targets[said] != IGNORE).all()
    assert (batch.token_ids[shown] == parts.tokenizer.id(parts.spec.image_context)).all()
