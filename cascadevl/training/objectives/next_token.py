"""Next-token prediction with token, square-root or sample averaging.

InternVL 2.5 (arXiv 2412.05271, §4.2.1), InternVL3 eq. 3–4: a token of a sample with N supervised
tokens weighs N^0 (token), N^-0.5 (square) or N^-1 (sample); loss = Σ w·ℓ / Σ w.
"""

from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from cascadevl.data.batch import IGNORE, Batch
from cascadevl.models.internvl import InternVL
from cascadevl.training.objectives import Loss

EXPONENT = {"token": 0.0, "square": 0.5, "sample": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken:
    """Cross-entropy of what the assistant says."""

    reduction: Literal["token", "square", "sample"] = "square"

    def __call__(self, model: InternVL, batch: Batch) -> Loss:
        hidden_TD = model.language_model(model.embed(batch.token_ids, batch.tiles), batch.positions, batch.attend)
        return self.from_hidden(model, hidden_TD, batch)

    def from_hidden(self, model: InternVL, hidden_TD: Tensor, batch: Batch) -> Loss:
        """The loss of hidden states at hand; scores are made for supervised tokens only."""
        supervised = batch.targets != IGNORE
        logits = model.language_model.logits(hidden_TD[supervised])
        losses = F.cross_entropy(logits, batch.targets[supervised], reduction="none")
        weights = token_weights(supervised, batch.lengths, EXPONENT[self.reduction])[supervised]
        total = (losses * weights).sum() / weights.sum().clamp_min(1e-8)
        right = int((logits.argmax(-1) == batch.targets[supervised]).sum())
        return Loss(total, {"next_token": total.item(), "token_accuracy": right / max(len(losses), 1)}, len(losses))


def token_weights(supervised_T: Tensor, lengths: tuple[int, ...], exponent: float) -> Tensor:
    """(T,) weight N^-exponent of every supervised token, N counted within its sample; others 0."""
    weights_T = supervised_T.float()
    for sample in weights_T.split(lengths):
        sample *= max(float(sample.sum()), 1.0) ** -exponent
    return torch.where(supervised_T, weights_T, 0.0)
