"""Models as readers, and as experts who see what the readers said. A model is any `Generator`."""

import base64
import io
import json
import re
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from PIL import Image

from cascadevl.apps.ocr_consensus.readers import ReaderFailed, Reading
from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError
from cascadevl.core.generation import Generation, Generator, Sampling
from cascadevl.core.messages import Conversation

READ = "Read the text."
REVIEW = """Several programs have read this picture and disagree. Look at it and write its text, exactly as it is \
printed, line by line, and nothing else.
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelReader:
    """A vision-language model asked to read the page."""

    name: str
    version: str
    generator: Generator
    sampling: Sampling
    prompt: str = READ

    def read(self, image: Image.Image) -> Reading:
        return Reading(self._ask(self.prompt, image))

    def review(self, image: Image.Image, candidates: Sequence[str], consensus: str) -> Reading:
        """As an expert: a reading by one who has seen all others and what they came to (CE-OCR)."""
        parts = [REVIEW, *(f"Reading {at}:\n{text}\n" for at, text in enumerate(candidates, start=1))]
        return Reading(self._ask("\n".join([*parts, f"What they came to:\n{consensus}"]), image))

    def _ask(self, question: str, image: Image.Image) -> str:
        [answer] = self.generator.generate([Conversation.ask(question, [image])], self.sampling)
        if answer.error:
            raise answer.error
        return answer.text


@dataclass(frozen=True, slots=True)
class Endpoint:
    """A `Generator` over an OpenAI-compatible address; nothing is sent unless somebody names one."""

    url: str
    """Up to and without /chat/completions."""
    model: str
    timeout_s: float = 300.0
    key: str | None = None

    def generate(self, conversations: Sequence[Any], sampling: Sampling) -> list[Generation]:
        return [Generation(text=self._answer(Conversation.parse(each), sampling)) for each in conversations]

    def _answer(self, conversation: Conversation, sampling: Sampling) -> str:
        body = {
            "model": self.model,
            "messages": [{"role": "user", "content": [_part(part) for part in conversation.turns[-1].parts]}],
            "max_tokens": sampling.max_new_tokens,
            "temperature": sampling.temperature,
            **({"seed": sampling.seed} if sampling.seed is not None else {}),
        }
        headers = {"Content-Type": "application/json", **({"Authorization": f"Bearer {self.key}"} if self.key else {})}
        request = urllib.request.Request(f"{self.url}/chat/completions", json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=self.timeout_s) as response:
                return json.load(response)["choices"][0]["message"]["content"] or ""
        except (OSError, ValueError, LookupError, TypeError) as problem:
            raise ReaderFailed(f"{self.url} did not answer as expected: {problem!r}") from problem


def _part(part: Any) -> dict[str, Any]:
    if hasattr(part, "text"):
        return {"type": "text", "text": part.text}
    buffer = io.BytesIO()
    part.source.save(buffer, "PNG")
    url = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return {"type": "image_url", "image_url": {"url": url}}


@dataclass(frozen=True, slots=True)
class ModelSpec:
    """A model as the command line names it: `nano`, `FOLDER`, `http://host:8000/v1#name`."""

    where: str
    sample: int | None = None
    """None: greedy. Otherwise the number of a sample, which is its seed."""

    @property
    def is_address(self) -> bool:
        return "://" in self.where

    @property
    def name(self) -> str:
        short = re.split("[#/]", self.where.rstrip("/"))[-1]
        return short if self.sample is None else f"{short}~{self.sample}"

    def of(self, sampling: Sampling) -> Sampling:
        """Samples are drawn, each with a seed of its own."""
        return sampling if self.sample is None else replace(sampling, temperature=TEMPERATURE, seed=self.sample)


TEMPERATURE = 0.7
"""Of samples: three readings of one model at it helped in the paper."""


def parse(spec: str) -> list[ModelSpec]:
    """One model, or with *N behind it that many samples of it."""
    match = re.fullmatch(r"(.+?)\*(\d{1,3})", spec)
    if not match:
        return [ModelSpec(spec)]
    if not 2 <= int(match[2]) <= 32:
        raise ConfigError(f"{spec!r}: expected 2 to 32 samples.")
    return [ModelSpec(match[1], sample) for sample in range(int(match[2]))]


def model_version(spec: ModelSpec) -> str:
    """Names, sizes and times of a model's files, since hashing weights may take minutes. Loads nothing.

    Of an address only itself is known: what runs behind it may change unseen.
    """
    prompt = f"{READ} {spec.sample}"
    if spec.is_address:
        url, _, model = spec.where.partition("#")
        if not model or not url.startswith(("http://", "https://")):
            raise ConfigError(f"{spec.where!r}: expected an address and a model, as in http://host:8000/v1#model.")
        return f"{spec.where} {prompt}"
    files = [(path.name, path.stat()) for path in sorted(locate(spec.where).iterdir()) if path.is_file()]
    return " ".join([prompt, *(f"{name} {status.st_size} {status.st_mtime_ns}" for name, status in files)])


def open_endpoint(spec: ModelSpec, sampling: Sampling, key: str | None, timeout_s: float) -> ModelReader:
    url, _, model = spec.where.partition("#")
    endpoint = Endpoint(url.rstrip("/"), model, timeout_s, key)
    version = f"{model_version(spec)} {sampling.max_new_tokens}"
    return ModelReader(name=spec.name, version=version, generator=endpoint, sampling=spec.of(sampling))


def open_model(spec: ModelSpec, sampling: Sampling) -> ModelReader:
    """Loads the weights."""
    from cascadevl.checkpoints.load import load_parts

    generator = OneByOne(load_parts(spec.where))
    return ModelReader(name=spec.name, version=model_version(spec), generator=generator, sampling=spec.of(sampling))


@dataclass(frozen=True, slots=True)
class OneByOne:
    """A `Generator` of a loaded model that answers one question after the other."""

    parts: Any

    def generate(self, conversations: Sequence[Any], sampling: Sampling) -> list[Generation]:
        from cascadevl.engine.simple import generate

        answers = [list(generate(self.parts, self.parts.processor(each), sampling))[-1] for each in conversations]
        return [answer for answer in answers if isinstance(answer, Generation)]
