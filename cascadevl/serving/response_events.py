"""Answers -> responses of the Responses API, whole or as its typed events.

https://platform.openai.com/docs/api-reference/responses-streaming. A response that is not streamed is the last of
its events. Ours: `spec_hash` of a response, `boxes` of a message, `visual_tokens` and `tiles` in the usage.
"""

import itertools
import time
import uuid
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from typing import Any

from cascadevl.core.generation import Generation, TokenLogprob
from cascadevl.preprocessing.parse import AnswerReader, Piece
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.serving.loop import Ended, Said
from cascadevl.serving.openai import Order
from cascadevl.serving.replies import FINISH, Reply
from cascadevl.serving.streams import Chunk

_PARTS = {"text": ("message", "output_text"), "thinking": ("reasoning", "reasoning_text")}
"""Kind of a piece -> type of its item, and of the part in it, after which its events are called."""


class ResponseReply(Reply):
    """POST /v1/responses: one answer, as a list of items that grows."""

    def __init__(self, order: Order, prompts: Sequence[ModelInputs], model: str, spellings: Sequence[bytes]) -> None:
        super().__init__(order, prompts, model, spellings)
        self._id = f"resp_{uuid.uuid4().hex}"
        self._numbers = itertools.count()
        self._reader = AnswerReader(order.tools)
        self._output: list[dict[str, Any]] = []
        """Items so far; the last one is open where `_open` says of which kind it is."""
        self._open: str | None = None
        self._logprobs: list[dict[str, Any]] = []
        """Of tokens whose text is still to come."""

    def whole(self, answers: Mapping[int, Generation]) -> dict[str, Any]:
        answer = answers[0]
        logprobs = answer.logprobs or ()
        for _ in self._said(Said(0, answer.text, logprobs)):
            pass
        return [*self._ended(Ended(0, answer))][-1]["response"]

    async def chunks(self, first: Said | Ended, events: AsyncIterator[Said | Ended]) -> AsyncIterator[Chunk]:
        """Events, the last of which has the whole response."""
        yield self._event("response.created", response=self._response("in_progress"))
        yield self._event("response.in_progress", response=self._response("in_progress"))
        event: Said | Ended | None = first
        while event is not None:
            for each in self._said(event) if isinstance(event, Said) else self._ended(event):
                yield each
            event = await anext(events, None)

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return {"type": kind, "sequence_number": next(self._numbers), **fields}

    def _response(self, status: str, **more: Any) -> dict[str, Any]:
        return {
            "id": self._id,
            "object": "response",
            "created_at": self._created,
            "status": status,
            "error": None,
            "incomplete_details": None,
            "model": self._model,
            "output": list(self._output),
            "usage": None,
            "spec_hash": self._spec_hash,
            **self._order.told,
            **more,
        }

    def _said(self, event: Said) -> Iterator[dict[str, Any]]:
        self._hold(event.logprobs)
        yield from self._shown(self._reader.push(event.text))

    def _ended(self, event: Ended) -> Iterator[dict[str, Any]]:
        answer = event.generation
        self._hold(event.logprobs)
        yield from self._shown(self._reader.finish())
        if not self._output:
            yield from self._begin("text")
        cut = FINISH[answer.finish_reason] != "stop"
        yield from self._close("incomplete" if cut else "completed")
        status = "incomplete" if cut else "completed"
        response = self._response(
            status,
            completed_at=None if cut else int(time.time()),
            incomplete_details={"reason": "max_output_tokens"} if cut else None,
            usage=self._usage(answer),
        )
        yield self._event(f"response.{status}", response=response)

    def _hold(self, logprobs: Sequence[TokenLogprob]) -> None:
        self._logprobs += self._tokens(logprobs)

    def _shown(self, pieces: Iterable[Piece]) -> Iterator[dict[str, Any]]:
        for piece in pieces:
            if piece.kind == "call":
                yield from self._close()
                yield from self._call(piece)
                continue
            if self._open != piece.kind:
                yield from self._close()
                yield from self._begin(piece.kind)
            yield from self._delta(piece)

    def _begin(self, kind: str) -> Iterator[dict[str, Any]]:
        item_type, part_type = _PARTS[kind]
        item: dict[str, Any] = {"id": f"{'msg' if kind == 'text' else 'rs'}_{uuid.uuid4().hex}", "type": item_type}
        more: dict[str, Any] = {"role": "assistant"} if kind == "text" else {"summary": []}
        self._output.append({**item, "status": "in_progress", **more, "content": []})
        self._open = kind
        yield self._event("response.output_item.added", output_index=self._index, item=self._output[-1])
        part = {"type": part_type, "text": "", **({"annotations": [], "logprobs": []} if kind == "text" else {})}
        yield self._part_event("response.content_part.added", part=part)
        self._output[-1] = {**self._output[-1], "content": [part]}

    def _delta(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """What was yielded before is left as it was: each change makes a new item."""
        (part,) = self._output[-1]["content"]
        part = {**part, "text": part["text"] + piece.text}
        fields: dict[str, Any] = {"delta": piece.text}
        if piece.kind == "text":
            fields["logprobs"], self._logprobs = self._logprobs, []
            part["logprobs"] = part["logprobs"] + fields["logprobs"]
        self._output[-1] = {**self._output[-1], "content": [part]}
        yield self._part_event(f"response.{part['type']}.delta", **fields)

    def _close(self, status: str = "completed") -> Iterator[dict[str, Any]]:
        if self._open is None:
            return
        item, self._open = self._output[-1], None
        (part,) = item["content"]
        if item["type"] == "message":
            part["logprobs"], self._logprobs = part["logprobs"] + self._logprobs, []
            item = {**item, **self._boxes(part["text"], 0)}
        logprobs = {"logprobs": part["logprobs"]} if item["type"] == "message" else {}
        yield self._part_event(f"response.{part['type']}.done", text=part["text"], **logprobs)
        yield self._part_event("response.content_part.done", part=part)
        self._output[-1] = {**item, "status": status}
        yield self._event("response.output_item.done", output_index=self._index, item=self._output[-1])

    def _call(self, piece: Piece) -> Iterator[dict[str, Any]]:
        """A call comes when it is whole."""
        self._logprobs = []  # they are of its tokens
        call = {"type": "function_call", "call_id": f"call_{uuid.uuid4().hex[:24]}", "name": piece.name}
        item = {"id": f"fc_{uuid.uuid4().hex}", **call, "status": "in_progress", "arguments": ""}
        self._output.append({**item, "status": "completed", "arguments": piece.text})
        where = {"item_id": item["id"], "output_index": self._index}
        yield self._event("response.output_item.added", output_index=self._index, item=item)
        yield self._event("response.function_call_arguments.delta", **where, delta=piece.text)
        yield self._event("response.function_call_arguments.done", **where, name=piece.name, arguments=piece.text)
        yield self._event("response.output_item.done", output_index=self._index, item=self._output[-1])

    def _part_event(self, kind: str, **fields: Any) -> dict[str, Any]:
        return self._event(kind, item_id=self._output[-1]["id"], output_index=self._index, content_index=0, **fields)

    @property
    def _index(self) -> int:
        return len(self._output) - 1

    def _usage(self, answer: Generation) -> dict[str, Any]:
        input_tokens, details = self._prompt_tokens({0: answer})
        said = answer.usage.completion_tokens
        return {
            "input_tokens": input_tokens,
            "input_tokens_details": details,
            "output_tokens": said,
            "output_tokens_details": {"reasoning_tokens": self._thought_tokens(answer)},
            "total_tokens": input_tokens + said,
        }
