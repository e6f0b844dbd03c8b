"""Reading patches: the tower names the characters that stand in each patch.

Not of a paper: a dense auxiliary target that only rendered data can give. A small tower learns
letters from it within tens of thousands of pictures, where next-token loss alone would first have
to discover that pictures matter. The head is thrown away after training.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from cascadevl.data.batch import IGNORE, Batch
from cascadevl.gym.glyph_targets import COLUMNS, NUM_CLASSES
from cascadevl.models.internvl import InternVL
from cascadevl.training.objectives import Loss
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.objectives.pointing import Pointing

POINTING_WEIGHT = 0.3


class GlyphHead(nn.Module):
    """Hidden states of patches (…, D) -> scores (…, K, classes)."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.out = nn.Linear(width, COLUMNS * NUM_CLASSES)

    def forward(self, patches_SPD: Tensor) -> Tensor:
        return self.out(patches_SPD).unflatten(-1, (COLUMNS, NUM_CLASSES))


def glyph_loss(scores: Tensor, targets: Tensor) -> tuple[Tensor, float]:
    """Characters give four fifths of the loss, however many blanks there are: these would drown them.

    Also returns the share of character points that are named rightly.
    """
    keep = targets != IGNORE
    scores, targets = scores[keep], targets[keep]
    losses = F.cross_entropy(scores, targets, reduction="none")
    letters = targets > 0
    if not bool(letters.any()):
        return losses.mean(), 1.0
    right = (scores[letters].argmax(-1) == targets[letters]).float().mean().item()
    blanks = losses[~letters].mean() if bool((~letters).any()) else 0.0
    return 0.8 * losses[letters].mean() + 0.2 * blanks, right


@dataclass(frozen=True, kw_only=True)
class ReadPatches:
    """Glyph targets for the tower, and next-token prediction beside them unless switched off."""

    head: GlyphHead
    weight: float = 1.0
    next_token: NextToken | None = None
    pointing: tuple[int, ...] = ()
    """Decoder layers whose first head is shown where to look."""

    def __call__(self, model: InternVL, batch: Batch) -> Loss:
        patches_SPD = model.vision_model(batch.tiles, model.config.select_layer)
        total, terms, num_tokens = patches_SPD.new_zeros(()), {}, 0
        if self.weight and batch.glyphs is not None:
            loss, right = glyph_loss(self.head(patches_SPD), batch.glyphs)
            total = total + self.weight * loss
            terms |= {"glyphs": loss.item(), "glyph_accuracy": right}
        if self.next_token is not None:
            visual_TD = model.project(patches_SPD).flatten(0, 1)
            embed_TD = model.splice(model.language_model.embed(batch.token_ids), batch.token_ids, visual_TD)
            attend = batch.attend
            if self.pointing and batch.pointers is not None and batch.pointers.numel():
                attend = Pointing(attend, batch, self.pointing)
            hidden_TD = model.language_model(embed_TD, batch.positions, attend)
            if isinstance(attend, Pointing):
                total = total + POINTING_WEIGHT * attend.loss
                terms["pointing"] = attend.loss.item()
            said = self.next_token.from_hidden(model, hidden_TD, batch)
            total, num_tokens = total + said.total, said.num_tokens
            terms |= said.terms
        return Loss(total, terms, num_tokens)


def new_head(width: int, generator: torch.Generator) -> GlyphHead:
    head = GlyphHead(width)
    nn.init.normal_(head.out.weight, std=0.02, generator=generator)
    nn.init.zeros_(head.out.bias)
    return head
