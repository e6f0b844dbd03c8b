"""Adapters against transformers' model with W + alpha/r·B·A put into it by hand, and against PEFT where it is."""

import copy
import importlib
import importlib.util
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

import cascadevl
from cascadevl.api import Bundle
from cascadevl.checkpoints.adapters import attach, merge, read_adapter
from cascadevl.models.linear import use
from tests.checkpoints.adapter_folders import ALPHA, RANK, delta, random_lora, write

BOUND = 2e-5 / 5
Make = Callable[..., Any]

NATIVE = r".*\.(attention\.[qv]_proj|mlp\.fc1|linear_2|self_attn\.(q|k|v|o|qkv)_proj|mlp\.(gate|down|gate_up)_proj)"
"""Of the tower q and v but not k, which with us are rows of one matrix."""


def _error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).abs().max() / theirs.abs().max())


def _native_lora(oracle: Any, dora: bool = False) -> dict[str, Tensor]:
    modules = {n: m for n, m in oracle.named_modules() if isinstance(m, torch.nn.Linear) and re.fullmatch(NATIVE, n)}
    assert any("vision" in name for name in modules) and any("language" in name for name in modules)
    return random_lora({name: module.weight.shape for name, module in modules.items()}, dora=dora)


def _changed(oracle: Any, tensors: dict[str, Tensor]) -> Any:
    """A copy with the arithmetic of the papers in its weights."""
    oracle = copy.deepcopy(oracle)
    for name in tensors:
        if name.endswith(".lora_A.weight"):
            module = name.removesuffix(".lora_A.weight")
            weight = oracle.get_submodule(module).weight
            new = weight.data + delta(tensors, module)
            if f"{module}.lora_magnitude_vector" in tensors:
                new = tensors[f"{module}.lora_magnitude_vector"][:, None] * new / new.norm(dim=1, keepdim=True)
            weight.data = new
    return oracle


def _merged(folder: Path, adapter: Path) -> Bundle:
    bundle = cascadevl.load(folder)
    merge(bundle.model, read_adapter(adapter, bundle.model))
    return bundle


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", ["llama", "internlm2", "phi3", "qwen3"])
def test_adapters_of_the_transformers_layout(
    family: str, dora: bool, several_pictures: list, make_member: Make, read_oracle: Make, oracle_logits: Make, tmp_path
) -> None:
    folder = make_member(family).folder
    oracle = read_oracle(folder)
    tensors = _native_lora(oracle, dora)
    adapter = write(tmp_path / "adapter", tensors, target_modules=NATIVE, use_dora=dora)
    bundle = cascadevl.load(folder)
    inputs = bundle.preprocess(several_pictures)
    before = bundle.logits(several_pictures)[1]
    theirs = oracle_logits(_changed(oracle, tensors), inputs, bundle.spec)
    assert _error(before, theirs) > 0.05
    assert _error(_merged(folder, adapter).logits(several_pictures)[1], theirs) < BOUND

    attach(bundle.model, read_adapter(adapter, bundle.model), "style")
    assert torch.equal(bundle.logits(several_pictures)[1], before)
    use(bundle.model, "style")
    assert _error(bundle.logits(several_pictures)[1], theirs) < BOUND
    use(bundle.model)
    assert torch.equal(bundle.logits(several_pictures)[1], before)


CHAT = {
    "internlm2": ["attn.qkv", "mlp.fc2", "attention.wqkv", "attention.wo", "feed_forward.w1", "feed_forward.w2"],
    "phi3": ["attn.qkv", "attn.proj", "self_attn.qkv_proj", "mlp.gate_up_proj", "mlp1.1"],
    "qwen3": ["attn.qkv", "mlp.fc1", "q_proj", "k_proj", "down_proj", "mlp1.3"],
}
"""Targets of the released training code, and the projector."""


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("family", CHAT)
def test_adapters_of_the_original_layout(
    family: str, dora: bool, several_pictures: list, make_member: Make, tmp_path: Path
) -> None:
    """The oracle is the arithmetic on the folder's own tensors, read again as weights."""
    folder = make_member(family, layout="chat").folder
    stored = load_file(folder / "model.safetensors")
    ends = tuple(f".{target}" for target in CHAT[family])
    modules = [name.removesuffix(".weight") for name in stored if name.endswith(".weight")]
    chosen = [module for module in modules if f".{module}".endswith(ends)]
    assert all(any(f".{module}".endswith(end) for module in chosen) for end in ends)
    tensors = random_lora({module: stored[f"{module}.weight"].shape for module in chosen}, dora=dora)
    for module in chosen:
        new = stored[f"{module}.weight"] + delta(tensors, module)
        if dora:
            new = tensors[f"{module}.lora_magnitude_vector"][:, None] * new / new.norm(dim=1, keepdim=True)
        stored[f"{module}.weight"] = new
    shutil.copytree(folder, tmp_path / "changed")
    save_file(stored, tmp_path / "changed" / "model.safetensors", metadata={"format": "pt"})
    theirs = cascadevl.load(tmp_path / "changed").logits(several_pictures)[1]

    adapter = write(tmp_path / "adapter", tensors, target_modules=CHAT[family], use_dora=dora)
    assert _error(_merged(folder, adapter).logits(several_pictures)[1], theirs) < BOUND
    bundle = cascadevl.load(folder)
    assert _error(bundle.logits(several_pictures)[1], theirs) > 0.05
    attach(bundle.model, read_adapter(adapter, bundle.model), "style")
    use(bundle.model, "style")
    assert _error(bundle.logits(several_pictures)[1], theirs) < BOUND


def test_an_adapter_of_either_layout_fits_a_folder_of_the_other(
    one_picture: list, make_member: Make, tmp_path: Path
) -> None:
    """q of the tower alone, by its own name and as the first rows of qkv whose other rows do not change."""
    bundle = make_member("qwen3").bundle
    width = bundle.model.config.vision.hidden_size
    hf, chat = "model.vision_tower.encoder.layer.0.attention.q_proj", "vision_model.encoder.layers.0.attn.qkv"
    tensors = random_lora({hf: (width, width)})
    a, b = tensors[f"{hf}.lora_A.weight"], tensors[f"{hf}.lora_B.weight"]
    whole = {f"{chat}.lora_A.weight": a, f"{chat}.lora_B.weight": torch.cat([b, torch.zeros(2 * width, RANK)])}
    logits = []
    for name, adapter in (("hf", tensors), ("chat", whole)):
        changed = copy.deepcopy(bundle.model)
        merge(changed, read_adapter(write(tmp_path / name, adapter), changed))
        inputs = bundle.preprocess(one_picture)
        logits.append(changed(inputs.token_ids, inputs.tiles))
    assert torch.equal(*logits)


@pytest.mark.skipif(importlib.util.find_spec("peft") is None, reason="the package peft is not installed")
@pytest.mark.parametrize(
    "options",
    [{}, {"use_rslora": True}, {"use_dora": True}, {"rank_pattern": {"q_proj": 5}, "alpha_pattern": {"k_proj": 2}}],
)
@pytest.mark.filterwarnings("ignore")
def test_folders_that_peft_wrote_mean_what_they_mean_to_peft(
    options: dict, several_pictures: list, make_member: Make, read_oracle: Make, oracle_logits: Make, tmp_path: Path
) -> None:
    peft: Any = importlib.import_module("peft")

    folder = make_member("qwen3").folder
    config = peft.LoraConfig(
        r=RANK,
        lora_alpha=ALPHA,
        target_modules=["q_proj", "k_proj", "gate_proj", "fc1", *([] if "use_dora" in options else ["embed_tokens"])],
        modules_to_save=["multi_modal_projector"],
        **options,
    )
    theirs: Any = peft.get_peft_model(copy.deepcopy(read_oracle(folder)), config).eval()
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in theirs.named_parameters():
            if "lora_" in name or "modules_to_save" in name:
                parameter += 0.1 * torch.randn(parameter.shape, generator=generator)
    theirs.save_pretrained(tmp_path / "adapter")
    bundle = _merged(folder, tmp_path / "adapter")
    inputs = bundle.preprocess(several_pictures)
    expected = oracle_logits(theirs, inputs, bundle.spec)
    assert _error(bundle.logits(several_pictures)[1], expected) < BOUND
    assert _error(cascadevl.load(folder).logits(several_pictures)[1], expected) > 0.05
