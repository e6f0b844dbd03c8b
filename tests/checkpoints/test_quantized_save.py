"""Models of few bits are written so that others read them, and read again to the bit."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
import torch

import cascadevl
from cascadevl.checkpoints.convert import convert, fingerprint
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts, write_tiny
from cascadevl.checkpoints.weights import entries
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.models.quant_linear import few_bits, quantize_decoder, quantize_linears
from cascadevl.ops.formats import FORMATS

WIDE: dict[str, Any] = {"num_layers": 1, "hidden_size": 128, "mlp_size": 128, "head_size": 32}


def same(one: Path, other: Path) -> bool:
    first, second = (load_parts(folder) for folder in (one, other))
    states = first.model.state_dict(), second.model.state_dict()
    assert states[0].keys() == states[1].keys() and first.spec == second.spec
    return all(
        torch.equal(a.float(), b.float()) and a.dtype == b.dtype for a, b in zip(*map(dict.values, states), strict=True)
    )


@pytest.mark.parametrize("layout", ["hf", "chat"])
@pytest.mark.parametrize("name", FORMATS)
def test_what_was_rounded_is_saved_and_loaded_to_the_bit(name: str, layout: str, tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "whole", "qwen2", layout=layout, std=0.1, **WIDE)
    rounded = cascadevl.load(source, quant=name)
    rounded.save(tmp_path / "first", layout=layout)
    again = cascadevl.load(tmp_path / "first")
    assert fingerprint(again.model) == fingerprint(rounded.model)
    assert again.spec == rounded.spec
    assert torch.equal(again.logits("What?")[1], rounded.logits("What?")[1])
    again.save(tmp_path / "second", layout=layout)
    assert same(tmp_path / "first", tmp_path / "second")


@pytest.mark.parametrize("layout", ["hf", "chat"])
@pytest.mark.parametrize(
    ("family", "name"),
    [
        ("internlm2", "int4-g32-zeros"),
        ("phi3", "int4-g32"),
        ("qwen3_moe", "int4-g32"),
        ("qwen3_moe", "int8"),
        ("gpt_oss", "int4-g32-zeros"),
        ("gpt_oss", "int8"),
        ("gpt_oss", "fp8"),
        ("gpt_oss", "mxfp4"),
    ],
)
def test_joined_matrices_and_experts_are_too(family: str, name: str, layout: str, tmp_path: Path) -> None:
    sizes: dict[str, Any] = {"num_layers": 1, "mlp_size": 32}
    if family in ("qwen3_moe", "gpt_oss"):
        sizes |= {"experts": {"mlp_size": 32, "num_experts": 3, "num_per_token": 2}}
    source = write_tiny(tmp_path / "whole", family, layout=layout, std=0.1, **sizes)
    rounded = cascadevl.load(source, quant=name)
    rounded.save(tmp_path / "few", layout=layout)
    again = cascadevl.load(tmp_path / "few")
    assert fingerprint(again.model) == fingerprint(rounded.model)
    assert torch.equal(again.logits("What?")[1], rounded.logits("What?")[1])


def test_experts_answer_as_their_rounded_weights_say(tmp_path: Path) -> None:
    """In few bits and in full, a token alone and several together."""
    for family in ("qwen3_moe", "gpt_oss"):
        sizes: dict[str, Any] = {"num_layers": 1, "mlp_size": 32, "experts": {"mlp_size": 32}}
        source = write_tiny(tmp_path / family, family, std=0.1, **sizes)
        whole, rounded = cascadevl.load(source), cascadevl.load(source, quant="int8")
        mlp = rounded.model.get_submodule("language_model.model.layers.0.mlp")
        hidden_TD = torch.randn(9, 32)
        expected_TD = whole.model.get_submodule("language_model.model.layers.0.mlp")(hidden_TD)
        with torch.no_grad():
            for said_TD in (mlp(hidden_TD), torch.cat([mlp(row) for row in hidden_TD.split(1)])):
                assert (said_TD - expected_TD).norm() < 0.02 * expected_TD.norm()


def test_the_router_of_experts_stays_whole() -> None:
    for family, router in (("qwen3_moe", "gate"), ("gpt_oss", "router")):
        parts = tiny_parts(family)
        quantize_decoder(parts.model.language_model, FORMATS["int8"])
        assert not any(f".{router}." in name for name in few_bits(parts.model))


def test_the_head_is_rounded_on_request(tmp_path: Path) -> None:
    parts = tiny_parts("qwen3", std=0.1)
    quantize_decoder(parts.model.language_model, FORMATS["int8"], head=True)
    assert "language_model.lm_head.weight" in few_bits(parts.model)
    bundle = cascadevl.Bundle(parts)
    bundle.save(tmp_path / "few")
    assert torch.equal(cascadevl.load(tmp_path / "few").logits("What?")[1], bundle.logits("What?")[1])


def test_two_formats_may_stand_in_one_folder(tmp_path: Path) -> None:
    parts = tiny_parts("qwen3", std=0.1)
    quantize_linears(parts.model, lambda name: name.endswith("k_proj"), FORMATS["int4-g32"])
    quantize_linears(parts.model, lambda name: name.endswith(("v_proj", "fc1", "mlp1.1")), FORMATS["fp8"])
    bundle = cascadevl.Bundle(parts)
    bundle.save(tmp_path / "few")
    settings = json.loads((tmp_path / "few" / "config.json").read_text())["quantization_config"]
    assert settings["format"] == "mixed-precision" and len(settings["config_groups"]) == 2
    assert fingerprint(cascadevl.load(tmp_path / "few").model) == fingerprint(parts.model)


def test_the_config_says_what_is_rounded_and_what_is_not(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "whole", "qwen3", std=0.1)
    cascadevl.load(source, quant="int8").save(tmp_path / "few")
    settings = json.loads((tmp_path / "few" / "config.json").read_text())["quantization_config"]
    (group,) = settings["config_groups"].values()
    assert settings["quant_method"] == "compressed-tensors" and settings["format"] == group["format"] == "int-quantized"
    assert group["weights"] == {
        "num_bits": 8,
        "type": "int",
        "strategy": "channel",
        "symmetric": True,
        "dynamic": False,
    }
    names = entries(tmp_path / "few")
    linears = {name.removesuffix(".weight") for name, entry in names.items() if name.endswith("_proj.weight")}
    few = {name.removesuffix(".weight_scale") for name in names if name.endswith(".weight_scale")}
    assert "lm_head" in settings["ignore"] and "model.multi_modal_projector.linear_1" in settings["ignore"]
    assert few and few <= linears and not few & set(settings["ignore"])
    assert linears - few <= set(settings["ignore"])


def test_the_wish_for_the_cache_is_kept(tmp_path: Path) -> None:
    save_parts(dataclasses.replace(tiny_parts("qwen3"), kv_cache="int8"), tmp_path / "model")
    assert json.loads((tmp_path / "model" / "config.json").read_text())["cascadevl"] == {"kv_cache": "int8"}
    assert load_parts(tmp_path / "model").kv_cache == "int8"
    path = tmp_path / "model" / "config.json"
    path.write_text(path.read_text().replace('"int8"', '"int3"'))
    with pytest.raises(CheckpointError, match="keys and values in 'int3': expected auto"):
        load_parts(tmp_path / "model")


def test_blocks_that_a_layout_would_part_are_refused(tmp_path: Path) -> None:
    source = write_tiny(tmp_path / "whole", "internlm2", layout="chat")
    rounded = cascadevl.load(source, quant="fp8-blocks")
    with pytest.raises(ConfigError, match="cannot be cut so"):
        rounded.save(tmp_path / "few", layout="chat")
    assert not (tmp_path / "few").exists()


def test_few_bits_go_from_one_layout_to_the_other(tmp_path: Path) -> None:
    """The parity report compares them as well."""
    source = write_tiny(tmp_path / "whole", "internlm2", layout="chat", std=0.1, mlp_size=64)
    cascadevl.load(source, quant="int4-g32").save(tmp_path / "few", layout="chat")
    report = convert(tmp_path / "few", tmp_path / "hf", "hf")
    assert report["weights_equal"] and report["logits_max_abs_difference"] == 0
    assert few_bits(load_parts(tmp_path / "hf").model)
