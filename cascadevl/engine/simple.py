"""Unpaged generation in one screen: one sequence, one cache, one token at a time. The oracle."""

import time
from collections.abc import Iterator

import torch
from torch import Tensor

from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import FinishReason, Generation, Sampling, Usage
from cascadevl.engine.constraints import Guide
from cascadevl.engine.loops import LoopGuard
from cascadevl.engine.sampler import Sampler
from cascadevl.ops.attention import Layer, scores_to_output
from cascadevl.preprocessing.processor import ModelInputs

GROWTH = 256
"""Tokens by which a full cache grows."""


class DenseCache:
    """Keys and values of one sequence. It is an `Attend`: new tokens are stored, then see all."""

    def __init__(self, num_layers: int) -> None:
        self.keys: list[Tensor | None] = [None] * num_layers
        self.values: list[Tensor | None] = [None] * num_layers
        self.lengths = [0] * num_layers

    def __call__(self, layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        keys_KTH, values_KTH = self._store(layer.index, k_TKH, v_TKH)
        num_tokens, num_heads, _ = q_TNH.shape
        if num_tokens == 1 and layer.window is None and layer.sinks_N is None:
            # The heads that share a key head become the rows of one small product.
            grouped = q_TNH.view(1, len(keys_KTH), num_heads // len(keys_KTH), -1)
            out = torch.nn.functional.scaled_dot_product_attention(
                grouped, keys_KTH[None], values_KTH[None], scale=layer.scale
            )
            return out.view(q_TNH.shape)
        out_1NTH = scores_to_output(layer, q_TNH.transpose(0, 1)[None], keys_KTH[None], values_KTH[None])
        return out_1NTH[0].transpose(0, 1)

    def _store(self, index: int, k_TKH: Tensor, v_TKH: Tensor) -> tuple[Tensor, Tensor]:
        start, end = self.lengths[index], self.lengths[index] + len(k_TKH)
        self.keys[index] = keys = self._room(self.keys[index], k_TKH, end)
        self.values[index] = values = self._room(self.values[index], v_TKH, end)
        keys[:, start:end] = k_TKH.transpose(0, 1)
        values[:, start:end] = v_TKH.transpose(0, 1)
        self.lengths[index] = end
        return keys[:, :end], values[:, :end]

    def _room(self, stored: Tensor | None, new_TKH: Tensor, needed: int) -> Tensor:
        if stored is not None and stored.shape[1] >= needed:
            return stored
        room = new_TKH.new_empty(new_TKH.shape[1], needed + GROWTH, new_TKH.shape[2])
        if stored is not None:
            room[:, : stored.shape[1]] = stored
        return room


@torch.inference_mode()
def generate(parts: Parts, inputs: ModelInputs, sampling: Sampling) -> Iterator[str | Generation]:
    """Pieces of text as they become certain; the last item is the whole Generation."""
    model, started, answer = parts.model, time.perf_counter(), Answer(parts, sampling)
    prompt_ids, embed_TD = model.embed_prompt(inputs.token_ids.to(model.device), inputs.tiles.to(model.device))
    positions_T = model.positions(prompt_ids)
    prompt_ids = prompt_ids.cpu()
    cache = DenseCache(model.config.decoder.num_layers)
    sampler = Sampler(sampling, prompt_ids, banned_ids(parts), model.config.decoder.vocab_size, parts.stop_ids)
    hidden_TD = model.language_model(embed_TD, positions_T, cache)
    prefill_s, decoding = time.perf_counter() - started, time.perf_counter()

    room = model.config.decoder.rope.longest - len(prompt_ids)
    next_position = float(positions_T[-1]) + 1
    while answer.finish_reason is None:
        logits_V = model.language_model.logits(hidden_TD[-1])
        if answer.guide is not None:
            answer.guide.mask(logits_V)
        token_id, logprob = sampler(logits_V)
        if logprob is not None:
            answer.logprobs.append(logprob)
        piece = answer.push(token_id, room)
        if piece:
            yield piece
        if answer.finish_reason is None:
            embed_TD = model.language_model.embed(torch.tensor([token_id], device=model.device))
            position = torch.tensor([next_position], device=model.device)
            hidden_TD = model.language_model(embed_TD, position, cache)
            next_position += 1
    rest = answer.flush()
    if rest:
        yield rest
    yield Generation(
        text=answer.text,
        token_ids=tuple(answer.token_ids),
        logprobs=tuple(answer.logprobs) if sampling.logprobs is not None else None,
        finish_reason=answer.finish_reason,
        usage=Usage(
            prompt_tokens=len(prompt_ids),
            visual_tokens=int((prompt_ids == model.config.image_token_id).sum()),
            completion_tokens=len(answer.token_ids),
            tiles=len(inputs.tiles),
        ),
        spec_hash=inputs.spec_hash,
        grids=tuple(inputs.grids),
        timings={"prefill_s": prefill_s, "decode_s": time.perf_counter() - decoding},
    )


def banned_ids(parts: Parts) -> tuple[int, ...]:
    """Tokens no model may say: those that stand for pictures."""
    spec = parts.spec
    return tuple(parts.tokenizer.id(token) for token in (spec.image_start, spec.image_context, spec.image_end))


def _check_bias(parts: Parts, sampling: Sampling) -> None:
    """A bias may forbid control tokens, and make the end of the answer likelier; more would let requests forge turns.

    Raises ConfigError.
    """
    num_entries, controls = len(parts.tokenizer), set(parts.tokenizer.controls.values()) - set(parts.stop_ids)
    for token_id, bias in sampling.logit_bias:
        if token_id >= num_entries:
            raise ConfigError(f"logit_bias names the token {token_id}: expected 0 to {num_entries - 1}.")
        if bias > 0 and token_id in controls:
            raise ConfigError(
                f"logit_bias makes the control token {token_id} likelier: it may only be made unlikelier."
            )


class Answer:
    """Tokens so far, the text they make, and whether it is finished.

    The last characters are held back while they might be the beginning of a stop text.
    """

    def __init__(self, parts: Parts, sampling: Sampling) -> None:
        self.token_ids: list[int] = []
        self.logprobs: list = []
        self.text = ""
        self.finish_reason: FinishReason | None = None
        self._sampling, self._stop_ids = sampling, parts.stop_ids
        self._stream = parts.tokenizer.stream()
        self._loops = LoopGuard() if sampling.loop_guard else None
        self._given = 0
        _check_bias(parts, sampling)
        constraint = sampling.constraint
        self.guide = Guide(constraint, parts.tokenizer, parts.stop_ids) if constraint else None

    def push(self, token_id: int, room: int) -> str:
        """Add a token; returns the text that may be shown now."""
        self.token_ids.append(token_id)
        if self.guide is not None:
            self.guide.push(token_id)
        if token_id in self._stop_ids or (self.guide is not None and self.guide.finished):
            self.finish_reason = "stop"
        elif self._loops is not None and self._loops.period(self.token_ids):
            self.finish_reason = "repetition"
        elif len(self.token_ids) >= min(self._sampling.max_new_tokens, room):
            self.finish_reason = "length"
        if token_id not in self._stop_ids:
            self.text += self._stream.push(token_id)
        if self.finish_reason:
            self.text += self._stream.finish()
        if not self._sampling.stop:
            return self._release(len(self.text))
        found = [at for stop in self._sampling.stop if (at := self.text.find(stop)) >= 0]
        if found:
            self.text, self.finish_reason = self.text[: min(found)], "stop"
        return self._release(len(self.text) - self._held_back())

    def flush(self) -> str:
        """What was held back, once the answer is finished."""
        return self._release(len(self.text))

    def _release(self, end: int) -> str:
        piece = self.text[self._given : end]
        self._given = max(self._given, end)
        return piece

    def _held_back(self) -> int:
        """Characters at the end that could still become a stop text."""
        longest = 0
        for stop in self._sampling.stop:
            for n in range(1, len(stop)):
                if self.text.endswith(stop[:n]):
                    longest = max(longest, n)
        return longest
