"""One request from its submission to its Generation: what the engine keeps of it besides the scheduler's counts."""

import hashlib
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from cascadevl.core.config import fits
from cascadevl.core.errors import CascadeError, ConfigError
from cascadevl.core.generation import FinishReason, Generation, Sampling, TokenLogprob, Usage
from cascadevl.engine.request import Request
from cascadevl.engine.runner import Piece
from cascadevl.engine.sampler import Sampler
from cascadevl.engine.scheduler import Chunk
from cascadevl.engine.simple import Answer
from cascadevl.ops.rope import Rope
from cascadevl.preprocessing.processor import ModelInputs


@dataclass(eq=False, slots=True)
class Ticket:
    """What `submit` gives back. `generation` is None until the request has ended."""

    request: Request
    inputs: ModelInputs
    sampling: Sampling
    prompt_ids: Tensor
    """(T,): those of `inputs`, or fewer where a Flash model compressed tiles."""
    room: int
    """Tokens that the answer may have at most."""
    adapters: tuple[str, ...]
    started_s: float
    preprocess_s: float
    generation: Generation | None = None
    pieces: deque[str] = field(default_factory=deque)
    """Text that nobody has fetched yet."""
    visual_TD: Tensor | None = None
    visual_before_T: Tensor | None = None
    """(T + 1,): visual tokens before each place."""
    sampler: Sampler | None = None
    answer: Answer | None = None
    scored: list[TokenLogprob] | None = None
    """Log-probabilities of the tokens that the assistant says, where only these are wanted."""
    first_token_s: float | None = None

    @property
    def done(self) -> bool:
        return self.generation is not None

    def place(self, prompt_ids: Tensor, visual_TD: Tensor | None, keys: Sequence[bytes], image_token_id: int) -> None:
        """Tokens and visual tokens are final. `keys` names stretches of equal length of the latter, and by them
        the pages of the request."""
        request = self.request
        self.prompt_ids, self.visual_TD = prompt_ids, visual_TD
        places_T = prompt_ids == image_token_id
        self.visual_before_T = torch.nn.functional.pad(places_T.cumsum(0), (1, 0))
        request.prompt_keys = prompt_ids.numpy().astype(np.int64)
        if visual_TD is not None:
            request.prompt_keys[places_T.numpy()] = _visual_keys(keys, len(visual_TD) // len(keys))
        request.ready = True

    def piece(self, chunk: Chunk) -> Piece:
        """What is to be computed, for the runner."""
        request, start, num = chunk
        num_prompt, end = len(request.prompt_keys), start + num
        if start >= num_prompt and num == 1:  # it decodes, as most do
            token_ids = request.said[start - num_prompt : end - num_prompt]
            return Piece(token_ids, None, start, num_prompt, request.pages, self.adapters)
        token_ids = self.prompt_ids[start:end].tolist() if start < num_prompt else []
        if end > num_prompt:
            token_ids += request.said[max(0, start - num_prompt) : end - num_prompt]
        visual_TD = None
        if self.visual_TD is not None and start < num_prompt:
            assert self.visual_before_T is not None
            before, after = (int(self.visual_before_T[min(at, num_prompt)]) for at in (start, end))
            visual_TD = self.visual_TD[before:after] if after > before else None
        return Piece(token_ids, visual_TD, start, num_prompt, request.pages, self.adapters)

    def end(self, reason: FinishReason, error: Exception | None, num_cached: int) -> None:
        """Nothing more will be said; `generation` is there from now on."""
        now, said = time.perf_counter(), self.request.said
        first = self.first_token_s or now
        text, logprobs = "", tuple(self.scored) if self.scored is not None else None
        if self.answer is not None and error is None:
            rest = self.answer.flush()
            if rest:
                self.pieces.append(rest)
            text = self.answer.text
            logprobs = tuple(self.answer.logprobs) if self.sampling.logprobs is not None else None
        self.generation = Generation(
            text=text,
            token_ids=tuple(score.token_id for score in self.scored or ()) or tuple(said),
            logprobs=logprobs,
            finish_reason=reason,
            usage=Usage(
                prompt_tokens=len(self.prompt_ids),
                visual_tokens=0 if self.visual_TD is None else len(self.visual_TD),
                completion_tokens=len(said),
                tiles=len(self.inputs.tiles),
                cached_tokens=min(num_cached, self.request.num_prompt),
            ),
            spec_hash=self.inputs.spec_hash,
            grids=tuple(self.inputs.grids),
            timings={
                "preprocess_s": self.preprocess_s,
                "first_token_s": first - self.started_s,
                "decode_s": now - first,
            },
            error=error,
        )


def in_order(
    submissions: Sequence[Callable[[], Ticket]],
    most: int,
    step: Callable[[], object],
    abort: Callable[[Ticket], None],
) -> list[Generation]:
    """The Generations of many requests, in their order; one that is refused brings its `error`.

    Never more than `most` at once, of which few wait: pictures take memory.
    """
    done: dict[int, Generation] = {}
    flying: dict[int, Ticket] = {}

    def land(most_left: int) -> None:
        while len(flying) > most_left:
            step()
            for number, ticket in list(flying.items()):
                if ticket.generation is not None:
                    done[number] = ticket.generation
                    del flying[number]

    try:
        for number, submit in enumerate(submissions):
            land(most - 1)
            try:
                flying[number] = submit()
            except CascadeError as error:
                done[number] = Generation(text="", finish_reason="error", error=error)
        land(0)
    finally:  # whoever interrupts leaves nothing behind
        for ticket in flying.values():
            abort(ticket)
    return [done[number] for number in range(len(submissions))]


def page_start(rope: Rope, num_prompt: int, adapters: Sequence[str]) -> bytes:
    """What keys and values depend on besides their tokens.

    Keys that are turned by the length of their prompt fit prompts of that length alone.
    """
    turned = ""
    if rope.kind == "dynamic" and num_prompt > rope.max_position:
        turned = f"length {num_prompt}"
    elif rope.kind == "longrope" and num_prompt > rope.trained_position:
        turned = "long"
    return (turned + "".join(f"\0{name}" for name in adapters)).encode()


def _visual_keys(keys: Sequence[bytes], num_each: int) -> np.ndarray:
    """A number below 0, which no token id is, for each visual token: of its stretch, and of its place in it."""
    bases = [int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") >> 2 for key in keys]
    return np.concatenate([-1 - (base + np.arange(num_each, dtype=np.int64)) for base in bases])


def check_asked(sampling: Any, num: Any, priority: Any, adapters: Any) -> None:
    """Refuse what would only fail later, and then for everybody."""
    if not isinstance(sampling, Sampling):
        raise ConfigError(f"sampling must be a cascadevl.Sampling(…), got {type(sampling).__name__}.")
    if not (fits(int, num) and fits(int, priority)) or num < 1 or isinstance(adapters, str):
        raise ConfigError(
            "num is a whole number above 0, priority a whole number and adapters a list of names, got "
            f"{num!r}, {priority!r} and {adapters!r}."
        )
