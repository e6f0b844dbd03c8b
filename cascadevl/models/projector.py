"""Pixel shuffle, and the MLPs that lead from the tower's width to the decoder's."""

from typing import Literal

from torch import Tensor, nn

from cascadevl.models.config import InternVLConfig


def pixel_shuffle(patches_SPD: Tensor, ratio: float, version: Literal["v1", "v2"]) -> Tensor:
    """Each r×r block of patches becomes one token of r²·D values, r = 1/ratio (InternVL 1.5, §3.2).

    Block content is packed row by row. v2 keeps the tokens in reading order; v1, of the earliest
    releases, transposes the grid of tokens, and checkpoints trained so need it so.
    """
    tiles, patches, width = patches_SPD.shape
    side, r = int(patches**0.5), round(1 / ratio)
    blocks = patches_SPD.view(tiles, side // r, r, side // r, r, width)
    order = (0, 1, 3, 2, 4, 5) if version == "v2" else (0, 3, 1, 2, 4, 5)
    return blocks.permute(order).reshape(tiles, (side // r) ** 2, r * r * width)


def mlp1(config: InternVLConfig) -> nn.Sequential:
    """LayerNorm → Linear → GELU → Linear; the indices 0, 1, 3 are the official names."""
    width_in = config.vision.hidden_size * round(1 / config.downsample_ratio) ** 2
    width_out = config.decoder.hidden_size
    return nn.Sequential(
        nn.LayerNorm(width_in), nn.Linear(width_in, width_out), nn.GELU(), nn.Linear(width_out, width_out)
    )


def mlp2(config: InternVLConfig) -> nn.Sequential:
    """The way of a compressed tile (InternVL3.5-Flash): wider and deeper, for blocks shuffled together twice.

    The official names are the indices 0, 1, 4, 7; the dropouts between them are the released ones.
    """
    width_in = config.vision.hidden_size * round(1 / config.downsample_ratio) ** 4
    width_out = config.decoder.hidden_size
    return nn.Sequential(
        nn.LayerNorm(width_in),
        nn.Linear(width_in, 2 * width_out),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(2 * width_out, 2 * width_out),
        nn.GELU(),
        nn.Dropout(0.1),
        nn.Linear(2 * width_out, width_out),
    )
