import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cascadevl
from cascadevl.checkpoints.layouts import EMBEDDED
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.tiny import TINY_DECODERS, tiny_parts, write_tiny
from cascadevl.cli import estimate as verb
from cascadevl.cli.estimate import QUESTION, estimate, machine_speeds, notes, read_sizes, read_words
from cascadevl.core.errors import CheckpointNotFound, MediaError, MessageError
from cascadevl.core.generation import Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine import speed
from cascadevl.engine.simple import DenseCache
from cascadevl.engine.speed import Speed
from cascadevl.models import costs
from cascadevl.models.costs import Product
from cascadevl.preprocessing.image import open_image

SPEED = Speed(flops_per_s=1e10, attention_flops_per_s=5e9, numbers_per_s=1e9, layer_s=1e-4)


@pytest.fixture
def told(capsys: pytest.CaptureFixture[str]) -> Callable[..., dict[str, Any]]:
    """What `--json` prints."""

    def run(*words: str | Path) -> dict[str, Any]:
        assert verb.main([*map(str, words), "--json", "--no-time"]) == 0
        return json.loads(capsys.readouterr().out)

    return run


def without_weights(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target, ignore=shutil.ignore_patterns("*.safetensors"))
    return target


def test_counts_are_those_of_the_processor_and_of_the_loaded_model(told, tiny, picture):
    facts = told(tiny(), picture, picture, "What are they?", "--max-tiles", "3")
    bundle = cascadevl.load(tiny())
    conversation = Conversation.ask("What are they?", [open_image(picture)] * 2)
    inputs = bundle.preprocess(conversation, max_tiles=3)
    assert facts["prompt"]["tokens"] == len(inputs.token_ids)
    assert facts["prompt"]["visual_tokens"] == inputs.num_visual_tokens
    assert facts["prompt"]["tiles"] == len(inputs.tiles)
    assert [each["grid"] for each in facts["prompt"]["pictures"]] == [list(grid) for grid in inputs.grids]
    assert [each["size"] for each in facts["prompt"]["pictures"]] == [list(size) for size in inputs.sizes]
    assert sum(each["tiles"] for each in facts["prompt"]["pictures"]) == len(inputs.tiles)
    assert sum(each["visual_tokens"] for each in facts["prompt"]["pictures"]) == inputs.num_visual_tokens
    assert facts["parameters"]["total"] == sum(p.numel() for p in bundle.model.parameters())
    weights = sum(p.nbytes for p in bundle.model.parameters())
    assert facts["memory_bytes"]["fp32"]["weights"] == weights == 2 * facts["memory_bytes"]["bf16"]["weights"]


@pytest.mark.parametrize("new_tokens", [1, 5])
def test_the_cache_is_the_one_that_generation_fills(new_tokens: int, monkeypatch):
    caches: list[DenseCache] = []

    class Watched(DenseCache):
        def __init__(self, num_layers: int) -> None:
            super().__init__(num_layers)
            caches.append(self)

    monkeypatch.setattr("cascadevl.engine.simple.DenseCache", Watched)
    bundle = cascadevl.Bundle(dataclasses.replace(tiny_parts("llama"), stop_ids=()))
    answer = bundle.generate("Read the text.", Sampling(max_new_tokens=new_tokens, loop_guard=False))
    assert answer.usage.completion_tokens == new_tokens
    (cache,) = caches
    sides = zip(cache.keys + cache.values, cache.lengths * 2, strict=True)
    stored = sum(kept[:, :length].nbytes for kept, length in sides if kept is not None)
    facts = estimate(bundle.model.config, bundle.spec, bundle.preprocess("Read the text."), new_tokens)
    assert facts["memory_bytes"]["fp32"]["kv_cache"] == stored


def test_the_answer_ends_where_the_model_has_no_more_positions():
    parts = tiny_parts("llama")
    inputs = parts.processor(Conversation.ask("Read the text."))
    room = parts.model.config.decoder.rope.longest - len(inputs.token_ids)
    assert estimate(parts.model.config, parts.spec, inputs, 10**6)["new_tokens"] == room


@pytest.mark.parametrize("layout", ["hf", "chat"])
@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss", "internlm2"])
@pytest.mark.parametrize("tied", [True, False])
def test_a_folder_without_weights_tells_the_same(family: str, layout: str, tied: bool, tmp_path: Path):
    folder = write_tiny(tmp_path / "whole", family, layout=layout, tied=tied)
    bare = without_weights(folder, tmp_path / "bare")
    assert read_sizes(bare) == read_sizes(folder)
    assert read_sizes(bare)[0] == load_parts(folder).model.config


def test_an_output_matrix_in_the_file_outweighs_the_config(tmp_path: Path):
    """As loading does: released configs say "tied" of models whose output matrix is stored apart."""
    folder = write_tiny(tmp_path / "model", "qwen2")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "tie_word_embeddings": True}))
    assert not read_sizes(folder)[0].decoder.tied
    assert read_sizes(without_weights(folder, tmp_path / "bare"))[0].decoder.tied


def test_a_prompt_without_pictures_asks_nothing_of_the_tower(told, tiny):
    facts = told(tiny(), "Who are you?")
    assert facts["prompt"]["pictures"] == []
    assert facts["flops"]["tower"] == facts["flops"]["projector"] == 0
    assert facts["memory_bytes"]["fp32"]["tower_activations"] == 0


def test_the_last_word_is_the_question_unless_it_is_a_picture(picture):
    assert read_words([]).turns == Conversation.ask(QUESTION).turns
    assert read_words(["What?"]).turns == Conversation.ask("What?").turns
    asked = read_words([str(picture)])
    assert len(asked.images) == 1
    assert QUESTION in asked.turns[0].text
    assert "What?" in read_words([str(picture), "What?"]).turns[0].text
    with pytest.raises(MediaError, match=r"recipt\.png"):
        read_words(["recipt.png"])


def test_people_get_tables_and_notes(command, tiny, picture):
    ran = command("estimate", tiny(), picture, "--no-time", "--max-new-tokens", "7")
    assert ran.code == 0, ran.err
    for text in ("200×100", "2×1", "tower", "projector", "decoder", "int4", "7 new tokens"):
        assert text in ran.out
    assert "first token" not in ran.out


def test_mistakes_exit_with_2_before_torch_loads(command, tiny, picture, tmp_path):
    other = tmp_path / "other"
    other.mkdir()
    (other / "config.json").write_text('{"model_type": "bert"}')
    for words in (
        (),
        ("nona",),
        ("OpenGVLab/InternVL3_5-1B",),
        (other,),
        (tiny(), "nowhere.png"),
        (tiny(), "nowhere.png", "What?"),
        (tiny(), ""),
        (tiny(), picture, "--max-tiles", "0"),
        (tiny(), picture, "--max-new-tokens", "0"),
    ):
        ran = command("estimate", *words, torch=False)
        assert ran.code == 2, (words, ran.err)
        assert "Traceback" not in ran.err


def test_a_prompt_longer_than_the_model_reads_is_refused(told, tiny):
    with pytest.raises(MessageError, match="the model takes 2048"):
        told(tiny(), "word " * 3000)


def test_nothing_is_fetched_to_be_counted():
    with pytest.raises(CheckpointNotFound, match="hf download OpenGVLab/InternVL3_5-1B --include"):
        verb.find("OpenGVLab/InternVL3_5-1B")
    assert verb.find("nano") == EMBEDDED / "nano"


def test_seconds_by_hand():
    """A product bound by arithmetic, one by reading, attention under a causal mask, and three layers' calls."""
    many, one = Product("fc1", 1000, 100, 100), Product("fc1", 1, 100, 100)
    scores = Product("scores", 1000, 1000, 10, visible=0.5)
    expected = 2e7 / 1e10 + (10_000 + 100) / 1e9 + 0.5 * 2e7 / 5e9 + 3e-4
    assert SPEED.seconds([many, one, scores], num_layers=3) == pytest.approx(expected)


def test_the_answer_takes_its_parts_together():
    parts = tiny_parts("qwen3")
    inputs = parts.processor(Conversation.ask("What?"))
    taken = estimate(parts.model.config, parts.spec, inputs, 5, {"fp32": SPEED})["seconds"]["fp32"]
    assert taken["decode"] == pytest.approx(4 * taken["decode_per_token"])
    assert taken["answer"] == pytest.approx(taken["prefill"] + taken["decode"])
    assert "tower" not in taken


def test_peak_is_the_largest_moment_by_hand():
    """One tile and few words: the tower is the largest moment, with the prompt's embeddings beside it."""
    parts = tiny_parts("llama", num_layers=1)
    config, inputs = parts.model.config, parts.processor(Conversation.ask("?"))
    sizes = costs.parameters(config)
    few = verb.memory(config, sizes, len(inputs.token_ids), 50, 1, "fp32")
    embeddings = len(inputs.token_ids) * config.decoder.hidden_size
    assert few["peak"] == 4 * (sizes.total + embeddings + costs.tower_activations(config, 50))
    many = verb.memory(config, sizes, 2000, 1, 1, "fp32")
    assert many["peak"] == 4 * (sizes.total + costs.prefill_activations(config.decoder, 2000)) + 4 * (
        costs.cache_numbers(config.decoder, 2000 + 256)
    )


def test_short_integers_hold_matrices_only():
    config = tiny_parts("qwen3").model.config
    sizes = costs.parameters(config)
    rest = sum(p.numel() for p in tiny_parts("qwen3").model.parameters() if p.ndim == 1)
    assert verb.memory(config, sizes, 10, 1, 1, "int4") == {"weights": (sizes.total - rest) // 2 + 2 * rest}


def test_speed_is_measured_once_for_a_processor(tmp_path: Path, monkeypatch):
    monkeypatch.setenv("CASCADEVL_CACHE", str(tmp_path / "cache"))
    calls: list[torch.dtype] = []
    monkeypatch.setattr(speed, "measure", lambda dtype: calls.append(dtype) or SPEED)
    first = machine_speeds()
    assert calls == [torch.float32, torch.bfloat16, torch.float16]
    assert machine_speeds() == first
    assert len(calls) == 3
    (tmp_path / "cache" / "speed.json").write_text("{")
    assert machine_speeds() == first
    assert len(calls) == 6
    monkeypatch.setattr(verb.doctor, "cpu", lambda: {"model": "another"})
    machine_speeds()
    assert len(calls) == 9


def test_a_folder_that_cannot_be_written_is_no_mistake(tmp_path: Path, monkeypatch):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("CASCADEVL_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(speed, "measure", lambda dtype: SPEED)
    assert machine_speeds()["fp32"] == SPEED


def test_calibration_grows_with_the_work(monkeypatch):
    """Attention, products and reading are each measured by what they do: rates that a machine can have."""
    monkeypatch.setattr(speed, "TRIALS_S", 0.005)
    monkeypatch.setattr(speed, "READ_NUMBERS", 2**20)
    found = speed.measure(torch.float32)
    assert 1e8 < found.flops_per_s < 1e15
    assert 1e8 < found.attention_flops_per_s < 1e15
    assert 1e7 < found.numbers_per_s < 1e13
    assert 1e-6 < found.layer_s < 0.1


def test_notes_say_what_does_not_fit(monkeypatch):
    monkeypatch.setattr(verb.doctor, "memory_gb", lambda: {"total": 1.0, "available": 0.5})
    facts = {
        "prompt": {"tokens": 5, "least_tokens": 3},
        "auto": "bf16",
        "new_tokens": 1,
        "memory_bytes": {"bf16": {"peak": 2**30}},
        "seconds": None,
    }
    text = "\n".join(notes(facts))
    assert "does not fit in bf16: 1.0 GiB of 0.5 GiB" in text
    assert "as few as 3 prompt tokens" in text


@pytest.mark.parametrize("family", TINY_DECODERS)
def test_every_family_is_estimated(family: str):
    parts = tiny_parts(family)
    facts = estimate(parts.model.config, parts.spec, parts.processor(Conversation.ask("What?")), 3, {"fp32": SPEED})
    json.dumps(facts)
    assert facts["flops"]["decode_per_token"] > 0


@pytest.mark.parametrize(("value", "text"), [(0, "0"), (999, "999"), (1234567, "1.23 M"), (999_600, "1000 k")])
def test_numbers_are_shortened(value: float, text: str):
    assert verb._scaled(value) == text
