"""Bodies become model inputs, in a bounded pool of threads. What is hostile in them is decoded by other processes."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import MessageError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.decode import cut_up
from cascadevl.serving.fetch import Fetch
from cascadevl.serving.media import Cutter, Viewer, check_media
from cascadevl.serving.workers import Workers

T = TypeVar("T")

MORE_THREADS = 6
"""Beside those that wait for a decoder: for texts, and for what is fetched."""
MOST_TILES = 4096
"""Of a prompt whose length nothing else bounds."""


class Preparer:
    """Everything between a body and the engine that takes time, and the threads for it."""

    def __init__(self, parts: Parts, config: ServingConfig, fetch: Fetch | None = None) -> None:
        """`fetch`: in the place of the one that the configuration asks for."""
        self._parts, self._config = parts, config
        self._fetch = fetch
        if fetch is None and config.fetch_hosts:
            self._fetch = Fetch(hosts=config.fetch_hosts, max_bytes=config.max_body_bytes, timeout_s=config.fetch_s)
        self.workers: Workers | None = None
        """Processes that decode; None: the threads do."""
        num_threads = config.media_workers
        if config.media_isolation == "process":
            self.workers = Workers(
                config.media_workers,
                memory_bytes=config.media_memory_bytes,
                resize=parts.spec.resize,
                wait_s=config.deadline_s,
            )
            num_threads += MORE_THREADS
        self._cut: Cutter = self.workers or (lambda task, seconds: cut_up(task))
        self._pool = ThreadPoolExecutor(num_threads, thread_name_prefix="media")

    def start(self) -> None:
        """Start now what the first picture would start otherwise, and wait for it. Raises InternalError."""
        if self.workers is not None:
            self.workers.start()

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in a thread of the pool; what is cancelled before its turn never runs."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def chat(self, conversation: Conversation, max_tiles: int | None) -> ModelInputs:
        """Raises MediaError or MessageError."""
        if conversation.ends_with_answer:
            raise MessageError("The last message is the assistant's: end with what the user says.")
        check_media(conversation, self._config)
        spec, process = self._parts.spec, self._parts.processor
        longest = process.max_tokens
        room = MOST_TILES if longest is None else longest // spec.visual_tokens_per_tile
        viewer = Viewer(self._config, spec, room, self._cut, self._fetch)
        return process(viewer.look(conversation, lambda medium: process.tiling(medium, max_tiles)))

    def text(self, prompt: str | list[int]) -> ModelInputs:
        """A prompt without a template. Words that look like control tokens stay words; ids are taken as they are."""
        spec, tokenizer = self._parts.spec, self._parts.tokenizer
        if isinstance(prompt, str):
            self._parts.processor.check_text(prompt)
            bos = [tokenizer.id(spec.bos)] if spec.bos else []
            token_ids = [*bos, *tokenizer.opening(prompt), *tokenizer.encode(prompt)]
        else:
            token_ids = prompt
            visual = {tokenizer.id(token) for token in (spec.image_start, spec.image_context, spec.image_end)}
            # The vocabulary of the weights may be padded; the tokenizer's is what can be meant.
            bad = [i for i in token_ids if not 0 <= i < len(tokenizer) or i in visual]
            if bad:
                raise MessageError(
                    f"The prompt has the token {bad[0]}: expected 0 to {len(tokenizer) - 1}, and none that stands "
                    "for a picture. /v1/chat/completions takes pictures."
                )
        if not token_ids:
            raise MessageError("The prompt is empty: expected a text or token ids.")
        side = spec.tile_px
        return ModelInputs(
            token_ids=torch.tensor(token_ids, dtype=torch.int64),
            tiles=torch.empty(0, 3, side, side, dtype=torch.uint8),
            grids=[],
            sizes=[],
            trained=torch.zeros(len(token_ids), dtype=torch.bool),
            num_visual_tokens=0,
            spec_hash=spec.hash,
        )

    @property
    def num_lost(self) -> int:
        """Decoders that were killed or died over a task."""
        return 0 if self.workers is None else self.workers.num_lost

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
        if self.workers is not None:
            self.workers.close()
