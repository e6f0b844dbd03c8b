"""Official folders of few bits: what is loaded is what the formats' definitions say, to the bit."""

import json
import random
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import cascadevl
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.quantized import METHODS
from cascadevl.checkpoints.tiny import write_tiny
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.models.internvl import InternVL
from cascadevl.models.quant_linear import QuantLinear, few_bits
from tests.checkpoints.quantized_folders import (
    WEIGHTS,
    Packer,
    awq,
    compressed_int4,
    compressed_int8,
    edit_config,
    fp8,
    gptq,
    mxfp4,
    write_pair,
)

SIZES: dict[str, Any] = {"num_layers": 1, "hidden_size": 128, "mlp_size": 128, "head_size": 64, "num_heads": 2}
SIZES |= {"num_kv_heads": 1}


@pytest.fixture(scope="module")
def originals(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    root = tmp_path_factory.mktemp("whole")

    def original(family: str, layout: str) -> Path:
        folder = root / f"{family}-{layout}"
        return folder if folder.exists() else write_tiny(folder, family, layout=layout, std=0.1, **SIZES)

    return original


def compressed(weights: dict[str, Any], storage: str = "pack-quantized", **more: Any) -> dict[str, Any]:
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": storage, "config_groups": {"group_0": group}, **more}


AWQ = {"quant_method": "awq", "bits": 4, "version": "gemm", "zero_point": True}
GPTQ = {"quant_method": "gptq", "bits": 4, "sym": False, "desc_act": False}
INT4 = {"num_bits": 4, "type": "int", "symmetric": True, "strategy": "group", "group_size": 32}
INT8 = {"num_bits": 8, "type": "int", "symmetric": True, "strategy": "channel"}
FP8 = {"num_bits": 8, "type": "float", "symmetric": True, "strategy": "channel"}
BLOCKS = {"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}

HELD: dict[str, tuple[dict[str, Any], Packer, str]] = {
    "awq-32": ({**AWQ, "group_size": 32}, awq(32), "int4 32 zeros"),
    "awq-64": ({**AWQ, "q_group_size": 64, "version": "GEMM"}, awq(64), "int4 64 zeros"),
    "awq-128": ({**AWQ, "group_size": 128}, awq(128), "int4 128 zeros"),
    "awq-rows": ({**AWQ, "group_size": -1, "modules_to_not_convert": ["vision_model"]}, awq(-1), "int4 128 zeros"),
    "gptq-v1": ({**GPTQ, "group_size": 64}, gptq(64), "int4 64 zeros"),
    "gptq-v2": ({**GPTQ, "group_size": 64, "checkpoint_format": "gptq_v2"}, gptq(64, version=2), "int4 64 zeros"),
    "gptq-symmetric": ({**GPTQ, "group_size": 32, "sym": True}, gptq(32, symmetric=True), "int4 32"),
    "gptq-act-order": ({**GPTQ, "group_size": 32, "desc_act": True}, gptq(32, act_order=True), "int4 32 zeros"),
    "gptq-rows": ({**GPTQ, "group_size": -1}, gptq(-1), "int4 128 zeros"),
    "gptq-8": ({**GPTQ, "bits": 8, "group_size": -1, "sym": True}, gptq(-1, 8, symmetric=True), "int8 0"),
    "compressed-int4": (compressed(INT4, ignore=["lm_head"]), compressed_int4(32), "int4 32"),
    "compressed-int4-zeros": (
        compressed({**INT4, "symmetric": False}),
        compressed_int4(32, zeros=True),
        "int4 32 zeros",
    ),
    "compressed-int4-rows": (compressed({**INT4, "strategy": "channel"}), compressed_int4(-1), "int4 128"),
    "gptq-8-32": ({**GPTQ, "bits": 8, "group_size": 32, "sym": True}, gptq(32, 8, symmetric=True), "int8 32"),
    "compressed-int8": (compressed(INT8, "int-quantized"), compressed_int8("channel"), "int8 0"),
    "compressed-int8-one": (
        compressed({**INT8, "strategy": "tensor"}, "int-quantized"),
        compressed_int8("tensor"),
        "int8 0",
    ),
    "compressed-fp8": (compressed(FP8, "float-quantized"), fp8(1, 0, "weight_scale"), "fp8 0"),
    "compressed-fp8-one": (
        compressed({**FP8, "strategy": "tensor"}, "float-quantized"),
        fp8(0, 0, "weight_scale"),
        "fp8 0",
    ),
    "compressed-fp8-blocks": (
        compressed({**FP8, "strategy": "block", "block_structure": [128, 128]}, "float-quantized"),
        fp8(128, 128, "weight_scale"),
        "fp8 128",
    ),
    "fp8-blocks": (BLOCKS, fp8(128, 128), "fp8 128"),
    "fp8-rows": ({"quant_method": "fbgemm_fp8"}, fp8(1, 0, "weight_scale"), "fp8 0"),
    "fp8-one": ({"quant_method": "fp8", "activation_scheme": "static"}, fp8(0, 0, "weight_scale"), "fp8 0"),
}
"""Name -> (quantization_config, packer, our format): what we hold to the bit."""

WHOLE: dict[str, tuple[dict[str, Any], Packer, str]] = {
    "groups-of-16": ({**AWQ, "group_size": 16}, awq(16), "int4 groups of 16"),
    "int8-groups": (
        {**GPTQ, "bits": 8, "group_size": 16, "sym": True},
        gptq(16, 8, symmetric=True),
        "int8 groups of 16",
    ),
    "int8-zeros": ({**GPTQ, "bits": 8, "group_size": -1}, gptq(-1, 8), "int8 with zero points"),
    "fp8-64": ({**BLOCKS, "weight_block_size": [64, 64]}, fp8(64, 64), "FP8 blocks of 64×64"),
}
"""What no format of ours holds: it becomes whole, and the notes say why."""


def dequantised(model: InternVL) -> InternVL:
    """The same weights in full precision, layer by layer."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantLinear):
            model.set_submodule(name, module.dequantized())
    return model


def logits(folder: Path, unpack: bool = False) -> torch.Tensor:
    bundle = cascadevl.load(folder, dtype="float32")
    if unpack:
        dequantised(bundle.model)
    return bundle.logits("What is 2 + 3?")[1]


def described(layer: QuantLinear) -> str:
    return f"{layer.format.kind} {layer.format.group}{' zeros' if layer.format.zeros else ''}"


@pytest.mark.parametrize("case", HELD)
def test_a_folder_means_what_its_format_says(case: str, originals: Any, tmp_path: Path) -> None:
    config, pack, expected = HELD[case]
    source = originals("qwen2", "hf")
    write_pair(source, tmp_path / "few", tmp_path / "whole", config, pack)
    layers = few_bits(load_parts(tmp_path / "few").model)
    assert len(layers) == 7
    assert {described(layer) for each in layers.values() for layer in each} == {expected}
    whole = logits(tmp_path / "whole")
    assert torch.equal(logits(tmp_path / "few", unpack=True), whole), "the very weights"
    torch.testing.assert_close(logits(tmp_path / "few"), whole, atol=0.05 * float(whole.abs().max()), rtol=0)


@pytest.mark.parametrize("case", WHOLE)
def test_what_no_format_holds_becomes_whole_and_is_said(case: str, originals: Any, tmp_path: Path) -> None:
    config, pack, reason = WHOLE[case]
    write_pair(originals("qwen2", "hf"), tmp_path / "few", tmp_path / "whole", config, pack)
    parts = load_parts(tmp_path / "few", dtype="float32")
    assert not few_bits(parts.model)
    assert any(reason in note and "7 weights" in note for note in parts.notes), parts.notes
    assert torch.equal(logits(tmp_path / "few"), logits(tmp_path / "whole"))


@pytest.mark.parametrize(("layout", "part"), [("hf", "text_config"), ("chat", "llm_config"), ("chat", None)])
def test_the_config_may_stand_in_the_part_for_the_language_model(
    layout: str, part: str | None, originals: Any, tmp_path: Path
) -> None:
    config = {**AWQ, "group_size": 32}
    write_pair(originals("qwen3", layout), tmp_path / "few", tmp_path / "whole", config, awq(32), part)
    assert torch.equal(logits(tmp_path / "few", unpack=True), logits(tmp_path / "whole"))


@pytest.mark.parametrize("pack", [awq(32), gptq(32, act_order=True), compressed_int8("channel")])
def test_matrices_that_a_family_joins_are_taken_apart(pack: Packer, originals: Any, tmp_path: Path) -> None:
    """InternLM2 keeps query, key and value heads in one matrix."""
    name = pack.__qualname__.partition(".")[0]
    config = {
        "awq": {**AWQ, "group_size": 32},
        "gptq": {**GPTQ, "group_size": 32},
        "compressed_int8": compressed(INT8, "int-quantized"),
    }[name]
    write_pair(originals("internlm2", "chat"), tmp_path / "few", tmp_path / "whole", config, pack)
    assert len(few_bits(load_parts(tmp_path / "few").model)) == 7
    assert torch.equal(logits(tmp_path / "few", unpack=True), logits(tmp_path / "whole"))
    cascadevl.load(tmp_path / "few").save(tmp_path / "again", layout="chat")
    assert torch.equal(logits(tmp_path / "again"), logits(tmp_path / "few"))


def test_experts_are_read_one_by_one_and_held_in_a_stack(tmp_path: Path) -> None:
    sizes: dict[str, Any] = {**SIZES, "experts": {"mlp_size": 32, "num_experts": 3, "num_per_token": 2}}
    source = write_tiny(tmp_path / "source", "qwen3_moe", std=0.1, **sizes)
    write_pair(source, tmp_path / "few", tmp_path / "whole", {**AWQ, "group_size": 32}, awq(32))
    layers = few_bits(load_parts(tmp_path / "few").model)
    assert sorted(len(each) for each in layers.values()) == [1, 1, 1, 1, 3, 3]
    torch.testing.assert_close(logits(tmp_path / "few", unpack=True), logits(tmp_path / "whole"), atol=2e-5, rtol=0)
    cascadevl.load(tmp_path / "few").save(tmp_path / "again")
    assert torch.equal(logits(tmp_path / "again"), logits(tmp_path / "few"))


def gpt_oss(tmp_path: Path, mark: str) -> None:
    """Its experts in MXFP4, with what they mean beside."""
    sizes: dict[str, Any] = {"num_layers": 1, "mlp_size": 32, "experts": {"mlp_size": 32, "num_experts": 3}}
    source = write_tiny(tmp_path / "source", "gpt_oss", layout="chat", std=0.1, **sizes)
    tensors, rng = load_file(source / WEIGHTS), random.Random(0)
    packed, meant = dict(tensors), dict(tensors)
    for name in [name for name in tensors if name.endswith(("gate_up_proj", "down_proj"))]:
        experts, width, outputs = packed.pop(name).shape
        packed[f"{name}{mark}blocks"], packed[f"{name}{mark}scales"], meant[name] = mxfp4(experts, outputs, width, rng)
    for folder, written in (("few", packed), ("whole", meant)):
        shutil.copytree(source, tmp_path / folder)
        save_file({name: tensor.contiguous() for name, tensor in written.items()}, tmp_path / folder / WEIGHTS)
    listed = ["model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"]
    edit_config(tmp_path / "few", {"quant_method": "mxfp4", "modules_to_not_convert": listed}, "llm_config")


@pytest.mark.parametrize("mark", ["_", "."])
def test_experts_of_gpt_oss_stay_in_mxfp4(mark: str, tmp_path: Path) -> None:
    gpt_oss(tmp_path, mark)
    layers = few_bits(load_parts(tmp_path / "few").model)
    assert [len(each) for each in layers.values()] == [3, 3]
    assert {described(layer) for each in layers.values() for layer in each} == {"mxfp4 32"}
    whole = logits(tmp_path / "whole")
    torch.testing.assert_close(logits(tmp_path / "few", unpack=True), whole, atol=2e-5, rtol=0)
    torch.testing.assert_close(logits(tmp_path / "few"), whole, atol=0.05 * float(whole.abs().max()), rtol=0)
    cascadevl.load(tmp_path / "few").save(tmp_path / "again", layout="chat")
    assert (
        json.loads((tmp_path / "again" / "config.json").read_text())["quantization_config"]["quant_method"] == "mxfp4"
    )
    assert torch.equal(logits(tmp_path / "again"), logits(tmp_path / "few"))


OPENAI = (
    ("model.layers.", "block."),
    ("model.embed_tokens.", "embedding."),
    ("model.norm.weight", "norm.scale"),
    ("lm_head.", "unembedding."),
    ("self_attn.sinks", "attn.sinks"),
    ("self_attn.o_proj.", "attn.out."),
    ("input_layernorm.weight", "attn.norm.scale"),
    ("post_attention_layernorm.weight", "mlp.norm.scale"),
    ("mlp.router.", "mlp.gate."),
    ("mlp.experts.gate_up_proj_bias", "mlp.mlp1_bias"),
    ("mlp.experts.down_proj_bias", "mlp.mlp2_bias"),
    ("mlp.experts.gate_up_proj", "mlp.mlp1_weight"),
    ("mlp.experts.down_proj", "mlp.mlp2_weight"),
)


def test_the_names_of_openai_itself_are_read(tmp_path: Path) -> None:
    gpt_oss(tmp_path, ".")
    expected = logits(tmp_path / "few")

    def rename(tensors: dict[str, torch.Tensor]) -> None:
        for name in list(tensors):
            if name.endswith(("q_proj.weight", "q_proj.bias")):
                parts = [tensors.pop(name.replace("q_proj", f"{part}_proj")) for part in "qkv"]
                tensors[name.replace("self_attn.q_proj", "attn.qkv").replace("model.layers.", "block.")] = torch.cat(
                    parts
                )
        for name in list(tensors):
            new = name
            for ours, theirs in OPENAI:
                new = new.replace(ours, theirs) if name.startswith("language_model.") else new
            tensors[new] = tensors.pop(name)

    change(tmp_path / "few", rename)
    assert "language_model.block.0.mlp.mlp1_weight.blocks" in load_file(tmp_path / "few" / WEIGHTS)
    assert torch.equal(logits(tmp_path / "few"), expected)


def test_what_is_no_linear_layer_becomes_whole(originals: Any, tmp_path: Path) -> None:
    write_pair(originals("qwen2", "hf"), tmp_path / "few", tmp_path / "whole", BLOCKS, fp8(128, 128))
    tensors = load_file(tmp_path / "few" / WEIGHTS)
    name = "model.language_model.embed_tokens"
    outputs, width = tensors[f"{name}.weight"].shape
    stored, weight = fp8(128, 128)(name, outputs, width, torch.Generator())
    save_file({**tensors, **stored}, tmp_path / "few" / WEIGHTS)
    parts = load_parts(tmp_path / "few", dtype="float32")
    assert torch.equal(parts.model.language_model.model.embed_tokens.weight, weight)
    assert any("no linear layer's" in note for note in parts.notes)


def test_fixed_scales_of_activations_are_not_needed(originals: Any, tmp_path: Path) -> None:
    config = {"quant_method": "fp8", "activation_scheme": "static"}
    write_pair(originals("qwen2", "hf"), tmp_path / "few", tmp_path / "whole", config, fp8(0, 0, "weight_scale"))
    tensors = load_file(tmp_path / "few" / WEIGHTS)
    more = {name.replace("weight_scale", "input_scale"): torch.ones(()) for name in tensors if "weight_scale" in name}
    save_file({**tensors, **more}, tmp_path / "few" / WEIGHTS)
    assert torch.equal(logits(tmp_path / "few", unpack=True), logits(tmp_path / "whole"))


# ------------------------------------------------------------------------------------------------ bad folders


@pytest.fixture
def folder(originals: Any, tmp_path: Path) -> Path:
    write_pair(originals("qwen2", "hf"), tmp_path / "few", tmp_path / "whole", {**AWQ, "group_size": 32}, awq(32))
    return tmp_path / "few"


def change(folder: Path, edit: Callable[[dict[str, torch.Tensor]], object]) -> None:
    tensors = load_file(folder / WEIGHTS)
    edit(tensors)
    save_file(tensors, folder / WEIGHTS)


Q = "model.language_model.layers.0.self_attn.q_proj"


def test_a_part_that_is_missing_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop(f"{Q}.scales"))
    with pytest.raises(CheckpointError, match=r"q_proj.qweight' without .*q_proj.scales"):
        load_parts(folder)


def test_a_part_that_is_left_over_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.pop(f"{Q}.qweight"))
    with pytest.raises(CheckpointError, match=r"1 missing \(.*q_proj.weight\); 2 unexpected \(.*qzeros"):
        load_parts(folder)


def test_a_weight_that_is_there_twice_is_refused(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({f"{Q}.weight": torch.zeros(128, 128)}))
    with pytest.raises(CheckpointError, match="are the same weight: which one holds"):
        load_parts(folder)


def test_a_wrong_shape_or_type_is_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors.update({f"{Q}.scales": tensors[f"{Q}.scales"][:2].contiguous()}))
    with pytest.raises(CheckpointError, match=r"q_proj.scales.*is float16 \[2, 128\]; expected .*\[4, 128\]"):
        load_parts(folder)


def test_a_weight_of_another_size_than_the_model_is_named(folder: Path) -> None:
    def half(tensors: dict[str, torch.Tensor]) -> None:
        for end in ("qweight", "qzeros", "scales"):
            whole = tensors[f"{Q}.{end}"]
            tensors[f"{Q}.{end}"] = whole[:, : whole.shape[1] // 2].contiguous()

    change(folder, half)
    with pytest.raises(
        CheckpointError, match=r"q_proj.weight has the shape \[64, 128\], config.json implies \[128, 128\]"
    ):
        load_parts(folder)


def test_zero_points_must_be_there_and_fit(originals: Any, tmp_path: Path) -> None:
    config, pack, _ = HELD["compressed-int4-zeros"]
    write_pair(originals("qwen2", "hf"), tmp_path / "few", tmp_path / "whole", config, pack)
    name = f"{Q}.weight_zero_point"
    change(tmp_path / "few", lambda tensors: tensors.update({name: tensors[name][:3].contiguous()}))
    with pytest.raises(CheckpointError, match=r"q_proj.weight_zero_point.*\[3, 4\]; expected .*\[16, 4\]"):
        load_parts(tmp_path / "few")
    change(tmp_path / "few", lambda tensors: tensors.pop(name))
    with pytest.raises(CheckpointError, match="has no zero points, and quantization_config says it has"):
        load_parts(tmp_path / "few")


def test_scales_that_are_no_numbers_are_named(folder: Path) -> None:
    change(folder, lambda tensors: tensors[f"{Q}.scales"].view(-1).__setitem__(0, torch.nan))
    with pytest.raises(CheckpointError, match=r"q_proj.scales.*NaN or infinity"):
        load_parts(folder)


def test_an_unknown_method_is_refused_with_those_that_are_known(folder: Path) -> None:
    edit_config(folder, {"quant_method": "quip"})
    with pytest.raises(CheckpointError, match=f"quant_method 'quip'. Known: {', '.join(METHODS)}"):
        load_parts(folder)


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({**AWQ, "bits": 3}, "bits 3: expected 4"),
        ({**AWQ, "version": "gemv"}, "version 'gemv': expected 'gemm'"),
        ({**AWQ, "group_size": 0}, "group_size 0: expected a whole number"),
        ({**AWQ, "group_size": 32, "modules_to_not_convert": ["q_proj"]}, "leaves 'q_proj' in full precision"),
        ({**AWQ, "group_size": 32, "modules_to_not_convert": ["re:.*q_proj"]}, "leaves 're:.*q_proj' in full"),
        ({**GPTQ, "checkpoint_format": "marlin"}, "checkpoint_format 'marlin'"),
        ({**GPTQ, "dynamic": {"+:.*": {"bits": 8}}}, "settings of its own"),
        (compressed(INT4, "marlin-24"), "format 'marlin-24'"),
        (compressed(INT4, "nvfp4-pack-quantized"), "format 'nvfp4-pack-quantized'"),
        (compressed(INT4, transform_config={"config_groups": {}, "a": 1}), "sparse or rotated"),
        ({"quant_method": "mxfp4"}, "no tensor of the folder is stored so"),
        ({**AWQ, "group_size": 32, "modules_to_not_convert": ["re:("]}, "has the pattern 're:\\('"),
    ],
)
def test_settings_that_do_not_hold_are_refused(config: dict[str, Any], message: str, folder: Path) -> None:
    edit_config(folder, config)
    with pytest.raises(CheckpointError, match=message):
        load_parts(folder)


def test_two_configs_that_differ_are_refused(folder: Path) -> None:
    edit_config(folder, {**AWQ, "group_size": 64}, "text_config")
    with pytest.raises(CheckpointError, match="two quantization_configs that differ"):
        load_parts(folder)


def test_bytes_without_a_scale_are_refused(originals: Any, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(originals("qwen2", "hf"), tmp_path / "model"))
    change(folder, lambda tensors: tensors.update({f"{Q}.weight": tensors[f"{Q}.weight"].to(torch.float8_e4m3fn)}))
    with pytest.raises(CheckpointError, match="is float8_e4m3fn, and neither a scale"):
        load_parts(folder)


def test_a_folder_of_few_bits_is_not_rounded_again(folder: Path) -> None:
    with pytest.raises(ConfigError, match="of few bits already"):
        cascadevl.load(folder, quant="int8")


def test_linears_that_the_config_does_not_name_stay_whole(folder: Path) -> None:
    model = load_parts(folder).model
    assert type(model.get_submodule("vision_model.encoder.layers.0.attn.qkv")) is nn.Linear
    assert type(model.mlp1[1]) is nn.Linear and type(model.language_model.lm_head) is nn.Linear
