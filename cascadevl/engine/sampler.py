"""From logits to a token."""

import torch
from torch import Tensor

from cascadevl.core.generation import Sampling, TokenLogprob


class Sampler:
    """Chooses the tokens of one answer; owns its randomness and what it has seen.

    Order of the steps: ban, bias and end of the answer, penalties, then as in transformers temperature, top-k,
    top-p, min-p.
    """

    def __init__(
        self,
        sampling: Sampling,
        prompt_ids: Tensor,
        banned_ids: tuple[int, ...],
        num_entries: int,
        stop_ids: tuple[int, ...] = (),
    ) -> None:
        """`stop_ids`: the tokens that end an answer."""
        self.sampling = sampling
        changes = (
            sampling.repetition_penalty != 1 or sampling.presence_penalty or sampling.frequency_penalty
            or sampling.logit_bias or sampling.min_new_tokens or sampling.ignore_eos
        )  # fmt: skip
        self._changes_logits = bool(changes)
        self.plainly_greedy = sampling.temperature == 0 and sampling.logprobs is None and not changes
        """Nothing is asked for but the likeliest token that is not banned: whoever has it need not call."""
        self._banned = torch.tensor([i for i in banned_ids if i < num_entries], dtype=torch.int64)
        self._stops = torch.tensor([i for i in stop_ids if i < num_entries], dtype=torch.int64)
        self._seen = torch.zeros(num_entries, dtype=torch.bool)
        self._seen[prompt_ids] = True
        self._counts = torch.zeros(num_entries)
        """How often the answer has each token."""
        self._num_said = 0
        self._generator = torch.Generator()
        if sampling.seed is None:
            self._generator.seed()
        else:
            self._generator.manual_seed(sampling.seed)

    def __call__(self, logits_V: Tensor) -> tuple[int, TokenLogprob | None]:
        """Choose from raw fp32 logits; the log-probabilities are those before any of the steps but the ban."""
        logits_V = logits_V.to("cpu", torch.float32, copy=True)
        logits_V[self._banned] = float("-inf")
        scores_V = self._penalised(self._steered(logits_V)) if self._changes_logits else logits_V
        chosen = int(scores_V.argmax()) if self.sampling.temperature == 0 else self._draw(scores_V)
        self._seen[chosen] = True
        self._counts[chosen] += 1
        self._num_said += 1
        return chosen, self._logprob(logits_V, chosen)

    def _steered(self, logits_V: Tensor) -> Tensor:
        """Bias added, the end of the answer put off; what is banned stays at -inf, whatever is added to it."""
        sampling, logits_V = self.sampling, logits_V.clone()
        for token_id, bias in sampling.logit_bias:
            logits_V[token_id] += bias
        if sampling.ignore_eos or self._num_said < sampling.min_new_tokens:
            logits_V[self._stops] = float("-inf")
        return logits_V

    def _penalised(self, logits_V: Tensor) -> Tensor:
        """Repetition as CTRL has it; presence and frequency as OpenAI documents them, of the answer alone."""
        sampling, penalty = self.sampling, self.sampling.repetition_penalty
        if penalty != 1:
            penalised = torch.where(logits_V > 0, logits_V / penalty, logits_V * penalty)
            logits_V = torch.where(self._seen, penalised, logits_V)
        said_V = (self._counts > 0).float()
        return logits_V - sampling.frequency_penalty * self._counts - sampling.presence_penalty * said_V

    def _draw(self, scores_V: Tensor) -> int:
        # Below the greatest score, so that no temperature is too small to divide by.
        below_V = (scores_V - scores_V.max()).double() / self.sampling.temperature
        probabilities_V = truncated(below_V.float().softmax(-1), self.sampling)
        return int(torch.multinomial(probabilities_V, 1, generator=self._generator))

    def _logprob(self, logits_V: Tensor, chosen: int) -> TokenLogprob | None:
        num_top = self.sampling.logprobs
        if num_top is None:
            return None
        logprobs_V = logits_V.log_softmax(-1)
        values, ids = logprobs_V.topk(num_top)
        likely = values.isfinite()  # the rest is banned
        top = tuple(zip(ids[likely].tolist(), values[likely].tolist(), strict=True))
        return TokenLogprob(chosen, float(logprobs_V[chosen]), top)


def truncated(probabilities_V: Tensor, sampling: Sampling) -> Tensor:
    """Top-k, top-p and min-p set the unlikely to zero; the rest sums to one again."""
    kept = probabilities_V
    if 0 < sampling.top_k < len(kept):
        kept = torch.where(kept >= kept.topk(sampling.top_k).values[-1], kept, 0.0)
        kept = kept / kept.sum()
    if sampling.top_p < 1:
        ordered, order = kept.sort(descending=True)
        before = ordered.cumsum(0) - ordered
        keep = torch.zeros_like(kept, dtype=torch.bool).scatter_(0, order, before < sampling.top_p)
        kept = torch.where(keep, kept, 0.0)
        kept = kept / kept.sum()
    if sampling.min_p > 0:
        kept = torch.where(kept >= sampling.min_p * kept.max(), kept, 0.0)
    return kept / kept.sum()
