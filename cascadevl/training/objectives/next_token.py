"""Next-token prediction with token, square-root or sample averaging.

InternVL 2.5 (arXiv 2412.05271, §4.2.1), InternVL3 eq. 3–4: a token of a sample with N supervised
tokens weighs N^0 (token), N^-0.5 (square) or N^-1 (sample); loss = Σ w·ℓ / Σ w. The lower sum goes over all
batches of an optimizer step on all devices: `batch.denominator`, which a step makes of `supervised_weight`s. Then
the losses and gradients of these batches are to be added, however samples are spread over them.
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from cascadevl.data.batch import IGNORE, Batch
from cascadevl.models.decoder import Decoder
from cascadevl.models.internvl import InternVL
from cascadevl.ops.logprobs import Scored, cross_entropy, token_logprobs
from cascadevl.training.objectives import Loss

EXPONENT = {"token": 0.0, "square": 0.5, "sample": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class NextToken:
    """Cross-entropy of what is learned to be said."""

    reduction: Literal["token", "square", "sample"] = "square"

    def __call__(self, model: InternVL, batch: Batch) -> Loss:
        zero = touch(model, batch)
        embed_TD = model.embed(batch.token_ids, batch.tiles)
        supervised_T = (batch.targets != IGNORE).nonzero()[:, 0]
        if model.config.decoder.experts is None and len(supervised_T):
            hidden_TD = model.language_model(embed_TD, batch.positions, batch.attend, asked_T=supervised_T)
            loss = self._from_supervised(model, hidden_TD, batch)
        else:  # experts are balanced over all tokens, and every parameter has a gradient in every batch
            loss = self.from_hidden(model, model.language_model(embed_TD, batch.positions, batch.attend), batch)
        return loss._replace(total=loss.total + zero)

    def weight(self, batch: Batch) -> float:
        """What this batch adds to the denominator of its step."""
        return supervised_weight(batch, EXPONENT[self.reduction])

    def from_hidden(self, model: InternVL, hidden_TD: Tensor, batch: Batch) -> Loss:
        """The loss of hidden states at hand; scores are made for supervised tokens only."""
        return self._from_supervised(model, hidden_TD[batch.targets != IGNORE], batch)

    def _from_supervised(self, model: InternVL, hidden_TD: Tensor, batch: Batch) -> Loss:
        """Of the hidden states of supervised tokens."""
        supervised = batch.targets != IGNORE
        weights = token_weights(supervised, batch.lengths, EXPONENT[self.reduction])[supervised]
        own = weights.sum().clamp_min(1e-8)
        denominator = own if batch.denominator is None else batch.denominator
        targets = batch.targets[supervised]
        total, scored = _cross_entropy(model.language_model, hidden_TD, targets, weights / denominator)
        num_tokens = len(weights)
        right = int(scored.right_T.sum()) / max(num_tokens, 1)
        mean = (total.detach() * (denominator / own)).item()
        return Loss(total, {"next_token": mean, "token_accuracy": right}, num_tokens)


def _cross_entropy(decoder: Decoder, hidden_TD: Tensor, targets_T: Tensor, weights_T: Tensor) -> tuple[Tensor, Scored]:
    head = decoder.model.embed_tokens if decoder.lm_head is None else decoder.lm_head
    if type(head) in (nn.Linear, nn.Embedding):
        return cross_entropy(hidden_TD, head.weight, targets_T, weights_T)
    # A head that is adapted, quantised or sharded makes its scores itself.
    scored = token_logprobs(decoder.logits, hidden_TD, targets_T)
    return -(scored.logprobs_T * weights_T).sum(), scored


def token_weights(supervised_T: Tensor, lengths: tuple[int, ...], exponent: float) -> Tensor:
    """(T,) weight N^-exponent of every supervised token, N counted within its sample; others 0."""
    lengths_R = torch.tensor(lengths, device=supervised_T.device)
    up_to_R = supervised_T.cumsum(0)[lengths_R.cumsum(0) - 1]
    counts_R = up_to_R.diff(prepend=up_to_R.new_zeros(1)).clamp_min(1).float()
    return supervised_T * (counts_R**-exponent).repeat_interleave(lengths_R, output_size=len(supervised_T))


def supervised_weight(batch: Batch, exponent: float) -> float:
    """Σ w of a batch, without running the model: Σ N^(1 - exponent) over its samples."""
    return float(token_weights(batch.targets != IGNORE, batch.lengths, exponent).sum(dtype=torch.float64))


def touch(model: InternVL, batch: Batch) -> Tensor:
    """Zero, in which the tower and the projector took part also where a batch has no picture.

    Their parameters thereby have gradients, of zero, in every batch, and a model that is spread over devices calls
    the same modules everywhere: no device waits for another. An empty stack of tiles costs no arithmetic.
    """
    if len(batch.tiles):
        return batch.positions.new_zeros(())
    return model.encode_tiles(batch.tiles).sum()
