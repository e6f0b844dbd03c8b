"""PEFT LoRA folders of random numbers, written by hand."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

RANK, ALPHA = 3, 7
SCALE = ALPHA / RANK

CONFIG = {
    "peft_type": "LORA",
    "task_type": "CAUSAL_LM",
    "base_model_name_or_path": "somebody/model",
    "inference_mode": True,
    "r": RANK,
    "lora_alpha": ALPHA,
    "lora_dropout": 0.05,
    "bias": "none",
    "fan_in_fan_out": False,
    "init_lora_weights": True,
    "use_rslora": False,
    "use_dora": False,
    "modules_to_save": None,
    "rank_pattern": {},
    "alpha_pattern": {},
    "layers_to_transform": None,
    "target_modules": [],
}


def random_lora(shapes: Mapping[str, Sequence[int]], *, seed: int = 0, dora: bool = False) -> dict[str, Tensor]:
    """Module -> its parts under PEFT's names; changes smaller than tiny weights of std 0.2, and felt."""
    generator = torch.Generator().manual_seed(seed)
    tensors: dict[str, Tensor] = {}
    for module, (num_out, num_in) in shapes.items():
        tensors[f"{module}.lora_A.weight"] = 0.1 * torch.randn(RANK, num_in, generator=generator)
        tensors[f"{module}.lora_B.weight"] = 0.1 * torch.randn(num_out, RANK, generator=generator)
        if dora:
            tensors[f"{module}.lora_magnitude_vector"] = 0.5 + torch.rand(num_out, generator=generator)
    return tensors


def delta(tensors: Mapping[str, Tensor], module: str, scale: float = SCALE) -> Tensor:
    return scale * tensors[f"{module}.lora_B.weight"] @ tensors[f"{module}.lora_A.weight"]


def write(folder: Path, tensors: Mapping[str, Tensor], **config: Any) -> Path:
    """A folder whose targets are, unless told otherwise, the modules that have tensors."""
    folder.mkdir(parents=True, exist_ok=True)
    modules = sorted({name.split(".lora_")[0] for name in tensors if ".lora_" in name})
    (folder / "adapter_config.json").write_text(json.dumps({**CONFIG, "target_modules": modules, **config}))
    save_file({f"base_model.model.{name}": t for name, t in tensors.items()}, folder / "adapter_model.safetensors")
    return folder
