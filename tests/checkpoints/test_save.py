"""Folders are written whole or not at all, and say everything that a reader needs."""

import dataclasses
import json
import os
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open

from cascadevl.checkpoints import save
from cascadevl.checkpoints.layouts import layouts
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts, write_tiny
from cascadevl.checkpoints.weights import INDEX, entries
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.models.internvl import InternVL

PARTS = tiny_parts("qwen3", std=0.2)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*") if file.is_file()}


@pytest.mark.parametrize("layout", layouts())
def test_saved_loaded_and_saved_again_is_the_same_to_the_byte(layout: str, tmp_path: Path) -> None:
    parts = dataclasses.replace(PARTS, card="# A card\n", generation={"temperature": 0.6, "eos_token_id": [258, 3]})
    save_parts(parts, tmp_path / "first", layout=layout)
    save_parts(load_parts(tmp_path / "first"), tmp_path / "second", layout=layout)
    first = _bytes(tmp_path / "first")
    assert first == _bytes(tmp_path / "second")
    assert first["README.md"] == b"# A card\n"
    assert json.loads(first["generation_config.json"])["temperature"] == 0.6


def test_both_ways_through_the_other_layout_nothing_changes(tmp_path: Path) -> None:
    for start, other in (("hf", "chat"), ("chat", "hf")):
        save_parts(PARTS, tmp_path / start, layout=start)
        save_parts(load_parts(tmp_path / start), tmp_path / f"{start}-{other}", layout=other)
        save_parts(load_parts(tmp_path / f"{start}-{other}"), tmp_path / f"{start}-{other}-{start}", layout=start)
        again = load_parts(tmp_path / f"{start}-{other}-{start}")
        assert again.spec == PARTS.spec and again.stop_ids == PARTS.stop_ids
        assert again.model.config == PARTS.model.config
        for name, tensor in again.model.state_dict().items():
            assert torch.equal(tensor, PARTS.model.state_dict()[name])


def test_shards_are_within_the_limit_and_listed_in_the_index(tmp_path: Path) -> None:
    folder, limit = tmp_path / "model", 20_000
    save_parts(PARTS, folder, max_shard_bytes=limit)
    shards = sorted(file.name for file in folder.glob("*.safetensors"))
    assert shards == [f"model-{n:05d}-of-{len(shards):05d}.safetensors" for n in range(1, len(shards) + 1)]
    found = entries(folder)
    largest = max(entry.num_bytes for entry in found.values())
    for shard in shards:
        size = sum(entry.num_bytes for entry in found.values() if entry.file.name == shard)
        assert size <= max(limit, largest)
    index = json.loads((folder / INDEX).read_text())
    assert index["weight_map"] == {name: entry.file.name for name, entry in found.items()}
    assert index["metadata"]["total_size"] == sum(entry.num_bytes for entry in found.values())
    assert not list(folder.glob("*.part"))


def test_weights_carry_the_mark_that_transformers_looks_for(tmp_path: Path) -> None:
    save_parts(PARTS, tmp_path / "model")
    with safe_open(tmp_path / "model" / "model.safetensors", framework="pt") as file:
        assert file.metadata() == {"format": "pt"}


@pytest.mark.parametrize("layout", ["HF", "gguf", ""])
def test_an_unknown_layout_is_refused(layout: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"Unknown layout {layout!r}: expected hf or chat"):
        save_parts(PARTS, tmp_path / "model", layout=layout)
    assert not os.listdir(tmp_path)


def test_a_place_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.tex").write_text("years of work")
    with pytest.raises(ConfigError, match="exists and is no model folder: choose another place"):
        save_parts(PARTS, tmp_path)
    with pytest.raises(ConfigError, match="exists and is no model folder"):
        save_parts(PARTS, tmp_path / "thesis.tex")
    assert _bytes(tmp_path) == {"thesis.tex": b"years of work"}


def test_an_empty_folder_and_an_older_model_are_replaced(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    write_tiny(folder, "qwen2", layout="chat", max_shard_bytes=20_000)
    save_parts(PARTS, folder)
    assert load_parts(folder).model.config == PARTS.model.config
    assert not list(folder.glob("model-*")), "nothing of the older model is left"


def test_a_model_may_be_saved_over_the_folder_it_came_from(tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "qwen2", std=0.2)
    parts = load_parts(folder)
    save_parts(parts, folder, layout="chat")
    for name, tensor in load_parts(folder).model.state_dict().items():
        assert torch.equal(tensor, parts.model.state_dict()[name])


@pytest.mark.parametrize("step", ["write_shards", "write_json", "write_text"])
@pytest.mark.parametrize("error", [OSError("No space left on device"), KeyboardInterrupt()])
@pytest.mark.parametrize("older", [False, True])
def test_a_save_that_fails_midway_leaves_what_was_there(
    step: str, error: BaseException, older: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "model"
    if older:
        write_tiny(folder, "qwen2")
    before = _bytes(tmp_path)
    done = getattr(save, step)

    def fail(*arguments: Any) -> None:
        done(*arguments)
        raise error

    monkeypatch.setattr(save, step, fail)
    with pytest.raises(type(error)):
        save_parts(PARTS, folder, max_shard_bytes=20_000)
    assert _bytes(tmp_path) == before
    assert os.listdir(tmp_path) == (["model"] if older else [])


def _with_shuffle(version: str) -> Parts:
    model = InternVL(evolve(PARTS.model.config, pixel_shuffle=version)).eval()
    model.load_state_dict(PARTS.model.state_dict())
    return dataclasses.replace(PARTS, model=model)


def test_the_older_pixel_shuffle_can_be_said_in_the_chat_layout_alone(tmp_path: Path) -> None:
    parts = _with_shuffle("v1")
    with pytest.raises(
        CheckpointError, match=r"pixel shuffle v1, which the hf layout cannot express.*use layout='chat'"
    ):
        save_parts(parts, tmp_path / "hf")
    assert not os.listdir(tmp_path)
    save_parts(parts, tmp_path / "chat", layout="chat")
    assert load_parts(tmp_path / "chat").model.config.pixel_shuffle == "v1"
