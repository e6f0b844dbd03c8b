"""A bundle that says what it was told to: the command line without weights."""

import dataclasses
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any

from cascadevl.core.generation import FinishReason, Generation, Sampling, Usage
from cascadevl.core.messages import Conversation


@dataclasses.dataclass
class Scripted:
    """Answers in order; an exception among them is raised. `asked` keeps what it was given."""

    answers: list[str | BaseException]
    name: str = "scripted"
    finish_reason: FinishReason = "stop"
    asked: list[tuple[Conversation, Sampling]] = dataclasses.field(default_factory=list)

    @property
    def parts(self) -> Any:
        return SimpleNamespace(notes=())

    def generate(
        self, messages: Conversation, sampling: Sampling | None = None, *, max_tiles: int | None = None
    ) -> Generation:
        self.asked.append((messages, sampling or Sampling()))
        answer = self.answers[len(self.asked) - 1]
        if isinstance(answer, BaseException):
            raise answer
        return Generation(
            text=answer,
            finish_reason=self.finish_reason,
            usage=Usage(prompt_tokens=9, visual_tokens=4, completion_tokens=len(answer.split()), tiles=1),
            spec_hash="0123456789abcdef",
            timings={"preprocess_s": 0.1, "prefill_s": 0.2, "decode_s": 0.3},
        )

    def stream_generation(
        self, messages: Conversation, sampling: Sampling | None = None, *, max_tiles: int | None = None
    ) -> Iterator[str | Generation]:
        answer = self.generate(messages, sampling, max_tiles=max_tiles)
        yield from answer.text
        yield answer

    def preprocess(self, messages: Conversation, *, max_tiles: int | None = None) -> Any:
        return SimpleNamespace(grids=[(1, 1)] * len(messages.images))
