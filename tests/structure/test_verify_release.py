"""examples/verify_release.py on folders that are here; what it says of releases needs a hub."""

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from cascadevl.checkpoints.convert import fingerprint
from cascadevl.checkpoints.layouts import layouts
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.tiny import write_tiny

PATH = Path(__file__).parents[2] / "examples" / "verify_release.py"


@pytest.fixture(scope="module")
def example() -> Any:
    spec = importlib.util.spec_from_file_location("verify_release", PATH)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("family", ["qwen3", "gpt_oss"])
@pytest.mark.parametrize("layout", layouts())
def test_folders_of_every_layout_agree(family, layout, example, tmp_path, capsys):
    folder = write_tiny(tmp_path / "model", family, layout=layout, std=0.2)
    assert example.main([str(folder)]) == example.AGREED
    said = dict(line.split(maxsplit=1) for line in capsys.readouterr().out.splitlines() if " " in line)
    assert said["layout"].startswith(layout)
    assert said["family"] == family
    assert said["fingerprint"] == fingerprint(load_parts(folder).model)
    assert said["verdict"] == "agreed"


def test_nano_agrees(example, capsys):
    assert example.main(["nano"]) == example.AGREED
    assert load_parts("nano").spec.hash in capsys.readouterr().out


def test_a_difference_is_told(example, tmp_path, capsys, monkeypatch):
    """One weight is nudged on our side, by what the bound must see."""
    folder = write_tiny(tmp_path / "model", std=0.2)

    def nudged(*arguments: Any, **options: Any) -> Any:
        parts = load_parts(*arguments, **options)
        with torch.no_grad():
            parts.model.language_model.model.norm.weight[0] += 1e-3
        return parts

    monkeypatch.setattr(example, "load_parts", nudged)
    assert example.main([str(folder)]) == example.DIFFERS
    assert "DIFFERS" in capsys.readouterr().out


@pytest.mark.parametrize("model", ["OpenGVLab/InternVL3_5-1B", "nona", ""])
def test_mistakes_and_a_missing_hub_are_explained(model, example, capsys):
    assert example.main([model]) == example.MISTAKE
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.startswith("error: ")


def test_a_model_that_transformers_cannot_hold_is_not_compared(example, tmp_path, capsys):
    folder = write_tiny(tmp_path / "model", layout="chat")
    raw = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**raw, "ps_version": "v1"}))
    assert example.main([str(folder)]) == example.MISTAKE
    assert "not compared" in capsys.readouterr().err
