"""InternViT: one tile of pixels becomes one hidden state per patch.

InternVL 1.5 (arXiv 2404.16821) and 2.5 (arXiv 2412.05271); names and numerics of the released
`modeling_intern_vit.py`. Legend: S tiles, P patches + 1 (CLS first), D width, N heads, H head size.
"""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.models.config import VisionConfig
from cascadevl.models.norm import RMSNorm
from cascadevl.models.quant_linear import QuantLinear
from cascadevl.ops.native import many_queries


class Embeddings(nn.Module):
    """Patches, a class entry in front, learned absolute positions."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        num_patches = (config.tile_px // config.patch_px) ** 2
        self.class_embedding = nn.Parameter(torch.zeros(1, 1, config.hidden_size))
        self.patch_embedding = nn.Conv2d(3, config.hidden_size, config.patch_px, stride=config.patch_px)
        self.position_embedding = nn.Parameter(torch.zeros(1, num_patches + 1, config.hidden_size))

    def forward(self, tiles_SCYX: Tensor) -> Tensor:
        patches_SPD = self.embed_uint8(tiles_SCYX) if tiles_SCYX.dtype == torch.uint8 else self.embed(tiles_SCYX)
        cls = self.class_embedding.expand(len(patches_SPD), 1, -1)
        return torch.cat([cls, patches_SPD], dim=1) + self.position_embedding

    def embed(self, normalised_SCYX: Tensor) -> Tensor:
        """Patches of tiles that are normalised already."""
        weight = self.patch_embedding.weight
        return F.linear(self._patches(normalised_SCYX.to(weight.dtype)), weight.flatten(1), self.patch_embedding.bias)

    def embed_uint8(self, tiles_SCYX: Tensor) -> Tensor:
        """Patches of raw tiles, with (x/255 - mean)/std folded into the weights.

        The nearest whole number to 255·mean is taken off first, which is exact; what is left to fold
        is small, so that fp32 loses nothing by it. Shorter types normalise in fp32 instead.
        """
        weight, bias = self.patch_embedding.weight, self.patch_embedding.bias
        assert bias is not None
        mean = torch.tensor(self.config.pixel_mean, dtype=torch.float64, device=weight.device).view(3, 1, 1)
        std = torch.tensor(self.config.pixel_std, dtype=torch.float64, device=weight.device).view(3, 1, 1)
        if weight.dtype != torch.float32:
            return self.embed((tiles_SCYX.float() / 255 - mean.float()) / std.float())
        centre = (255 * mean).round()
        folded = weight / (255 * std).float()
        shift = (folded * (centre - 255 * mean).float()).sum(dim=(1, 2, 3))
        patches = self._patches(tiles_SCYX).float().sub_(centre.float().expand_as(weight[0]).flatten())
        return F.linear(patches, folded.flatten(1), bias + shift)

    def _patches(self, tiles_SCYX: Tensor) -> Tensor:
        """(S, P-1, C·patch·patch): one row per patch, rows of patches first."""
        tiles, channels, height, _ = tiles_SCYX.shape
        size = self.config.patch_px
        side = height // size
        grid = tiles_SCYX.reshape(tiles, channels, side, size, side, size).permute(0, 2, 4, 1, 3, 5)
        return grid.reshape(tiles, side * side, channels * size * size)


class Attention(nn.Module):
    """Every patch sees every patch of its tile."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        width = config.hidden_size
        self.num_heads = config.num_heads
        self.qkv = nn.Linear(width, 3 * width, bias=config.qkv_bias)
        self.proj = nn.Linear(width, width)
        # The 6B tower normalises over the full width, all heads together, before the split.
        self.q_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else None
        self.k_norm = RMSNorm(width, config.norm_eps) if config.qk_norm else None

    def forward(self, hidden_SPD: Tensor) -> Tensor:
        q, k, v = self.qkv(hidden_SPD).chunk(3, dim=-1)
        if self.q_norm is not None and self.k_norm is not None:
            q, k = self.q_norm(q), self.k_norm(k)
        heads = partial(torch.Tensor.unflatten, dim=-1, sizes=(self.num_heads, -1))
        q_SNPH, k_SNPH, v_SNPH = (heads(x).transpose(1, 2) for x in (q, k, v))
        return self.proj(self._attend(q_SNPH, k_SNPH, v_SNPH).transpose(1, 2).flatten(2))

    def _attend(self, q_SNPH: Tensor, k_SNPH: Tensor, v_SNPH: Tensor) -> Tensor:
        # What comes out of weights of few bits, and activations of eight, has not more digits than bf16 has.
        brief = isinstance(self.qkv, QuantLinear)
        if brief and many_queries.serves(q_SNPH, k_SNPH, v_SNPH):
            return many_queries.attend(q_SNPH, k_SNPH, v_SNPH, q_SNPH.shape[-1] ** -0.5, causal=False, brief=True)
        return F.scaled_dot_product_attention(q_SNPH, k_SNPH, v_SNPH)


class MLP(nn.Module):
    """Two linears with the exact (erf) GELU between them."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.fc1 = nn.Linear(config.hidden_size, config.mlp_size)
        self.fc2 = nn.Linear(config.mlp_size, config.hidden_size)

    def forward(self, hidden_SPD: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(hidden_SPD)))


class Block(nn.Module):
    """Pre-norm attention and MLP, each scaled by a learned vector (LayerScale)."""

    def __init__(self, config: VisionConfig, drop_path: float) -> None:
        super().__init__()
        norm = RMSNorm if config.norm == "rms_norm" else nn.LayerNorm
        self.attn = Attention(config)
        self.mlp = MLP(config)
        self.norm1 = norm(config.hidden_size, eps=config.norm_eps)
        self.norm2 = norm(config.hidden_size, eps=config.norm_eps)
        self.ls1 = nn.Parameter(torch.ones(config.hidden_size))
        self.ls2 = nn.Parameter(torch.ones(config.hidden_size))
        self.drop_path = drop_path

    def forward(self, hidden_SPD: Tensor) -> Tensor:
        hidden_SPD = hidden_SPD + self._drop(self.attn(self.norm1(hidden_SPD)) * self.ls1)
        return hidden_SPD + self._drop(self.mlp(self.norm2(hidden_SPD)) * self.ls2)

    def _drop(self, branch_SPD: Tensor) -> Tensor:
        if not self.training or self.drop_path == 0:
            return branch_SPD
        keep = 1 - self.drop_path
        kept_S = torch.rand(len(branch_SPD), 1, 1, device=branch_SPD.device) < keep
        return branch_SPD * kept_S.to(branch_SPD.dtype) / keep


class Encoder(nn.Module):
    """The blocks in order."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        depth = max(config.num_layers - 1, 1)
        rates = [config.drop_path * i / depth for i in range(config.num_layers)]
        self.layers = nn.ModuleList(Block(config, rate) for rate in rates)


class InternViT(nn.Module):
    """tiles (S, 3, Y, X), uint8 or normalised -> patches (S, P-1, D), CLS dropped, no final norm."""

    def __init__(self, config: VisionConfig) -> None:
        super().__init__()
        self.config = config
        self.embeddings = Embeddings(config)
        self.encoder = Encoder(config)

    def forward(self, tiles_SCYX: Tensor, select_layer: int = -1) -> Tensor:
        """`select_layer` counts hidden states: 0 the embeddings, n after block n, -1 the last."""
        num_blocks = select_layer % (len(self.encoder.layers) + 1)
        hidden_SPD = self.embeddings(tiles_SCYX)
        for block in self.encoder.layers[:num_blocks]:
            hidden_SPD = block(hidden_SPD)
        return hidden_SPD[:, 1:]
