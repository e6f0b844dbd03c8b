"""The visual resolution router (ViR): which tiles may be told in a quarter of their tokens.

InternVL3.5, arXiv 2508.18265 §2.3. Architecture, names and rule are those of `modeling_internvl_chat.py`
in the released OpenGVLab/InternVL3_5-*-Flash, quirks included: transformers' draft (InternvlFlash) runs
all four attention layers and so routes differently from the weights' own code.
"""

import torch
from torch import Tensor, nn

from cascadevl.core.errors import ConfigError, InternalError
from cascadevl.models.config import FlashConfig

NUM_HEADS = 16
EXPANSION = 4
DROPOUT = 0.1


class AttentionPooling(nn.Module):
    """The patches of a tile as one vector: a learned query asks them four times.

    After each question the norm of the answer is the next query; nothing is added to the last one.
    Layer 1 asks once and layer 2 three times. Layers 3 and 4 are in the files and do nothing: the
    released forward never calls them, and the router was trained so.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        if width % NUM_HEADS:
            raise ConfigError(f"The router pools with {NUM_HEADS} heads, which do not divide a tower of width {width}.")
        self.query_token = nn.Parameter(torch.zeros(1, width))
        self.attn1, self.attn2, self.attn3, self.attn4 = (
            nn.MultiheadAttention(width, NUM_HEADS, batch_first=True) for _ in range(4)
        )
        self.norm1, self.norm2, self.norm3, self.norm4 = (nn.LayerNorm(width) for _ in range(4))

    def forward(self, patches_SPD: Tensor) -> Tensor:
        """Patches without CLS, before pixel shuffle -> (S, D)."""
        query_S1D = self.query_token.expand(len(patches_SPD), 1, -1)
        second = (self.attn2, self.norm2)
        for attn, norm in ((self.attn1, self.norm1), second, second, second):
            query_S1D = norm(attn(query_S1D, patches_SPD, patches_SPD, need_weights=False)[0])
        return query_S1D.squeeze(1)


class Gating(nn.Module):
    """Four residual MLPs and two logits for each pooled tile: "compress it", "keep it"."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.block1, self.block2, self.block3, self.block4 = (_block(width) for _ in range(4))
        self.gate = nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2))

    def forward(self, pooled_SD: Tensor) -> Tensor:
        """Logits (S, 2), before the softmax; training wants them so."""
        for block in (self.block1, self.block2, self.block3, self.block4):
            pooled_SD = pooled_SD + block(pooled_SD)
        return self.gate(pooled_SD)


def _block(width: int) -> nn.Sequential:
    # The norm stands behind the branch; the indices 0, 3, 5 are the official names.
    return nn.Sequential(
        nn.Linear(width, EXPANSION * width),
        nn.GELU(),
        nn.Dropout(DROPOUT),
        nn.Linear(EXPANSION * width, width),
        nn.Dropout(DROPOUT),
        nn.LayerNorm(width),
    )


def compressible(probabilities_S: Tensor, flash: FlashConfig) -> Tensor:
    """Which tiles (S,) of one request are compressed, from the probability that each may be.

    More likely than the request's quantile, and likely enough. A tile alone is its own quantile and
    is never compressed, and what becomes of a tile depends on the others: `probabilities_S` must be
    those of one request, all its pictures and thumbnails.
    """
    if flash.relative_threshold is None or flash.absolute_threshold is None:
        raise ConfigError("This Flash model has no thresholds to route by: set both in its FlashConfig.")
    # Compared in the type of the probabilities, as released: bf16 rounds the quantile too.
    quantile = torch.quantile(probabilities_S.float(), flash.relative_threshold)
    return (probabilities_S > quantile) & (probabilities_S >= flash.absolute_threshold)


def shortened(token_ids_T: Tensor, places_T: Tensor, compress_S: Tensor, full: int, short: int) -> Tensor:
    """Token ids in which a compressed tile keeps the first `short` of its `full` placeholders."""
    if int(places_T.sum()) != len(compress_S) * full:
        raise InternalError(
            f"The prompt has {int(places_T.sum())} <IMG_CONTEXT> places, {len(compress_S)} tiles need {full} each."
        )
    keep_SL = compress_S.new_ones(len(compress_S), full)
    keep_SL[compress_S, short:] = False
    keep_T = torch.ones_like(places_T)
    keep_T[places_T] = keep_SL.flatten()
    return token_ids_T[keep_T]
