"""Tiny random parts as they lie on people's disks: a language model's own folder, an InternViT folder."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

from cascadevl.checkpoints.save import save_parts
from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.preprocessing.tokenizer_files import SPECIAL_TOKENS


def write_language(folder: Path, family: str = "qwen3", **changes) -> Path:
    """A language model before InternVL: names without a beginning, a tokenizer without InternVL's tokens."""
    parts = tiny_parts(family, seed=3, std=0.2, **changes)
    whole = save_parts(parts, folder.with_name(f"{folder.name}-whole"), layout="chat")
    folder.mkdir()
    stored = load_file(whole / "model.safetensors")
    prefix = "language_model."
    words = {name.removeprefix(prefix): tensor for name, tensor in stored.items() if name.startswith(prefix)}
    save_file(words, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())["llm_config"]
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "generation_config.json").write_text('{"eos_token_id": 256}')
    definition = json.loads((whole / "tokenizer.json").read_text())
    kept = [token for token in definition["added_tokens"] if token["content"] not in SPECIAL_TOKENS]
    assert [token["id"] for token in kept] == list(range(256, 256 + len(kept)))
    (folder / "tokenizer.json").write_text(json.dumps({**definition, "added_tokens": kept}))
    return folder


def write_tower(folder: Path, *, seed: int = 5, dtype: torch.dtype = torch.float32) -> Path:
    """As OpenGVLab/InternViT-300M-448px-V2_5 lies: flat config, names without a beginning."""
    parts = tiny_parts("llama", seed=seed, std=0.2)
    whole = save_parts(parts, folder.with_name(f"{folder.name}-whole"), layout="chat")
    folder.mkdir()
    prefix = "vision_model."
    stored = load_file(whole / "model.safetensors")
    tower = {name.removeprefix(prefix): t.to(dtype) for name, t in stored.items() if name.startswith(prefix)}
    save_file(tower, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((whole / "config.json").read_text())["vision_config"]
    config |= {"model_type": "intern_vit_6b", "architectures": ["InternVisionModel"], "torch_dtype": "bfloat16"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
