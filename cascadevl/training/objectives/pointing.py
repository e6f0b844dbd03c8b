"""Pointing: some heads of the decoder learn to look at the character that is said next.

Not of a paper; guided attention is as old as neural translation (Mi et al., arXiv 1608.03817). Reading
aloud needs a pointer that walks over the picture. Next-token loss finds one after very many samples; the
gym knows where every character stands and can simply say so. Only training needs it: `Pointing` is an
`Attend` around another, so the decoder does not know.
"""

import torch
from torch import Tensor

from cascadevl.data.batch import Batch
from cascadevl.ops.attention import Attend, Layer, causal_mask, side_by_side

HEADS = 1
"""Heads of each guided layer, the first ones; the others stay free."""


class Pointing:
    """Attends as `inner` does and collects -log(share of attention on the right visual tokens)."""

    def __init__(self, inner: Attend, batch: Batch, layers: tuple[int, ...]) -> None:
        assert batch.pointers is not None
        self.losses: list[Tensor] = []
        self._inner, self._layers, self._lengths = inner, layers, batch.lengths
        longest = max(batch.lengths)
        starts = torch.tensor([0, *batch.lengths[:-1]]).cumsum(0)
        sample, where = self._locate(batch.pointers[0], starts)
        _, what = self._locate(batch.pointers[1], starts)
        self._right = torch.zeros(len(batch.lengths), longest, longest, dtype=torch.bool)
        self._right[sample, where, what] = True

    @staticmethod
    def _locate(tokens: Tensor, starts: Tensor) -> tuple[Tensor, Tensor]:
        sample = torch.searchsorted(starts, tokens, right=True) - 1
        return sample, tokens - starts[sample]

    def __call__(self, layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        if layer.index in self._layers:
            self.losses.append(self._loss(layer, q_TNH[:, :HEADS], k_TKH[:, :HEADS]))
        return self._inner(layer, q_TNH, k_TKH, v_TKH)

    def _loss(self, layer: Layer, q_TNH: Tensor, k_TNH: Tensor) -> Tensor:
        q_RNTH, k_RNTH = (side_by_side(x, self._lengths) for x in (q_TNH, k_TNH))
        scores = q_RNTH @ k_RNTH.mT * layer.scale
        visible = causal_mask(scores.shape[-2], scores.shape[-1], None, scores.device)
        logits = scores.masked_fill(~visible, float("-inf"))
        right = self._right.to(scores.device)[:, None]
        on_target = logits.masked_fill(~right, float("-inf")).logsumexp(-1) - logits.logsumexp(-1)
        return -on_target[right.any(-1).expand_as(on_target)].mean()

    @property
    def loss(self) -> Tensor:
        return torch.stack(self.losses).mean()
