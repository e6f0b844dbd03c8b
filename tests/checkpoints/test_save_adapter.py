"""What was learned is written as PEFT writes it, and read back computes the same."""

import copy
import json
from pathlib import Path

import pytest
import torch

from cascadevl.checkpoints.adapters import attach, merge, read_adapter
from cascadevl.checkpoints.save_adapter import save_adapter
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import ConfigError
from cascadevl.models.internvl import InternVL
from cascadevl.models.linear import use
from cascadevl.models.lora import learned_changes
from cascadevl.training.config import LoraConfig
from cascadevl.training.lora import NAME, attach_lora


def learned(family: str, on: tuple[str, ...], **settings: object) -> tuple[InternVL, InternVL]:
    """A tiny model, and a copy whose changes are no longer zero."""
    plain = tiny_parts(family, std=0.2).model
    model = copy.deepcopy(plain)
    named = attach_lora(model, LoraConfig(rank=3, alpha=6.0, on=on, **settings), seed=0)  # type: ignore[arg-type]
    torch.manual_seed(0)
    with torch.no_grad():
        for _, parameter in named:
            parameter += 0.1 * torch.randn_like(parameter)
    return plain, model.eval()


def logits(model: InternVL) -> torch.Tensor:
    places = [model.config.image_token_id] * model.config.visual_tokens_per_tile
    tiles = torch.arange(3 * 56 * 56).view(1, 3, 56, 56).remainder(251).to(torch.uint8)
    with torch.no_grad():
        return model(torch.tensor([5, *places, 7, 8, 9]), tiles)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["qwen3", "qwen2", "internlm2", "phi3", "qwen3_moe", "gpt_oss"])
def test_merged_and_attached_both_compute_what_was_learned(family: str, dora: bool, tmp_path: Path) -> None:
    """Phi-3's file joins q, k, v and gate, up; the tower's file parts q, k, v: both directions are met."""
    plain, model = learned(family, ("vit", "mlp", "llm"), dora=dora)
    expected = logits(model)
    assert (logits(plain) - expected).abs().max() > 1e-2
    save_adapter(model, learned_changes(model, NAME), tmp_path / "adapter", base="here")
    merged = copy.deepcopy(plain)
    merge(merged, read_adapter(tmp_path / "adapter", merged))
    torch.testing.assert_close(logits(merged), expected, rtol=1e-4, atol=1e-4)
    attach(plain, read_adapter(tmp_path / "adapter", plain), "theirs")
    use(plain, "theirs")
    torch.testing.assert_close(logits(plain), expected, rtol=1e-4, atol=1e-4)


def test_the_config_names_its_targets_as_people_do(tmp_path: Path) -> None:
    _, model = learned("qwen3", ("llm",))
    save_adapter(
        model, learned_changes(model, NAME), tmp_path / "adapter", base="OpenGVLab/X", extra={"spec_hash": "a"}
    )
    config = json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())
    # The tower's projections have these names too in this layout, so the decoder's are named in full.
    assert "model.language_model.layers.0.self_attn.q_proj" in config["target_modules"]
    assert (config["r"], config["lora_alpha"], config["base_model_name_or_path"]) == (3, 6.0, "OpenGVLab/X")
    assert json.loads((tmp_path / "adapter" / "cascadevl.json").read_text()) == {"spec_hash": "a"}
    # Whoever may read the config, a server with a user of its own perhaps, may read the weights.
    assert len({path.stat().st_mode for path in (tmp_path / "adapter").iterdir()}) == 1
    _, model = learned("qwen3", ("*.mlp.down_proj",))
    save_adapter(model, learned_changes(model, NAME), tmp_path / "down", base="x")
    assert json.loads((tmp_path / "down" / "adapter_config.json").read_text())["target_modules"] == ["down_proj"]


def test_qlora_is_written_as_a_lora_over_the_whole_weights(tmp_path: Path) -> None:
    model = tiny_parts("qwen3", std=0.2, mlp_size=64).model
    plain = copy.deepcopy(model)
    attach_lora(model, LoraConfig(rank=2, on=("llm",), quantize="int4-g32"), seed=0)
    changes = learned_changes(model, NAME)
    with torch.no_grad():
        for change in changes.values():
            change.b.normal_(std=0.1)
    save_adapter(model, changes, tmp_path / "adapter", base="x")
    merged = copy.deepcopy(plain)
    merge(merged, read_adapter(tmp_path / "adapter", merged))
    for path, change in changes.items():
        difference = merged.get_parameter(f"{path}.weight") - plain.get_parameter(f"{path}.weight")
        torch.testing.assert_close(difference, change.delta(), rtol=1e-5, atol=1e-6)


def test_dora_over_a_part_of_what_a_file_joins_is_refused(tmp_path: Path) -> None:
    _, model = learned("phi3", ("*.q_proj",), dora=True)
    with pytest.raises(ConfigError, match="DoRA has a length for every row of"):
        save_adapter(model, learned_changes(model, NAME), tmp_path / "adapter", base="x")


def test_routers_and_output_matrices_get_none() -> None:
    _, model = learned("qwen3_moe", ("llm",))
    assert not [path for path in learned_changes(model, NAME) if path.endswith(("gate", "lm_head"))]
    with pytest.raises(ConfigError, match="matches no linear"):
        learned("qwen3", ("lm_head",))
