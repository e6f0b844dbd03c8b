"""Cross-entropy and token log-probabilities in chunks of tokens: scores (T, V) never stand in memory at once.

Cut Your Losses (arXiv 2411.09009) says why: with large vocabularies the scores are the largest tensor of a step.
Two ways, because gradients are wanted at different times:

- `cross_entropy` knows how much each token weighs and forms the gradient in the forward pass, while a chunk's
  scores are there: three matrix products, as many as with all scores at once (Liger Kernel, arXiv 2410.10989).
- `token_logprobs` is for losses that are made of the log-probabilities later (preferences, ratios); a chunk's
  scores are computed once more in the backward pass.
"""

from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.checkpoint import checkpoint

CHUNK_SCORES = {"cpu": 2**22, "cuda": 2**27}
"""Scores of a chunk: 16 MB stay near a CPU's caches, half a GB keeps a GPU busy."""

FEWEST_ROWS = 128
"""Tokens of a chunk at least: every chunk reads the whole head, and reads and writes its gradient."""


class Scored(NamedTuple):
    """What a model thinks of tokens that were said."""

    logprobs_T: Tensor
    """log p of each, fp32 at least."""
    right_T: Tensor
    """Whether each is the likeliest."""


def rows_of_chunk(num_scores: int, device: torch.device) -> int:
    """Tokens of a chunk for a vocabulary of `num_scores`; enough that reading the head and its gradient pays."""
    return max(FEWEST_ROWS, CHUNK_SCORES.get(device.type, CHUNK_SCORES["cuda"]) // num_scores)


def cross_entropy(
    hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, weights_T: Tensor, *, rows: int | None = None
) -> tuple[Tensor, Scored]:
    """-Σ w·log p(target) of hidden states before a head without bias, with gradients of both; and the parts, without.

    The total can be differentiated once. Under autocast products are made in its type.
    """
    rows = rows or rows_of_chunk(len(weight_VD), hidden_TD.device)
    total, logprobs_T, right_T = _CrossEntropy.apply(hidden_TD, weight_VD, targets_T, weights_T, rows)  # type: ignore[misc]
    return total, Scored(logprobs_T, right_T)


def token_logprobs(
    scores: Callable[[Tensor], Tensor], hidden_TD: Tensor, targets_T: Tensor, *, rows: int = 256
) -> Scored:
    """log p(target) with gradients of all that `scores` is made of: (T, D) -> (T, V), an adapted head or any other."""
    found = [
        checkpoint(_scored, scores, hidden, targets, use_reentrant=False, preserve_rng_state=False)
        for hidden, targets in zip(hidden_TD.split(rows), targets_T.split(rows), strict=True)
    ]
    return Scored(*(torch.cat(parts) for parts in zip(*found, strict=True)))


def _scored(scores: Callable[[Tensor], Tensor], hidden_TD: Tensor, targets_T: Tensor) -> tuple[Tensor, Tensor]:
    logits_TV = _at_least_fp32(scores(hidden_TD))
    logprobs_T = logits_TV.gather(1, targets_T[:, None])[:, 0] - logits_TV.logsumexp(-1)
    return logprobs_T, logits_TV.argmax(-1) == targets_T


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden_TD: Tensor, weight_VD: Tensor, targets_T: Tensor, weights_T: Tensor, rows: int
    ) -> tuple[Tensor, Tensor, Tensor]:
        learns_hidden, learns_weight = ctx.needs_input_grad[:2]
        dtype, device = hidden_TD.dtype, hidden_TD.device.type
        if torch.is_autocast_enabled(device):
            dtype = torch.get_autocast_dtype(device)
        wide = torch.promote_types(dtype, torch.float32)
        to_hidden_TD = torch.empty_like(hidden_TD) if learns_hidden else None
        to_weight_VD = torch.zeros_like(weight_VD, dtype=wide) if learns_weight else None
        logprobs_T = torch.empty(len(targets_T), dtype=wide, device=hidden_TD.device)
        right_T = torch.empty_like(targets_T, dtype=torch.bool)
        with torch.autocast(device, enabled=False):
            head_VD = weight_VD.to(dtype)
            for start in range(0, len(targets_T), rows):
                at = slice(start, start + rows)
                hidden, targets = hidden_TD[at].to(dtype), targets_T[at]
                logits = F.linear(hidden, head_VD).to(wide)
                said = logits.gather(1, targets[:, None])
                most, likeliest = logits.max(dim=-1, keepdim=True)
                right_T[at] = likeliest[:, 0] == targets
                powers = logits.sub_(most).exp_()
                sums = powers.sum(dim=-1, keepdim=True)
                logprobs_T[at] = (said - most - sums.log())[:, 0]
                if not (learns_hidden or learns_weight):
                    continue
                # d(-w·log p)/d scores = w·(softmax - 1 at the target).
                weights = weights_T[at, None].to(wide)
                to_scores = powers.mul_(weights / sums).scatter_add_(1, targets[:, None], -weights).to(dtype)
                if to_hidden_TD is not None:
                    to_hidden_TD[at] = to_scores @ head_VD
                if to_weight_VD is not None and dtype == wide:
                    to_weight_VD.addmm_(to_scores.T, hidden)
                elif to_weight_VD is not None:  # sums of many chunks stay wide
                    to_weight_VD += to_scores.T @ hidden
                del logits, powers, to_scores  # before the next chunk's are made
        ctx.gradients = to_hidden_TD, None if to_weight_VD is None else to_weight_VD.to(weight_VD.dtype)
        ctx.mark_non_differentiable(logprobs_T, right_T)
        return -(logprobs_T * weights_T).sum(), logprobs_T, right_T

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(  # type: ignore[override]
        ctx: Any, to_total: Tensor, *_: Tensor
    ) -> tuple[Tensor | None, ...]:
        assert ctx.gradients is not None, "gradients are given out once: they are not kept for a second pass"
        to_hidden_TD, to_weight_VD = ctx.gradients
        ctx.gradients = None  # so that they become .grad without a copy
        for gradient in (to_hidden_TD, to_weight_VD):
            if gradient is not None:
                gradient.mul_(to_total)
        return to_hidden_TD, to_weight_VD, None, None, None


def _at_least_fp32(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))
