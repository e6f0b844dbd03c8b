"""The public surface: load, ask, stream, preprocess, logits, save."""

import dataclasses
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

import cascadevl
from cascadevl.checkpoints.tiny import write_tiny
from cascadevl.core.errors import CheckpointNotFound, ConfigError, MediaError, MessageError
from cascadevl.models.quant_linear import QuantLinear

PICTURE = Image.radial_gradient("L").resize((150, 60)).convert("RGB")
BRIEF = cascadevl.Sampling(max_new_tokens=12, loop_guard=False)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tiny(tmp_path_factory.mktemp("api") / "tiny", "qwen3", std=0.2)


@pytest.fixture(scope="module")
def bundle(folder: Path) -> cascadevl.Bundle:
    return cascadevl.load(folder)


def _messages(image: Any = PICTURE, question: str = "What?") -> list[dict[str, Any]]:
    return [{"role": "user", "content": [{"type": "image", "image": image}, {"type": "text", "text": question}]}]


def test_all_public_names_are_there() -> None:
    for name in cascadevl.__all__:
        assert getattr(cascadevl, name).__doc__
    assert set(cascadevl.__all__) <= set(dir(cascadevl))
    with pytest.raises(AttributeError, match="no attribute 'lod'"):
        _ = cascadevl.lod


def test_importing_the_package_imports_no_torch() -> None:
    code = "import sys, cascadevl; sys.exit('torch' in sys.modules or 'numpy' in sys.modules)"
    root = str(Path(cascadevl.__file__).parents[1])
    assert subprocess.run([sys.executable, "-c", code], cwd=root, check=False).returncode == 0


def test_asking_streaming_and_generating_say_the_same(bundle: cascadevl.Bundle) -> None:
    answer = bundle.ask("What?", [PICTURE], sampling=BRIEF)
    assert answer
    assert "".join(bundle.stream(_messages(), BRIEF)) == answer
    generation = bundle.generate(_messages(), BRIEF)
    assert generation.text == answer
    assert generation.spec_hash == bundle.spec.hash
    assert set(generation.timings) == {"preprocess_s", "prefill_s", "decode_s"}
    *_, last = bundle.stream_generation(_messages(), BRIEF)
    assert isinstance(last, cascadevl.Generation) and last.token_ids == generation.token_ids


def test_greedy_is_the_default(bundle: cascadevl.Bundle) -> None:
    first = bundle.ask("What?", [PICTURE], sampling=None)
    assert first == bundle.ask("What?", [PICTURE], sampling=cascadevl.Sampling(temperature=0))


def test_every_kind_of_picture_gives_the_same_inputs(bundle: cascadevl.Bundle, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    PICTURE.save(path)
    expected = bundle.preprocess(_messages())
    for image in (str(path), path, path.read_bytes(), np.asarray(PICTURE)):
        got = bundle.preprocess(_messages(image))
        assert torch.equal(got.token_ids, expected.token_ids) and torch.equal(got.tiles, expected.tiles)
    for one in (PICTURE, str(path), path, path.read_bytes(), np.asarray(PICTURE)):
        assert bundle.ask("What?", one, sampling=BRIEF) == bundle.ask("What?", [PICTURE], sampling=BRIEF)  # type: ignore[arg-type]


def test_preprocess_hands_out_what_the_model_reads(bundle: cascadevl.Bundle) -> None:
    inputs = bundle.preprocess(_messages())
    assert (inputs.token_ids.dtype, inputs.tiles.dtype, inputs.trained.dtype) == (torch.int64, torch.uint8, torch.bool)
    assert inputs.grids == [(3, 1)] and inputs.sizes == [(150, 60)]
    assert inputs.tiles.shape == (4, 3, 56, 56)
    assert inputs.spec_hash == bundle.spec.hash
    assert bundle.preprocess(_messages(), max_tiles=1).grids == [(1, 1)]


def test_logits_are_raw_fp32_of_exactly_the_messages(bundle: cascadevl.Bundle) -> None:
    asked = _messages()
    answered = [*asked, {"role": "assistant", "content": "A gradient."}]
    ids, logits = bundle.logits(asked)
    longer, more = bundle.logits(answered)
    assert logits.shape == (len(ids), bundle.model.config.decoder.vocab_size)
    assert logits.dtype == torch.float32 and logits.device.type == "cpu"
    assert bool(logits.isfinite().all()), "nothing is masked"
    assert torch.equal(ids, bundle.preprocess(asked).token_ids)
    assert torch.equal(longer[: len(ids)], ids), "no second header behind an answer"
    torch.testing.assert_close(more[: len(ids)], logits, atol=1e-5, rtol=0)


def test_what_is_handed_out_may_be_changed(bundle: cascadevl.Bundle) -> None:
    """No tensor is bound to inference mode."""
    _, logits = bundle.logits(_messages())
    logits[:, 0] = 0
    (logits * torch.ones(1, requires_grad=True)).sum().backward()


def test_asking_changes_nothing_in_the_model(bundle: cascadevl.Bundle) -> None:
    before = {name: tensor.clone() for name, tensor in bundle.model.state_dict().items()}
    expected = bundle.logits(_messages())[1]
    bundle.ask("What?", [PICTURE], sampling=cascadevl.Sampling(max_new_tokens=30, temperature=1.0))
    assert all(torch.equal(tensor, before[name]) for name, tensor in bundle.model.state_dict().items())
    assert torch.equal(bundle.logits(_messages())[1], expected)


def test_the_spec_is_frozen(bundle: cascadevl.Bundle) -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        bundle.spec.max_tiles = 3  # type: ignore[misc]


def test_a_bundle_says_what_it_is(bundle: cascadevl.Bundle, folder: Path) -> None:
    assert repr(bundle) == f"Bundle({str(folder)!r}, 0.1 M parameters, torch.float32, spec {bundle.spec.hash})"


@pytest.mark.parametrize("layout", ["hf", "chat"])
def test_saved_and_loaded_answers_the_same(bundle: cascadevl.Bundle, layout: str, tmp_path: Path) -> None:
    bundle.save(tmp_path / "model", layout=layout)
    again = cascadevl.load(tmp_path / "model")
    assert again.spec == bundle.spec
    assert torch.equal(again.logits(_messages())[1], bundle.logits(_messages())[1])
    assert again.ask("What?", [PICTURE], sampling=BRIEF) == bundle.ask("What?", [PICTURE], sampling=BRIEF)


@pytest.mark.parametrize("target", [None, "", 5])
def test_what_names_no_folder_is_not_saved_to(target: Any, bundle: cascadevl.Bundle) -> None:
    with pytest.raises(ConfigError, match="folder to write"):
        bundle.save(target)


def test_bf16_answers_too(folder: Path, bundle: cascadevl.Bundle) -> None:
    short = cascadevl.load(folder, dtype="bfloat16")
    logits, expected = short.logits(_messages())[1], bundle.logits(_messages())[1]
    assert logits.dtype == torch.float32
    assert float((logits - expected).abs().mean()) < 0.1 * float(expected.abs().mean())
    assert short.generate(_messages(), BRIEF).token_ids


def test_what_is_not_there_yet_is_refused(folder: Path) -> None:
    with pytest.raises(
        ConfigError, match="quant='int3' is no format we know: expected None, int8, int8-g64, int4, int4-g32"
    ):
        cascadevl.load(folder, quant="int3")


def test_mistakes_are_of_our_tree_and_of_the_built_in(bundle: cascadevl.Bundle) -> None:
    for mistake, kind in (
        (lambda: cascadevl.load("no-such-model"), CheckpointNotFound),
        (lambda: bundle.ask("  "), MessageError),
        (lambda: bundle.ask("What?", ["nowhere.png"]), MediaError),
        (lambda: bundle.ask("What?", [3]), MediaError),
        (lambda: bundle.ask("What?", [PICTURE], max_tiles=0), ConfigError),
        (lambda: bundle.generate([{"role": "wizard", "content": "x"}]), MessageError),
        (lambda: bundle.preprocess(_messages(question="long " * 3000)), MessageError),
        (
            lambda: bundle.preprocess([{"role": "user", "content": [{"type": "image", "image": PICTURE}] * 200}]),
            MessageError,
        ),
    ):
        with pytest.raises(kind) as caught:
            mistake()
        assert isinstance(caught.value, cascadevl.UserError)
        assert isinstance(caught.value, ValueError)
        assert len(str(caught.value)) > 20


def test_a_mistake_is_raised_when_the_stream_is_asked_for_its_first_piece(bundle: cascadevl.Bundle) -> None:
    with pytest.raises(MessageError, match="Unknown role 'wizard'"):
        next(bundle.stream([{"role": "wizard", "content": "x"}]))


@pytest.mark.parametrize("quant", ["int8", "int4-g32", "mxfp4", "fp8"])
def test_rounded_weights_give_nearly_the_same_logits_and_are_saved_as_they_are(quant: str, tmp_path: Path) -> None:
    folder = write_tiny(tmp_path / "model", "qwen3", std=0.1, hidden_size=64, mlp_size=64, head_size=16)
    messages = [{"role": "user", "content": "What is the total?"}]
    exact, rounded = (cascadevl.load(folder, quant=name) for name in (None, quant))
    assert isinstance(rounded.model.get_submodule("language_model.model.layers.0.mlp.up_proj"), QuantLinear)
    expected, found = (bundle.logits(messages)[1] for bundle in (exact, rounded))
    similarity = torch.cosine_similarity(expected, found, dim=-1).min()
    assert similarity > (0.995 if quant == "int8" else 0.7), "random weights of few inputs: four bits are coarse"
    assert not torch.equal(expected, found)
    rounded.save(tmp_path / "again")
    assert torch.equal(cascadevl.load(tmp_path / "again").logits(messages)[1], found)


def test_half_a_character_is_refused_in_words_of_ours(bundle: cascadevl.Bundle) -> None:
    with pytest.raises(MessageError, match="half of a character, which UTF-8 cannot hold"):
        bundle.preprocess("Read \ud800 this.")


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1}, 5])
def test_what_is_no_sampling_is_refused(sampling: Any, bundle: cascadevl.Bundle) -> None:
    with pytest.raises(ConfigError, match="sampling must be a"):
        bundle.generate("Hello", sampling)


@pytest.mark.parametrize("model", [None, 3])
def test_what_cannot_name_a_model_is_refused(model: Any) -> None:
    with pytest.raises(CheckpointNotFound, match="A model is named by a text or a path, got"):
        cascadevl.load(model)


def test_a_place_that_takes_nothing_is_refused_before_any_work(bundle: cascadevl.Bundle, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(ConfigError, match="Nothing can be written to the folder"):
        bundle.save(tmp_path / "file" / "model")


@pytest.mark.parametrize("limit", [0, -1])
def test_a_tile_limit_below_one_is_named(limit: int, bundle: cascadevl.Bundle) -> None:
    with pytest.raises(ConfigError, match=f"max_tiles must be at least 1, got {limit}"):
        bundle.ask("What?", [PICTURE], max_tiles=limit)
