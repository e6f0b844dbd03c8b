"""A rounded folder, its card, and what is refused."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cascadevl
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.tiny import write_tiny
from cascadevl.core.config import evolve
from cascadevl.core.errors import CheckpointError, ConfigError, MessageError
from cascadevl.core.messages import Conversation
from cascadevl.engine.calibrate import Scaled
from cascadevl.engine.gptq import Rounded
from cascadevl.models.quant_linear import few_bits
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.quantize import quantize
from cascadevl.recipes.quality import compare
from cascadevl.recipes.quantize import Quantize, gym_samples, quantize_folder, read_rows, round_parts, samples


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    sizes: dict[str, Any] = {"hidden_size": 64, "mlp_size": 64, "num_layers": 2}
    return write_tiny(tmp_path_factory.mktemp("whole") / "tiny", "qwen3", layout="chat", std=0.1, **sizes)


@pytest.fixture(scope="module")
def rows(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "rows.jsonl"
    lines = [
        {"messages": [{"role": "user", "content": f"What is {n} + 1?"}, {"role": "assistant", "content": str(n + 1)}]}
        for n in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, lines)) + "\n")
    return path


def test_the_folder_and_its_card(folder: Path, rows: Path, tmp_path: Path) -> None:
    settings = Quantize(weights="int8", kv="int8", calibration=str(rows), max_kl=1.0)
    quality = quantize_folder(folder, tmp_path / "few", settings)
    parts = load_parts(tmp_path / "few")
    assert parts.kv_cache == "int8" and parts.spec == load_parts(folder).spec
    assert len(few_bits(parts.model)) == 14
    assert not any("lm_head" in name or "vision" in name for name in few_bits(parts.model))
    assert json.loads((tmp_path / "few" / "config.json").read_text())["model_type"] == "internvl_chat", "its own layout"
    card = json.loads((tmp_path / "few" / "quality.json").read_text())
    assert card["kl_mean"] == quality.kl_mean and card["made"]["weights"] == "int8"
    assert len(card["layer_errors"]) == 2 and card["bytes"] < card["bytes_whole"]
    assert f"{quality.kl_mean:.5f}" in (tmp_path / "few" / "quality.md").read_text()
    assert "(quality.md)" in (tmp_path / "few" / "README.md").read_text()


def test_the_figures_are_those_of_the_written_folder(folder: Path, rows: Path, tmp_path: Path) -> None:
    quality = quantize_folder(folder, tmp_path / "few", Quantize(weights="int8", calibration=str(rows), max_kl=1.0))
    whole, rounded = cascadevl.load(folder), cascadevl.load(tmp_path / "few")
    divergences, correct, total = [], 0, 0
    for row in read_rows(rows)[::4]:
        inputs = whole.parts.processor(row)
        first, second = (bundle.logits(row)[1].log_softmax(-1) for bundle in (whole, rounded))
        for t in range(len(inputs.token_ids) - 1):
            if inputs.trained[t + 1]:
                divergences.append(float((first[t].exp() * (first[t] - second[t])).sum()))
                correct += int(first[t].argmax() == second[t].argmax())
                total += 1
    assert quality.num_tokens == total
    assert quality.kl_mean == pytest.approx(sum(divergences) / total, rel=1e-3)
    assert quality.token_agreement == pytest.approx(correct / total)


def test_each_method_rounds_in_its_own_way_and_the_card_says_how(folder: Path, rows: Path) -> None:
    rounded = {}
    for method in ("gptq", "awq", "awq+gptq"):
        settings = Quantize(weights="int4-g32", calibration=str(rows), method=method)
        parts, layers = round_parts(load_parts(folder, dtype="float32"), settings, samples(settings)[0])
        layer = few_bits(parts.model)["language_model.model.layers.1.mlp.down_proj.weight"][0]
        rounded[method] = layer.quantized.quants
        assert {type(each) for each in layers} == {"gptq": {Rounded}, "awq": {Scaled}}.get(method, {Rounded, Scaled})
    gptq, awq, both = rounded.values()
    assert not torch.equal(gptq, awq) and not torch.equal(awq, both) and not torch.equal(gptq, both)


def test_without_calibration_weights_are_rounded_to_nearest(folder: Path) -> None:
    whole = load_parts(folder, dtype="float32").model
    parts, layers = round_parts(load_parts(folder, dtype="float32"), Quantize(weights="int4-g32"), [])
    for name, (layer,) in few_bits(parts.model).items():
        assert torch.equal(layer.quantized.quants, quantize(whole.get_parameter(name), FORMATS["int4-g32"]).quants)
    assert not layers


def test_a_model_loses_nothing_against_itself(folder: Path, rows: Path) -> None:
    parts = load_parts(folder)
    quality = compare(parts, parts, read_rows(rows)[:2])
    assert quality.kl_mean == quality.kl_p99 == 0 and quality.perplexity == quality.perplexity_whole
    assert quality.token_agreement == quality.answer_agreement == 1
    assert quality.layer_errors == (0.0, 0.0)


def test_what_loses_too_much_is_not_written_unless_forced(folder: Path, rows: Path, tmp_path: Path) -> None:
    harsh: dict[str, Any] = {"weights": "mxfp4", "calibration": str(rows), "max_kl": 1e-9}
    with pytest.raises(ConfigError, match=r"mxfp4 loses too much: a mean KL of 0\.\d+ .*1e-09 are allowed"):
        quantize_folder(folder, tmp_path / "few", Quantize(**harsh))
    assert not list(tmp_path.iterdir())
    quantize_folder(folder, tmp_path / "few", Quantize(**harsh, force=True))
    assert few_bits(load_parts(tmp_path / "few").model)


def test_head_tower_and_projector_on_request(rows: Path, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "whole", "qwen3", std=0.1, num_layers=1, tied=True)
    settings = Quantize(weights="int8", calibration=str(rows), lm_head=True, vision=True, max_kl=1.0)
    quantize_folder(source, tmp_path / "few", settings)
    parts = load_parts(tmp_path / "few")
    names = set(few_bits(parts.model))
    assert {"language_model.lm_head.weight", "mlp1.1.weight", "mlp1.3.weight"} < names
    assert "vision_model.encoder.layers.0.attn.qkv.weight" in names
    assert not parts.model.config.decoder.tied
    embeddings = load_parts(source).model.language_model.model.embed_tokens.weight
    assert torch.equal(parts.model.language_model.model.embed_tokens.weight, embeddings), "looked up as before"


def test_the_samples_that_are_compared_are_not_those_that_were_calibrated_with(rows: Path) -> None:
    calibrating, held_out = samples(Quantize(weights="int8", calibration=str(rows)))
    assert (len(calibrating), len(held_out)) == (6, 2)
    assert not {turn.text for each in calibrating for turn in each.turns[:1]} & {
        each.turns[0].text for each in held_out
    }
    assert samples(Quantize(weights="int8", calibration="none", num_samples=2))[0] == []
    drawn = gym_samples("test", 5)
    assert len(drawn) == 5 and all(isinstance(each, Conversation) and each.ends_with_answer for each in drawn)
    assert all(each.images for each in drawn)


def test_a_model_of_few_bits_is_not_rounded_again(folder: Path, rows: Path, tmp_path: Path) -> None:
    cascadevl.load(folder, quant="int8").save(tmp_path / "few")
    with pytest.raises(CheckpointError, match="of few bits already"):
        quantize_folder(tmp_path / "few", tmp_path / "again", Quantize(weights="int8", calibration=str(rows)))
    assert not (tmp_path / "again").exists()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"weights": "int5"}, "'int5' is no format we know: expected int8"),
        ({"kv": "int3"}, "'int3' is no format we know: expected auto"),
        ({"method": "hqq"}, "'hqq' is none we know: expected gptq, awq, awq.gptq"),
        ({"max_kl": 0.0}, "max_kl must be above 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        evolve(Quantize(weights="int8"), **changes)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1: no conversation"),
        ('{"question": "What?"}', "line 1: no conversation .KeyError"),
        ('{"messages": [{"role": "user", "content": "What?"}]}', "line 1: the last message must be the assistant's"),
    ],
)
def test_rows_that_cannot_be_used_are_named(text: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "rows.jsonl").write_text(text + "\n")
    with pytest.raises(MessageError, match=message):
        read_rows(tmp_path / "rows.jsonl")
    with pytest.raises(MessageError, match="No such file"):
        read_rows(tmp_path / "nothing.jsonl")


def test_too_few_rows_are_refused(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "rows.jsonl").write_text(json.dumps(row))
    with pytest.raises(ConfigError, match="has 1 samples: at least 4"):
        samples(Quantize(weights="int8", calibration=str(tmp_path / "rows.jsonl")))


def test_a_width_that_does_not_fit_leaves_nothing_behind(rows: Path, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "whole", "qwen3")
    with pytest.raises(ConfigError, match="48 inputs cannot be cut into int4 groups of 32"):
        quantize_folder(source, tmp_path / "few", Quantize(weights="int4-g32", calibration=str(rows)))
    assert not (tmp_path / "few").exists()
