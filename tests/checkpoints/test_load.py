"""Folders that cannot be what they say, types and devices, and memory."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from cascadevl.checkpoints import load
from cascadevl.checkpoints.layouts import layouts
from cascadevl.checkpoints.load import load_parts, resolve_dtype
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts, write_tiny
from cascadevl.checkpoints.weights import INDEX
from cascadevl.core.errors import CheckpointError, CheckpointNotFound, ConfigError
from cascadevl.preprocessing.spec_file import FILE_NAME

WEIGHTS = "model.safetensors"


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("tiny")
    return {layout: write_tiny(root / layout, "qwen2", layout=layout, std=0.2) for layout in layouts()}


@pytest.fixture(params=["hf", "chat"])
def folder(request: pytest.FixtureRequest, originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals[request.param], tmp_path / "model"))


@pytest.fixture
def hf(originals: dict[str, Path], tmp_path: Path) -> Path:
    return Path(shutil.copytree(originals["hf"], tmp_path / "model"))


def _edit(file: Path, **changes: Any) -> None:
    """Replace keys of a JSON file; `...` deletes one."""
    data = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in data.items() if value is not ...}))


def _edit_tensors(folder: Path, change: Callable[[dict[str, Tensor]], None]) -> None:
    tensors = load_file(folder / WEIGHTS)
    change(tensors)
    save_file(tensors, folder / WEIGHTS)


def _with_value(value: float) -> Callable[[dict[str, Tensor]], None]:
    def change(tensors: dict[str, Tensor]) -> None:
        for name, tensor in tensors.items():
            if "up_proj" in name:
                tensor.fill_(value)

    return change


def _refused(folder: Path | str, message: str) -> None:
    with pytest.raises(CheckpointError, match=message):
        load_parts(folder)


def test_an_untouched_folder_loads(folder: Path) -> None:
    expected = tiny_parts("qwen2", std=0.2).model.state_dict()
    parts = load_parts(folder)
    assert parts.model.state_dict().keys() == expected.keys()
    assert all(torch.equal(tensor, expected[name]) for name, tensor in parts.model.state_dict().items())
    assert not parts.model.training
    assert not any(p.requires_grad or p.is_meta for p in parts.model.parameters())
    assert parts.notes == ()


# What is not a model folder at all


@pytest.mark.parametrize(
    "name",
    [
        "no-such-model",
        "./nowhere",
        "/no/where/at/all",
        "a/b/c",
        "",
        "~/nothing-here",
        "\0",
        "x" * 5000,
        "a/" + "x" * 300,
    ],
)
def test_an_unknown_name_says_what_is_expected(name: str) -> None:
    with pytest.raises(CheckpointNotFound, match=r"a folder, a hub id|expected a folder"):
        load_parts(name)


def test_a_hub_id_without_a_hub_says_why() -> None:
    with pytest.raises(
        CheckpointNotFound, match=r"'OpenGVLab/No-Such-Model' is not here and could not be fetched.*Check the"
    ):
        load_parts("OpenGVLab/No-Such-Model")


def test_an_empty_folder(tmp_path: Path) -> None:
    _refused(tmp_path, "is empty; expected config.json, weights and tokenizer files")


def test_a_file(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").write_bytes(b"x")
    _refused(tmp_path / "model.safetensors", "is a file; expected the folder that holds config.json")
    (tmp_path / "model.gguf").write_bytes(b"x")
    _refused(tmp_path / "model.gguf", "is a language model without a tower: .*read_gguf")


def test_a_folder_without_a_config(folder: Path) -> None:
    os.remove(folder / "config.json")
    _refused(folder, "has no config.json: it is not a model folder")


@pytest.mark.parametrize(
    ("text", "message"), [(b"{", "cannot be read"), (b"[]", "holds list"), (b"\xff", "cannot be read")]
)
def test_a_config_that_is_no_json_object(folder: Path, text: bytes, message: str) -> None:
    (folder / "config.json").write_bytes(text)
    _refused(folder, message)


@pytest.mark.parametrize("model_type", ["llava", None, ...])
def test_another_kind_of_model(folder: Path, model_type: Any) -> None:
    _edit(folder / "config.json", model_type=model_type)
    _refused(folder, r"has model_type .*Supported: 'internvl' \(layout hf\), 'internvl_chat' \(layout chat\)")


@pytest.mark.parametrize("key", ["vision_config", "text_config", "llm_config", "image_token_id"])
def test_a_config_that_lacks_a_part(folder: Path, key: str) -> None:
    if key in json.loads((folder / "config.json").read_text()):
        _edit(folder / "config.json", **{key: ...})
        _refused(folder, f"lacks '{key}'")


# Files of weights


def _to_shards(folder: Path) -> None:
    shutil.rmtree(folder)
    write_tiny(folder, "qwen2", std=0.2, max_shard_bytes=20_000)


def test_a_missing_shard_is_named(hf: Path) -> None:
    _to_shards(hf)
    shard = sorted(hf.glob("*.safetensors"))[1]
    os.remove(shard)
    _refused(hf, f"lacks 1 of .* shards: {shard.name}. Download the folder again")


@pytest.mark.parametrize(
    "text", [b"{", b"{}", b'{"weight_map": []}', b'{"weight_map": {"a": 3}}', b'{"weight_map": {"a": "../b"}}', b"\xff"]
)
def test_an_index_that_is_none_is_named(hf: Path, text: bytes) -> None:
    _to_shards(hf)
    (hf / INDEX).write_bytes(text)
    _refused(hf, f"{INDEX} is not an index of shards")


def test_a_tensor_in_two_shards_is_refused(hf: Path) -> None:
    _to_shards(hf)
    first, second, *_ = sorted(hf.glob("*.safetensors"))
    name, tensor = next(iter(load_file(first).items()))
    save_file({**load_file(second), name: tensor}, second)
    _refused(hf, name)


def test_no_weights_at_all(folder: Path) -> None:
    os.remove(folder / WEIGHTS)
    _refused(folder, f"has no weights: expected model.safetensors or {INDEX}")
    (folder / "pytorch_model.bin").write_bytes(b"x")
    _refused(folder, "pytorch_model.bin is a pickle, which is never opened")


@pytest.mark.parametrize("keep", [0, 4, 8, 100, -1, -1000])
def test_a_truncated_file_is_named(folder: Path, keep: int) -> None:
    data = (folder / WEIGHTS).read_bytes()
    (folder / WEIGHTS).write_bytes(data[:keep])
    _refused(folder, rf"{WEIGHTS} is (not a safetensors file|cut off)")


@pytest.mark.parametrize(
    "header",
    [
        *(b"", b"{", b"[]", b"3", b"\xff\xff", b'{"a": 3}', b'{"a": {"dtype": "F32"}}'),
        b'{"a": {"dtype": "Q4", "shape": [1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 5]}}',
        b'{"a": {"dtype": "F32", "shape": "x", "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": ["0", 4]}}',
        b'{"a": {"dtype": "F32", "shape": [1], "data_offsets": [-4, 0]}}',
        b'{"a": {"dtype": "F32", "shape": [-1, -1], "data_offsets": [0, 4]}}',
        b'{"a": {"dtype": ["F32"], "shape": [1], "data_offsets": [0, 4]}}',
    ],
)
def test_a_garbled_header_is_named(folder: Path, header: bytes) -> None:
    (folder / WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header + b"\0" * 16)
    _refused(folder, str(folder))


def test_bytes_that_are_no_weights_are_named(folder: Path) -> None:
    (folder / WEIGHTS).write_bytes(b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n")
    _refused(folder, f"{WEIGHTS} is not a safetensors file")


# Tensors


def test_a_renamed_tensor_is_named_under_both_names(folder: Path) -> None:
    name = next(name for name in sorted(load_file(folder / WEIGHTS)) if "norm" in name)
    _edit_tensors(folder, lambda tensors: tensors.update({name + "x": tensors.pop(name)}))
    _refused(folder, rf"1 missing \({name}\); 1 unexpected \({name}x\). Were files of two models mixed")


def test_a_tensor_of_another_shape_is_named_with_both_shapes(folder: Path) -> None:
    name = next(name for name in sorted(load_file(folder / WEIGHTS)) if name.endswith("gate_proj.weight"))
    _edit_tensors(folder, lambda tensors: tensors.update({name: tensors[name][:-1].clone()}))
    _refused(folder, rf"{name} has the shape \[47, 32\], config.json implies \[48, 32\]")


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_weights_that_are_no_numbers_are_refused_by_name(folder: Path, value: float, dtype: torch.dtype) -> None:
    name = next(name for name in sorted(load_file(folder / WEIGHTS)) if name.endswith("up_proj.weight"))

    def spoil(tensors: dict[str, Tensor]) -> None:
        for key in tensors:
            tensors[key] = tensors[key].to(dtype)
        tensors[name][3, 3] = value

    _edit_tensors(folder, spoil)
    _refused(folder, rf"The tensor '{name}' in .*{WEIGHTS} holds NaN or infinity")


def test_large_but_finite_weights_are_no_mistake(folder: Path) -> None:
    _edit_tensors(folder, _with_value(3e38))
    load_parts(folder)


def test_a_weight_that_does_not_fit_the_type_asked_for_is_refused_too(folder: Path) -> None:
    """1e6 is a number, but not in float16: it would become infinity unseen."""
    _edit_tensors(folder, _with_value(1e6))
    with pytest.raises(CheckpointError, match=r"up_proj.weight.*float16"):
        load_parts(folder, dtype="float16")


def test_an_output_matrix_may_be_missing_only_where_the_config_ties_it(folder: Path) -> None:
    def drop(tensors: dict[str, Tensor]) -> None:
        del tensors[next(name for name in tensors if "lm_head" in name)]

    _edit_tensors(folder, drop)
    _refused(folder, r"1 missing \(.*lm_head.weight\)")
    _edit(folder / "config.json", tie_word_embeddings=True)
    assert load_parts(folder).model.language_model.lm_head is None


def test_a_flag_that_ties_does_not_override_a_matrix_that_is_there(folder: Path) -> None:
    """The chat configs of some releases copy the flag of their base model, and carry a matrix of their own."""
    _edit(folder / "config.json", tie_word_embeddings=True)
    assert load_parts(folder).model.language_model.lm_head is not None


def test_buffers_of_old_checkpoints_are_passed_over(folder: Path) -> None:
    prefix = next(name for name in load_file(folder / WEIGHTS) if "layers.0.self_attn.q_proj" in name).partition(
        "q_proj"
    )[0]
    _edit_tensors(folder, lambda tensors: tensors.update({f"{prefix}rotary_emb.inv_freq": torch.ones(4)}))
    load_parts(folder)


# Files that contradict each other


def test_a_missing_tokenizer(folder: Path) -> None:
    os.remove(folder / "tokenizer.json")
    _refused(folder, "has no tokenizer: expected tokenizer.json")


def test_a_tokenizer_with_more_entries_than_embeddings(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    key = "text_config" if "text_config" in config else "llm_config"
    _edit(folder / "config.json", **{key: {**config[key], "vocab_size": 260}})
    _edit_tensors(
        folder, lambda t: t.update({n: x[:260].clone() for n, x in t.items() if "embed_tokens" in n or "lm_head" in n})
    )
    _refused(folder, "has 268 entries, the embeddings only 260")


def _edit_spec(folder: Path, **changes: Any) -> None:
    _edit(folder / FILE_NAME, hash=..., **changes)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tile_px": 448}, "contradicts itself: tile_px is 448 in one file and 56 in another"),
        ({"visual_tokens_per_tile": 256}, "visual tokens per tile is 256 in one file and 4 in another"),
        ({"mean": [0.5, 0.5, 0.5]}, r"pixel mean is \(0.5, 0.5, 0.5\)"),
        ({"image_context": "<img>"}, "the id of <img> is"),
        ({"image_context": "<nothing>"}, "no entry '<nothing>'"),
        ({"image_start": "<nothing>"}, "no entry '<nothing>'"),
        ({"bos": "<nothing>"}, "no entry '<nothing>'"),
        ({"template": "vicuna"}, "Unknown chat template 'vicuna'"),
        ({"max_tiles": 0}, "max_tiles"),
        ({"min_tiles": 9}, "min_tiles is 9 and max_tiles 6"),
        ({"no_such_key": 1}, "unknown setting 'no_such_key'"),
    ],
)
def test_a_spec_that_contradicts_the_model_is_refused_when_loading(folder: Path, changes: dict, message: str) -> None:
    _edit_spec(folder, **changes)
    with pytest.raises((CheckpointError, ConfigError), match=message):
        load_parts(folder)


def test_a_spec_that_was_edited_is_refused(folder: Path) -> None:
    _edit(folder / FILE_NAME, max_tiles=3)
    _refused(folder, "was edited by hand")


def test_a_wrong_image_token_is_refused(hf: Path) -> None:
    _edit(hf / "config.json", image_token_id=7)
    _refused(hf, "the id of <IMG_CONTEXT> is 261 in one file and 7 in another")


def test_a_missing_chat_template_is_refused_where_no_spec_replaces_it(hf: Path) -> None:
    os.remove(hf / "chat_template.jinja")
    load_parts(hf)
    os.remove(hf / FILE_NAME)
    _refused(hf, "has no chat template: expected chat_template.jinja or chat_template.json")


def test_a_template_name_that_nobody_knows_is_refused(originals: dict[str, Path], tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals["chat"], tmp_path / "model"))
    os.remove(folder / FILE_NAME)
    _edit(folder / "config.json", template="vicuna_v1.1")
    _refused(folder, "Unknown chat template 'vicuna_v1.1'. Supported: internvl2_5")


def test_missing_keys_mean_what_the_released_class_defaults_say(originals: dict[str, Path], tmp_path: Path) -> None:
    """No `ps_version` is v1, no `max_dynamic_patch` is 6; both occur in early releases."""
    folder = Path(shutil.copytree(originals["chat"], tmp_path / "model"))
    os.remove(folder / FILE_NAME)
    _edit(folder / "config.json", ps_version=..., max_dynamic_patch=..., template=...)
    parts = load_parts(folder)
    assert parts.model.config.pixel_shuffle == "v1"
    assert (parts.spec.max_tiles, parts.spec.template) == (6, "internvl2_5")


@pytest.mark.parametrize(
    ("eos", "expected"), [(None, [258]), (258, [258]), (5, [5, 258]), ([5, 258, 6], [5, 258, 6]), ([], [258])]
)
def test_stop_tokens_are_those_of_the_template_and_of_the_generation_config(
    folder: Path, eos: Any, expected: list[int]
) -> None:
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": eos}))
    assert list(load_parts(folder).stop_ids) == expected
    os.remove(folder / "generation_config.json")
    assert list(load_parts(folder).stop_ids) == [258]


# Types and devices


def _in_type(folder: Path, dtype: torch.dtype) -> None:
    _edit_tensors(folder, lambda tensors: tensors.update({name: t.to(dtype) for name, t in tensors.items()}))


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_a_short_type_is_computed_in_fp32_on_a_cpu_without_units_for_it_and_says_so(
    folder: Path, stored: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(load, "cpu_multiplies_bf16", lambda: False)
    _in_type(folder, stored)
    parts = load_parts(folder, device="cpu")
    name = str(stored).removeprefix("torch.")
    assert {p.dtype for p in parts.model.parameters()} == {torch.float32}
    assert parts.notes == (f"computing in float32: this CPU has no fast units for the stored {name}",)
    for short, long in zip(load_parts(folder, dtype=stored).model.parameters(), parts.model.parameters(), strict=True):
        assert torch.equal(short.float(), long)


def test_a_cpu_with_units_computes_in_the_stored_type(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "cpu_multiplies_bf16", lambda: True)
    _in_type(folder, torch.bfloat16)
    parts = load_parts(folder, device="cpu")
    assert (parts.model.dtype, parts.notes) == (torch.bfloat16, ())


@pytest.mark.parametrize("asked", ["bfloat16", torch.bfloat16, "float16"])
def test_a_type_that_is_asked_for_is_used(folder: Path, asked: Any) -> None:
    expected = asked if isinstance(asked, torch.dtype) else getattr(torch, asked)
    assert {p.dtype for p in load_parts(folder, dtype=asked).model.parameters()} == {expected}


def test_mixed_types_keep_the_longer(folder: Path) -> None:
    cpu, gpu = torch.device("cpu"), torch.device("cuda")
    assert resolve_dtype("auto", {torch.bfloat16, torch.float32}, gpu) == (torch.float32, ())
    assert resolve_dtype("auto", {torch.bfloat16}, gpu) == (torch.bfloat16, ())
    assert resolve_dtype("auto", {torch.float32}, cpu) == (torch.float32, ())
    assert resolve_dtype("stored", {torch.bfloat16}, cpu) == (torch.bfloat16, ())


@pytest.mark.parametrize("bad", ["int8", "fp16", "", torch.int8, torch.float8_e4m3fn, torch.bool, None, 16])
def test_an_impossible_type_is_refused(hf: Path, bad: Any) -> None:
    with pytest.raises(ConfigError, match="dtype"):
        load_parts(hf, dtype=bad)


@pytest.mark.parametrize("bad", ["gpu", "", "cuda:x", "tpu"])
def test_an_unknown_device_is_refused(hf: Path, bad: str) -> None:
    with pytest.raises(ConfigError, match=r"[Dd]evice"):
        load_parts(hf, device=bad)


@pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without a GPU")
def test_a_gpu_that_is_not_there_is_refused_before_anything_is_read(hf: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(load, "_fill", lambda *_: pytest.fail("read for nothing"))
    with pytest.raises(ConfigError, match=r"torch sees no GPU here. Use device='cpu'"):
        load_parts(hf, device="cuda")


# Memory

MEASURE = """
import sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from cascadevl.checkpoints.load import load_parts
def memory(kind):
    return int(Path("/proc/self/status").read_text().partition(kind + ":")[2].split()[0]) * 1024

load_parts(sys.argv[1])
before = memory("VmRSS")
Path("/proc/self/clear_refs").write_text("5")  # the peak counts from here
parts = load_parts(sys.argv[2], dtype=sys.argv[3])
print((memory("VmHWM") - before) / sum(p.nbytes for p in parts.model.parameters()))
"""


@pytest.fixture(scope="module")
def large(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Path]]:
    """190 MB in fp32, with the proportions of a real member, and the same in bf16."""
    root = tmp_path_factory.mktemp("large")
    sizes = {"hidden_size": 512, "mlp_size": 1792, "num_layers": 12, "vocab_size": 4096}
    parts = tiny_parts("qwen3", **sizes, num_heads=8, num_kv_heads=4, head_size=64)
    save_parts(parts, root / "float32", max_shard_bytes=60_000_000)
    parts.model.bfloat16()
    save_parts(parts, root / "bfloat16", max_shard_bytes=60_000_000)
    yield {name: root / name for name in ("float32", "bfloat16")}
    shutil.rmtree(root)


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="asks Linux for the peak of resident memory")
@pytest.mark.parametrize(
    ("stored", "dtype"), [("float32", "float32"), ("bfloat16", "float32"), ("float32", "bfloat16")]
)
def test_loading_needs_hardly_more_memory_than_the_weights(
    large: dict[str, Path], originals: dict[str, Path], stored: str, dtype: str
) -> None:
    """At most 1.15 of them; a small model was loaded before, so that imports are not counted."""
    command = [sys.executable, "-c", MEASURE, str(originals["hf"]), str(large[stored]), dtype]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert float(done.stdout) <= 1.15
