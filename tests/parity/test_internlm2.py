"""InternLM2 in its own layout, against its formulas written out over the tensors of the file.

transformers no longer has the family. The reference below follows the released `modeling_internlm2.py`:
`wqkv` is viewed as (key heads, query heads of each + 2, head size, width).
"""

import json
import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

import cascadevl

Make = Callable[..., Any]
PREFIX = "language_model."


def _norm(x_TD: Tensor, weight_D: Tensor, eps: float) -> Tensor:
    return x_TD / (x_TD.square().mean(-1, keepdim=True) + eps).sqrt() * weight_D


def _turn(x_TH: Tensor, theta: float) -> Tensor:
    """Each pair (i, i + H/2) by position · theta^(-2i/H)."""
    size = x_TH.shape[1]
    out = x_TH.clone()
    for i in range(size // 2):
        angle = torch.arange(len(x_TH)) * theta ** (-2 * i / size)
        first, second = x_TH[:, i], x_TH[:, i + size // 2]
        out[:, i] = first * angle.cos() - second * angle.sin()
        out[:, i + size // 2] = second * angle.cos() + first * angle.sin()
    return out


def reference(tensors: dict[str, Tensor], config: dict[str, Any], embed_TD: Tensor) -> Tensor:
    """(T, V) of embeddings (T, D)."""
    hidden, eps = embed_TD, config["rms_norm_eps"]
    key_heads, size = config["num_key_value_heads"], config["head_dim"]
    groups = config["num_attention_heads"] // key_heads
    mask = torch.ones(len(hidden), len(hidden)).triu(1).bool()
    for number in range(config["num_hidden_layers"]):
        layer = {
            name.removeprefix(f"{PREFIX}model.layers.{number}."): tensor
            for name, tensor in tensors.items()
            if name.startswith(f"{PREFIX}model.layers.{number}.")
        }
        x = _norm(hidden, layer["attention_norm.weight"], eps)
        wqkv = layer["attention.wqkv.weight"].view(key_heads, groups + 2, size, -1)
        outs = []
        for head in range(key_heads):
            key, value = _turn(x @ wqkv[head, -2].T, config["rope_theta"]), x @ wqkv[head, -1].T
            for slot in range(groups):
                query = _turn(x @ wqkv[head, slot].T, config["rope_theta"])
                scores = (query @ key.T / math.sqrt(size)).masked_fill(mask, -math.inf)
                outs.append(scores.softmax(-1) @ value)
        hidden = hidden + torch.cat(outs, dim=1) @ layer["attention.wo.weight"].T
        x = _norm(hidden, layer["ffn_norm.weight"], eps)
        gate, up = x @ layer["feed_forward.w1.weight"].T, x @ layer["feed_forward.w3.weight"].T
        hidden = hidden + (gate * gate.sigmoid() * up) @ layer["feed_forward.w2.weight"].T
    return _norm(hidden, tensors[PREFIX + "model.norm.weight"], eps) @ tensors[PREFIX + "output.weight"].T


@pytest.mark.parametrize("family", ["internlm2", "internlm3"])
@pytest.mark.parametrize("std", [0.002, 0.2])
def test_the_packed_layout_means_what_its_formulas_say(
    family: str, std: float, several_pictures: list, make_member: Make
) -> None:
    folder = make_member(family, std=std, layout="chat").folder
    tensors = load_file(folder / "model.safetensors")
    assert f"{PREFIX}model.tok_embeddings.weight" in tensors and not any("q_proj" in name for name in tensors)
    config = json.loads((folder / "config.json").read_text())["llm_config"]
    bundle = cascadevl.load(folder)
    inputs = bundle.preprocess(several_pictures)
    embed_TD = bundle.model.embed(inputs.token_ids, inputs.tiles)
    ours, theirs = bundle.logits(several_pictures)[1], reference(tensors, config, embed_TD)
    assert float((ours - theirs).abs().max() / theirs.abs().max()) < 2e-5 / 5


def test_an_internlm3_that_is_named_like_llama_is_read(one_picture: list, make_member: Make, tmp_path: Any) -> None:
    """InternLM3 by itself keeps q, k and v apart; files of both kinds exist."""
    from safetensors.torch import save_file

    member = make_member("internlm3", layout="chat")
    for path in member.folder.iterdir():
        if path.suffix != ".safetensors":
            (tmp_path / path.name).write_bytes(path.read_bytes())
    ours = {name: p.detach().clone() for name, p in member.bundle.model.named_parameters()}
    save_file(ours, tmp_path / "model.safetensors")
    assert torch.equal(cascadevl.load(tmp_path).logits(one_picture)[1], member.bundle.logits(one_picture)[1])
