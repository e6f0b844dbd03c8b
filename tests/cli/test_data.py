import dataclasses
import json
from pathlib import Path

import torch

from cascadevl.checkpoints.load import load_processor
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.cli.data_diff import pixel_delta, side_by_side
from cascadevl.cli.view import collapse
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.image import open_image
from cascadevl.preprocessing.spec_file import read_spec


def variant(folder: Path, target: Path, **changes) -> Path:
    """The same model with other settings in its preprocessing spec, weights left out."""
    target.mkdir()
    for path in folder.iterdir():
        if path.suffix != ".safetensors":
            (target / path.name).write_bytes(path.read_bytes())
    spec = read_spec(folder)
    assert spec
    dataclasses.replace(spec, **changes).save(target)
    return target


def test_diff_of_a_model_and_itself_is_the_same(command, tiny, picture):
    ran = command("data", "diff", tiny(), tiny(1), picture)
    assert ran.code == 0, ran.err
    assert ran.out.startswith("Same: ")


def test_diff_names_fields_tokens_and_pixels(command, tiny, picture, tmp_path):
    fewer = variant(tiny(), tmp_path / "fewer", max_tiles=1, system="Be brief.")
    ran = command("data", "diff", tiny(), fewer, picture, "--json")
    assert ran.code == 0, ran.err
    facts = json.loads(ran.out)
    assert not facts["same"]
    assert set(facts["spec"]) == {"max_tiles", "system", "hash"}
    assert facts["pixels"] is None
    assert facts["a"]["grids"] == [[2, 1]]
    assert facts["b"]["grids"] == [[1, 1]]
    text = command("data", "diff", tiny(), fewer, picture).out
    assert "max_tiles" in text
    assert "Be brief." in text


def test_diff_measures_the_resize_kernel(command, tiny, picture, tmp_path):
    faster = variant(tiny(), tmp_path / "faster", resize="torch_uint8")
    facts = json.loads(command("data", "diff", tiny(), faster, picture, "--json").out)
    assert set(facts["spec"]) == {"resize", "hash"}
    assert facts["pixels"]["max"] <= 2
    assert facts["a"]["prompt"] == facts["b"]["prompt"]


def test_mistakes_exit_with_2_before_torch_loads(command, tiny, picture):
    for words in (
        ("show", picture, "What?", "--model", "nona"),
        ("show", "nowhere.png", "What?"),
        ("show", picture, ""),
        ("show", picture),
        ("show", "nowhere.jsonl"),
        ("check", "nowhere.jsonl"),
        ("check", picture),
        ("check", picture, "--max-tokens", "9"),
        ("stats", "nowhere.jsonl"),
        ("schema", "llava"),
        ("diff", tiny(), picture),
        ("shwo", picture),
    ):
        ran = command("data", *words, torch=False)
        assert ran.code == 2, ran.err
        assert "Traceback" not in ran.err


def test_processor_without_weights_equals_the_loaded_ones(tiny, picture):
    conversation = Conversation.ask("What?", [open_image(picture)])
    ours = load_processor(str(tiny()))(conversation)
    theirs = tiny_parts("qwen3").processor(conversation)
    assert torch.equal(ours.token_ids, theirs.token_ids)
    assert torch.equal(ours.tiles, theirs.tiles)
    assert ours.spec_hash == theirs.spec_hash


def test_runs_of_the_placeholder_are_counted():
    tokens = [(token, False) for token in ("a", "a", "<x>", "<x>", "<x>", "b")]
    assert collapse([*tokens, ("<x>", True)], "<x>") == [*tokens[:2], ("<x>×3", False), ("b", False), ("<x>×1", True)]


def test_side_by_side_alternates_equal_and_different():
    a, b = ["a", "\n", "b", "c", "\n", "d"], ["a", "\n", "x", "\n", "d"]
    assert side_by_side(a, b) == [("a\n", "a\n"), ("bc\n", "x\n"), ("d", "d")]
    assert side_by_side(["ab", "c"], ["a", "bc"]) == [("ab|c", "a|bc")]


def test_pixel_delta_by_hand():
    a = torch.tensor([0, 10, 255, 7], dtype=torch.uint8)
    b = torch.tensor([0, 12, 250, 7], dtype=torch.uint8)
    assert pixel_delta(a, b) == {"max": 5, "differing": 0.5}
    assert pixel_delta(a, b[:2]) is None
