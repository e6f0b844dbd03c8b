"""Bodies become model inputs, in a bounded pool of threads: reading JSON, decoding pictures, cutting them up."""

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

from cascadevl.checkpoints.parts import Parts
from cascadevl.core.errors import MessageError
from cascadevl.core.messages import Conversation
from cascadevl.preprocessing.processor import ModelInputs, Processor
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.media import open_media

T = TypeVar("T")


class Preparer:
    """Everything between a body and the engine that takes time, and the threads for it."""

    def __init__(self, parts: Parts, config: ServingConfig) -> None:
        self._parts, self._config = parts, config
        self._processor = Processor(
            parts.spec, parts.tokenizer, max_tokens=parts.processor.max_tokens, limits=config.media
        )
        self._pool = ThreadPoolExecutor(config.media_workers, thread_name_prefix="media")

    async def run(self, work: Callable[[], T]) -> T:
        """`work` in a thread of the pool; what is cancelled before its turn never runs."""
        return await asyncio.get_running_loop().run_in_executor(self._pool, work)

    def chat(self, conversation: Conversation, max_tiles: int | None) -> ModelInputs:
        """Raises MediaError or MessageError."""
        if conversation.ends_with_answer:
            raise MessageError("The last message is the assistant's: end with what the user says.")
        return self._processor(open_media(conversation, self._config), max_tiles=max_tiles)

    def text(self, prompt: str | list[int]) -> ModelInputs:
        """A prompt without a template. Words that look like control tokens stay words; ids are taken as they are."""
        spec, tokenizer = self._parts.spec, self._parts.tokenizer
        if isinstance(prompt, str):
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

    def close(self) -> None:
        self._pool.shutdown(wait=False, cancel_futures=True)
