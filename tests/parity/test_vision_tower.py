"""The tower alone, block by block, and both pixel shuffles against loops."""

import re
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import InternVLVisionConfig, InternVLVisionModel

from cascadevl.checkpoints.tiny import TINY_VISION
from cascadevl.core.config import evolve
from cascadevl.models.config import VisionConfig
from cascadevl.models.projector import pixel_shuffle
from cascadevl.models.vision import InternViT

TOWERS: dict[str, VisionConfig] = {
    "300M": evolve(TINY_VISION, num_layers=3),
    "6B": evolve(TINY_VISION, num_layers=3, norm="rms_norm", qk_norm=True, qkv_bias=False),
}
RENAMED = (
    (r"^embeddings\.cls_token$", "embeddings.class_embedding"),
    (r"^embeddings\.position_embeddings$", "embeddings.position_embedding"),
    (r"^embeddings\.patch_embeddings\.projection", "embeddings.patch_embedding"),
    (r"^encoder\.layer\.", "encoder.layers."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.lambda_(\d)", r".ls\1"),
    (r"\.attention\.projection_layer\.", ".attn.proj."),
    (r"\.attention\.", ".attn."),
)


def _pair(config: VisionConfig, std: float) -> tuple[InternViT, InternVLVisionModel]:
    """transformers' tower with random weights, and ours with the same, renamed and stacked here by hand."""
    torch.manual_seed(0)
    theirs = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=config.hidden_size,
            intermediate_size=config.mlp_size,
            num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads,
            image_size=[config.tile_px] * 2,
            patch_size=[config.patch_px] * 2,
            attention_bias=config.qkv_bias,
            use_qk_norm=config.qk_norm,
            norm_type=config.norm,
            attn_implementation="eager",  # type: ignore[call-arg]
        )
    ).eval()
    with torch.no_grad():
        for p in theirs.parameters():
            p.copy_(
                1 + torch.rand(p.shape) - 0.5 if p.ndim == 1 and bool((p == 1).all()) else torch.randn(p.shape) * std
            )
    tensors: dict[str, Tensor] = {}
    for name, tensor in theirs.state_dict().items():
        for pattern, new in RENAMED:
            name = re.sub(pattern, new, name)
        tensors[name] = tensor
    for block in range(config.num_layers):
        for kind in ("weight", "bias") if config.qkv_bias else ("weight",):
            parts = [tensors.pop(f"encoder.layers.{block}.attn.{x}_proj.{kind}") for x in "qkv"]
            tensors[f"encoder.layers.{block}.attn.qkv.{kind}"] = torch.cat(parts)
    ours = InternViT(config).eval()
    ours.load_state_dict(tensors)
    return ours, theirs


@pytest.mark.parametrize("name", TOWERS)
@pytest.mark.parametrize("std", [0.002, 0.05, 0.3])
def test_every_hidden_state_equals(name: str, std: float) -> None:
    ours, theirs = _pair(TOWERS[name], std)
    tiles_SCYX = torch.randn(3, 3, 56, 56, generator=torch.Generator().manual_seed(1))
    with torch.inference_mode():
        states = theirs(tiles_SCYX, output_hidden_states=True).hidden_states
        for layer, expected in enumerate(states):
            for select in (layer, layer - len(states)):
                got = ours(tiles_SCYX, select)
                assert float((got - expected[:, 1:]).abs().max()) < 4e-6 * float(expected.abs().max())


def _shuffled_by_loop(patches_SPD: Tensor, r: int) -> Tensor:
    """out[n, I, J, (m·r + k)·C + c] = x[n, r·I + m, r·J + k, c], tokens in rows."""
    tiles, patches, width = patches_SPD.shape
    side = int(patches**0.5)
    x = patches_SPD.view(tiles, side, side, width)
    out = torch.zeros(tiles, side // r, side // r, r * r * width)
    for i, j, m, k in (
        (i, j, m, k) for i in range(side // r) for j in range(side // r) for m in range(r) for k in range(r)
    ):
        out[:, i, j, (m * r + k) * width : (m * r + k + 1) * width] = x[:, r * i + m, r * j + k]
    return out


@pytest.mark.parametrize("r", [2, 4])
def test_pixel_shuffle_equals_the_loop_and_v1_is_its_transposed_grid(r: int) -> None:
    patches_SPD = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    expected = _shuffled_by_loop(patches_SPD, r)
    assert torch.equal(pixel_shuffle(patches_SPD, 1 / r, "v2"), expected.flatten(1, 2))
    assert torch.equal(pixel_shuffle(patches_SPD, 1 / r, "v1"), expected.transpose(1, 2).flatten(1, 2))


@pytest.mark.parametrize("r", [2, 4])
def test_pixel_shuffle_equals_the_released_code(r: int) -> None:
    """`pixel_shuffle` of the remote code, in its own steps of view and permute."""
    patches_SPD = torch.randn(2, 64, 3, generator=torch.Generator().manual_seed(0))
    n, w, h, c, scale = 2, 8, 8, 3, 1 / r
    x = patches_SPD.view(n, w, h, c)
    x = x.view(n, w, int(h * scale), int(c / scale)).permute(0, 2, 1, 3).contiguous()
    x = x.view(n, int(h * scale), int(w * scale), int(c / (scale * scale)))
    released: dict[str, Any] = {"v1": x, "v2": x.permute(0, 2, 1, 3)}
    for version, expected in released.items():
        assert torch.equal(pixel_shuffle(patches_SPD, scale, version), expected.flatten(1, 2))  # type: ignore[arg-type]
