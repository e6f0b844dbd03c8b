"""How fast a loaded model is on this processor: rounds of the same work through the engine, beside its bounds."""

import dataclasses
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine.bounds import Bound, Bounds
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine, Ticket
from cascadevl.engine.kv_cache import PagedCache
from cascadevl.engine.simple import banned_ids
from cascadevl.preprocessing.processor import ModelInputs

DEFAULTS = EngineConfig()


@dataclass(frozen=True, kw_only=True, slots=True)
class Work:
    """What is asked of a model."""

    batch: int = 1
    """Requests at once."""
    prompt: int = 512
    """Tokens that each of them brings."""
    tokens: int = 128
    """Tokens that each gets."""
    images: int = 0
    """Pictures of each; with them, the tower and the first token of such requests are measured too."""
    tiles: int = 1
    """Most tiles of a picture, its thumbnail apart."""
    kv: str = "auto"
    """Format of keys and values."""


class Bench:
    """One model on the CPU, asked again and again: other words and other pictures in every round."""

    def __init__(self, parts: Any) -> None:
        """`parts`: a Bundle or the Parts of one."""
        self.parts: Parts = getattr(parts, "parts", parts)
        self._bounds = Bounds(self.parts)
        self._round = 0

    def bounds(self, work: Work) -> dict[str, Bound]:
        """What `run` measures, at its fastest; `decode` is of one step."""
        # The tokens of an answer see one more each: on average so many.
        seen = work.prompt + max(1, work.tokens // 2)
        found = {
            "prefill": self._bounds.prefill(work.batch, work.prompt),
            "decode": self._bounds.decode(work.batch, seen, work.kv),
        }
        if work.images:
            num_tiles = sum(len(self._pictured(work, number).tiles) for number in range(work.batch))
            found["tower"] = self._bounds.tower(num_tiles)
        return found

    @torch.inference_mode()
    def run(self, work: Work) -> dict[str, float]:
        """One round: seconds of each phase, what was done in them, and the most memory this process had.

        Raises ConfigError for what is longer than the model takes.
        """
        self._round += 1
        _forget_peak()
        found = self._text(work)
        if work.images:
            found |= self._pictures(work)
        return {**found, "peak_bytes": _peak_bytes()}

    def _text(self, work: Work) -> dict[str, float]:
        engine = self._engine(work, work.prompt)
        sampling = Sampling(max_new_tokens=work.tokens, ignore_eos=True, loop_guard=False)
        prompts = [self._prompt(work, number) for number in range(work.batch)]
        started, cpu_started = time.perf_counter(), time.process_time()
        tickets = [engine.submit(inputs, sampling) for inputs in prompts]
        while engine.busy and not all(ticket.request.said for ticket in tickets):
            engine.step()
        begun, cpu_begun = time.perf_counter(), time.process_time()
        # Where a step does not read all prompts, the first requests answer while the last are read.
        num_early = sum(len(ticket.request.said) for ticket in tickets)
        while engine.busy:
            engine.step()
        ended, cpu_ended = time.perf_counter(), time.process_time()
        return {
            "prefill_s": begun - started,
            "prefill_cpu_s": cpu_begun - cpu_started,
            "first_token_s": _first_token_s(tickets, started),
            "decode_s": ended - begun,
            "decode_cpu_s": cpu_ended - cpu_begun,
            "decoded": work.batch * work.tokens - num_early,
        }

    def _pictures(self, work: Work) -> dict[str, float]:
        """The tower alone, then requests with pictures up to their first token."""
        asked = [self._pictured(work, number) for number in range(work.batch)]
        tiles = torch.cat([inputs.tiles for inputs in asked])
        started = time.perf_counter()
        for part in tiles.split(DEFAULTS.max_step_tiles):
            self.parts.model.encode_tiles(part)
        tower_s = time.perf_counter() - started
        one = dataclasses.replace(work, tokens=1)
        engine = self._engine(one, max(len(inputs.token_ids) for inputs in asked))
        started = time.perf_counter()
        tickets = [engine.submit(inputs, Sampling(max_new_tokens=1, ignore_eos=True)) for inputs in asked]
        while engine.busy:
            engine.step()
        return {
            "tower_s": tower_s,
            "tiles": len(tiles),
            "pictured_tokens": sum(len(inputs.token_ids) for inputs in asked),
            "pictured_first_token_s": _first_token_s(tickets, started),
        }

    def _engine(self, work: Work, prompt: int) -> Engine:
        """With room for the work and no more, so that its memory is the work's."""
        decoder, longest = self.parts.model.config.decoder, self.parts.model.config.decoder.rope.longest
        if prompt + work.tokens > longest:
            raise ConfigError(
                f"A prompt of {prompt} tokens and {work.tokens} more are too long: {self.parts.name} takes {longest}."
            )
        kv_format = self._bounds.kv_format(work.kv)
        pages = work.batch * -(-(prompt + work.tokens) // DEFAULTS.page_size) + 2
        config = EngineConfig(
            cache_bytes=pages * PagedCache.page_bytes(decoder, DEFAULTS.page_size, kv_format),
            kv_format=kv_format,
            max_running=work.batch,
            max_step_tokens=max(DEFAULTS.max_step_tokens, work.batch),
            prefix_cache=False,
        )
        return Engine(self.parts, config)

    def _prompt(self, work: Work, number: int) -> ModelInputs:
        """Tokens at random, but none that stands for a picture."""
        vocab_size = min(len(self.parts.tokenizer), self.parts.model.config.decoder.vocab_size)
        usable = np.setdiff1d(np.arange(vocab_size), banned_ids(self.parts))
        token_ids = np.random.default_rng([self._round, number]).choice(usable, work.prompt)
        return ModelInputs(
            token_ids=torch.from_numpy(token_ids),
            tiles=torch.empty(0, 3, 1, 1, dtype=torch.uint8),
            grids=[],
            sizes=[],
            trained=torch.zeros(work.prompt, dtype=torch.bool),
            num_visual_tokens=0,
            spec_hash=self.parts.spec.hash,
        )

    def _pictured(self, work: Work, number: int) -> ModelInputs:
        """Pictures of noise, as wide as so many tiles."""
        rng, edge = np.random.default_rng([self._round, number]), self.parts.spec.tile_px
        noise = [rng.integers(0, 256, (edge, work.tiles * edge, 3), dtype=np.uint8) for _ in range(work.images)]
        asked = Conversation.ask("What do you see?", map(Image.fromarray, noise))
        return self.parts.processor(asked, max_tiles=work.tiles)


def _first_token_s(tickets: Sequence[Ticket], started: float) -> float:
    """Mean over requests that came together. Raises what any of them failed with."""
    waited = []
    for ticket in tickets:
        assert ticket.generation is not None
        if ticket.generation.error is not None:
            raise ticket.generation.error
        assert ticket.first_token_s is not None
        waited.append(ticket.first_token_s - started)
    return sum(waited) / len(waited)


def _forget_peak() -> None:
    """Linux does so for the process that asks; elsewhere the peak is that of all rounds."""
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_bytes() -> float:
    """Of this process, Python and torch included; 0 where the system does not tell."""
    with suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return 1024.0 * int(line.split()[1])
    return 0.0
