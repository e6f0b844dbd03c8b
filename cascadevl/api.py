"""load() and Bundle: a model that answers questions about pictures."""

import dataclasses
import os
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cascadevl.checkpoints.adapters import merge, read_adapter
from cascadevl.checkpoints.load import load_parts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.save import save_parts
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation
from cascadevl.engine.simple import generate
from cascadevl.models.internvl import InternVL
from cascadevl.models.quant_linear import few_bits, quantize_decoder
from cascadevl.ops.formats import FORMATS
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import TextTokenizer

Messages = Conversation | Sequence[Mapping[str, Any]] | str
"""OpenAI-style messages, our `Conversation`, or a question alone."""


def load(
    model: str | os.PathLike[str] = "nano",
    *,
    dtype: str | torch.dtype = "auto",
    device: str | torch.device = "auto",
    quant: str | None = None,
    adapter: str | os.PathLike[str] | None = None,
) -> "Bundle":
    """Load an embedded model ("nano"), a folder in either official layout, or a hub id.

    dtype "auto" is the stored type, or float32 where the device has no fast units for it. `adapter` is a
    PEFT LoRA folder, which is merged into the weights. `quant` rounds the matrices of the decoder's layers to
    a format of `ops.formats.FORMATS`, such as "int8" or "int4-g64"; tower, projector, embeddings, output
    matrix and what routes to experts stay as they are. Folders that are of few bits (AWQ, GPTQ,
    compressed-tensors, FP8, MXFP4) load as they are, without `quant`.
    Raises CheckpointNotFound, CheckpointError or ConfigError.
    """
    if quant is not None and quant not in FORMATS:
        raise ConfigError(f"quant={quant!r} is no format we know: expected None, {', '.join(FORMATS)}.")
    parts = load_parts(model, dtype=dtype, device=device)
    if adapter is not None:
        merge(parts.model, read_adapter(adapter, parts.model))
    if quant is not None:
        if few_bits(parts.model):
            raise ConfigError(f"{model} is of few bits already: load it without quant={quant!r}.")
        quantize_decoder(parts.model.language_model, FORMATS[quant])
    return Bundle(parts)


class Bundle:
    """A loaded model with everything it needs to be asked."""

    def __init__(self, parts: Parts) -> None:
        self.parts = parts

    def __repr__(self) -> str:
        size = sum(p.numel() for p in self.model.parameters())
        return f"Bundle({self.name!r}, {size / 1e6:.1f} M parameters, {self.model.dtype}, spec {self.spec.hash})"

    @property
    def name(self) -> str:
        return self.parts.name

    @property
    def model(self) -> InternVL:
        return self.parts.model

    @property
    def tokenizer(self) -> TextTokenizer:
        return self.parts.tokenizer

    @property
    def spec(self) -> Spec:
        """How pictures and words become inputs; frozen, with a hash."""
        return self.parts.spec

    def ask(
        self,
        question: str,
        images: Iterable[Any] = (),
        *,
        sampling: Sampling | None = None,
        max_tiles: int | None = None,
    ) -> str:
        """The answer to a question about some pictures; greedy unless `sampling` says otherwise."""
        return self.generate(Conversation.ask(question, _listed(images)), sampling, max_tiles=max_tiles).text

    def stream(
        self, messages: Messages, sampling: Sampling | None = None, *, max_tiles: int | None = None
    ) -> Iterator[str]:
        """The answer in pieces, as they are said."""
        for item in self.stream_generation(messages, sampling, max_tiles=max_tiles):
            if isinstance(item, str):
                yield item

    def generate(
        self, messages: Messages, sampling: Sampling | None = None, *, max_tiles: int | None = None
    ) -> Generation:
        """The answer with its tokens, usage, finish reason, spec hash and timings."""
        *_, generation = self.stream_generation(messages, sampling, max_tiles=max_tiles)
        assert isinstance(generation, Generation)
        return generation

    def stream_generation(
        self, messages: Messages, sampling: Sampling | None = None, *, max_tiles: int | None = None
    ) -> Iterator[str | Generation]:
        """Pieces of the answer; the last item is the Generation."""
        sampling = Sampling() if sampling is None else sampling
        if not isinstance(sampling, Sampling):
            raise ConfigError(f"sampling must be a cascadevl.Sampling(…), got {type(sampling).__name__}.")
        started = time.perf_counter()
        inputs = self.preprocess(messages, max_tiles=max_tiles)
        preprocess_s = time.perf_counter() - started
        for item in generate(self.parts, inputs, sampling):
            if isinstance(item, Generation):
                item = dataclasses.replace(item, timings={"preprocess_s": preprocess_s, **item.timings})
            yield item

    def preprocess(self, messages: Messages, *, max_tiles: int | None = None) -> ModelInputs:
        """What the model would read: token_ids (T,), tiles uint8 (S, 3, Y, X), grids, spec_hash."""
        return self.parts.processor(messages, max_tiles=max_tiles)

    @torch.no_grad()
    def logits(self, messages: Messages) -> tuple[Tensor, Tensor]:
        """(token_ids (T,), logits (T, V)): raw, fp32, on the CPU, of exactly the rendered messages."""
        inputs = self.preprocess(messages)
        logits_TV = self.model(inputs.token_ids.to(self.model.device), inputs.tiles.to(self.model.device))
        return inputs.token_ids, logits_TV.cpu()

    def save(self, folder: str | os.PathLike[str], layout: str = "hf") -> None:
        """Write an official folder, whole or not at all; "hf" or "chat"."""
        save_parts(self.parts, folder, layout=layout)


def _listed(images: Any) -> list[Any]:
    """A single picture is taken as a list of one."""
    alone = isinstance(images, str | bytes | os.PathLike) or hasattr(images, "__array_interface__")
    return [images] if alone or not isinstance(images, Iterable) else list(images)
