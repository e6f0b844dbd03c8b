"""Starting values that spare a small tower the search for its neighbours.

Not of a paper; in the spirit of mimetic initialisation (Trockman and Kolter, arXiv 2305.09828). A
ViT from nothing spends most of a short training finding out which patches lie side by side. Here the
first dimensions of the position table are waves over columns and rows, and in the first blocks four
heads begin by looking one patch to the left, right, up and down, like a convolution. All of it
stays free to learn.
"""

import math

import torch
from torch import Tensor, nn

from cascadevl.models.vision import InternViT

STEPS = ((-1, 0), (1, 0), (0, -1), (0, 1))
"""(columns, rows) that the first heads look away."""


@torch.no_grad()
def look_around(tower: InternViT, *, num_blocks: int, generator: torch.Generator, sharpness: float = 1.5) -> None:
    """Fill position table, patch embedding and the first `num_blocks` blocks of a fresh tower in place."""
    config = tower.config
    head_size = config.hidden_size // config.num_heads
    side = config.tile_px // config.patch_px
    for module in tower.modules():
        if isinstance(module, nn.Linear):
            module.weight.normal_(std=0.7 * module.in_features**-0.5, generator=generator)
    rows, columns = torch.meshgrid(torch.arange(side), torch.arange(side), indexing="ij")
    waves = torch.cat([_waves(columns.flatten(), head_size, side), _waves(rows.flatten(), head_size, side)], dim=1)
    table = tower.embeddings.position_embedding
    table[0, 1:, :head_size] = waves
    table[0, 0, :head_size] = 0.0
    tower.embeddings.patch_embedding.weight[:head_size] = 0.0
    for block in tower.encoder.layers[:num_blocks]:
        weight = block.attn.qkv.weight
        for head, (right, down) in enumerate(STEPS):
            query = slice(head * head_size, (head + 1) * head_size)
            key = slice(config.hidden_size + head * head_size, config.hidden_size + (head + 1) * head_size)
            turned = torch.block_diag(_turn(right, head_size, side), _turn(down, head_size, side))
            weight[query] *= 0.1
            weight[key] *= 0.1
            weight[query, :head_size] = sharpness * turned
            weight[key, :head_size] = sharpness * torch.eye(head_size)


def _frequencies(head_size: int, side: int) -> Tensor:
    """As many waves as a quarter of a head: their sum is high at one place and flat elsewhere."""
    num_waves = head_size // 4
    return torch.arange(1, num_waves + 1) * math.pi / max(side, num_waves)


def _waves(at: Tensor, head_size: int, side: int) -> Tensor:
    """(places, head_size / 2): cosine and sine of every frequency."""
    angles = at[:, None] * _frequencies(head_size, side)
    return torch.stack([angles.cos(), angles.sin()], dim=-1).flatten(1)


def _turn(steps: int, head_size: int, side: int) -> Tensor:
    """The matrix that makes the waves of place x those of place x + steps."""
    angles = steps * _frequencies(head_size, side)
    blocks = [torch.tensor([[math.cos(a), -math.sin(a)], [math.sin(a), math.cos(a)]]) for a in angles.tolist()]
    return torch.block_diag(*blocks)
