"""Answers -> bodies and chunks of chats and completions.

Ours beside OpenAI's fields: `spec_hash` in every body; `visual_tokens` and `tiles` in the usage; `reasoning_content`
of a message, what was thought; `boxes` of a choice, in pixels of the original picture; `stop_reason` where the reason
is finer than `finish_reason` can tell.
"""

import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cascadevl.core.boxes import read_boxes
from cascadevl.core.generation import Generation, TokenLogprob
from cascadevl.preprocessing.parse import THINK_END, AnswerReader, Piece
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.serving.loop import Ended, Said
from cascadevl.serving.openai import Order
from cascadevl.serving.streams import JSON, Chunk

FINISH = {"stop": "stop", "length": "length", "repetition": "length", "abort": "length"}
"""Ours -> OpenAI's, whose clients know no others: whatever was cut short is "length"."""

LEAST_LOGPROB = -9999.0
"""JSON has no infinity; what cannot be said is as unlikely as a float tells."""

GAP = "\0"
"""Where the text goes in a chunk that is written before it."""


class Reply(ABC):
    """All that is said in answer to one order."""

    def __init__(self, order: Order, prompts: Sequence[ModelInputs], model: str, spellings: Sequence[bytes]) -> None:
        """`spellings`: the bytes of each token."""
        self._order, self._prompts, self._model, self._spellings = order, prompts, model, spellings
        self._created, self._spec_hash = int(time.time()), prompts[0].spec_hash

    @abstractmethod
    def whole(self, answers: Mapping[int, Generation]) -> dict[str, Any]:
        """The body of a response that is not streamed."""

    @abstractmethod
    def chunks(self, first: Said | Ended, events: AsyncIterator[Said | Ended]) -> AsyncIterator[Chunk]:
        """The chunks of a streamed response."""

    def _read(self, text: str) -> list[Piece]:
        reader = AnswerReader(self._order.tools)
        return [*reader.push(text), *reader.finish()]

    def _boxes(self, text: str, number: int) -> dict[str, Any]:
        """Nothing where there are none. They belong to the last picture, which the question follows."""
        sizes = self._prompts[number // self._order.num].sizes
        found = read_boxes(text, *sizes[-1]) if sizes else []
        if not found:
            return {}
        return {
            "boxes": [
                {"label": box.label, "box": [round(edge, 2) for edge in (box.left, box.top, box.right, box.bottom)]}
                for grounded in found
                for box in grounded.boxes
            ],
            "malformed_boxes": [grounded.malformed for grounded in found if grounded.malformed],
        }

    def _prompt_tokens(self, answers: Mapping[int, Generation]) -> tuple[int, dict[str, int]]:
        """A prompt counts once, however many answers it has."""
        firsts = [answers[number].usage for number in range(0, len(answers), self._order.num)]
        return sum(usage.prompt_tokens for usage in firsts), {
            "cached_tokens": sum(usage.cached_tokens for usage in firsts),
            "visual_tokens": sum(usage.visual_tokens for usage in firsts),
            "tiles": sum(usage.tiles for usage in firsts),
        }

    def _thought_tokens(self, answer: Generation) -> int:
        """Tokens of an answer up to the end of its thinking, be that a tag or, in channels, the last header."""
        pieces = self._read(answer.text)
        if not any(piece.kind == "thinking" for piece in pieces):
            return 0
        spelled = [self._spelling(token_id) for token_id in answer.token_ids]
        if all(piece.kind == "thinking" for piece in pieces):
            return len(spelled)
        said = b"".join(spelled)
        marks = [mark for mark in (THINK_END.encode(), b"<|channel|>final") if mark in said]
        end = max((said.find(mark) + len(mark) for mark in marks), default=len(said))
        num, at = 0, 0
        while at < end:
            at += len(spelled[num])
            num += 1
        return num

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        spelling = self._spelling(token_id)
        return {"token": self._text(token_id), "logprob": max(logprob, LEAST_LOGPROB), "bytes": list(spelling)}

    def _tokens(self, entries: Sequence[TokenLogprob]) -> list[dict[str, Any]]:
        return [
            {**self._token(entry.token_id, entry.logprob), "top_logprobs": [self._token(*each) for each in entry.top]}
            for entry in entries
        ]

    def _text(self, token_id: int) -> str:
        return self._spelling(token_id).decode(errors="replace")

    def _spelling(self, token_id: int) -> bytes:
        """The vocabulary of the weights may be longer than the tokenizer's."""
        return self._spellings[token_id] if token_id < len(self._spellings) else b""


class ChoicesReply(Reply):
    """What chats and completions have in common: numbered choices under a head."""

    kind = chunk_kind = id_prefix = ""

    def __init__(self, order: Order, prompts: Sequence[ModelInputs], model: str, spellings: Sequence[bytes]) -> None:
        super().__init__(order, prompts, model, spellings)
        self._head = {
            "id": f"{self.id_prefix}-{uuid.uuid4().hex}",
            "object": self.chunk_kind if order.stream else self.kind,
            "created": self._created,
            "model": model,
            "spec_hash": self._spec_hash,
        }
        self._around: dict[int, tuple[str, str]] = {}
        """Of each answer: what stands before and after the text in its chunks, as JSON."""

    def whole(self, answers: Mapping[int, Generation]) -> dict[str, Any]:
        choices = [self._choice(number, answers[number]) for number in sorted(answers)]
        return {**self._head, "choices": choices, "usage": self._usage(answers)}

    async def chunks(self, first: Said | Ended, events: AsyncIterator[Said | Ended]) -> AsyncIterator[Chunk]:
        """The one with the usage comes last, where asked for."""
        answers: dict[int, Generation] = {}
        for choice in self._openings():
            yield self._chunk(choice)
        event: Said | Ended | None = first
        while event is not None:
            if isinstance(event, Ended):
                answers[event.number] = event.generation
            for chunk in self._pieces(event):
                yield chunk
            event = await anext(events, None)
        if self._order.include_usage:
            yield {**self._head, "choices": [], "usage": self._usage(answers)}

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        # With include_usage, every chunk but the last says that it has none.
        usage = {"usage": None} if self._order.include_usage else {}
        return {**self._head, "choices": [{"finish_reason": None, "logprobs": None, **choice}], **usage}

    def _plain(self, number: int, text: str) -> str:
        """The chunk of nothing but text, of which most are: written once for each answer, but for the text."""
        if number not in self._around:
            before, after = JSON.encode(self._chunk(self._text_choice(number, GAP))).split(JSON.encode(GAP))
            self._around[number] = before, after
        before, after = self._around[number]
        return f"{before}{JSON.encode(text)}{after}"

    def _usage(self, answers: Mapping[int, Generation]) -> dict[str, Any]:
        prompt_tokens, details = self._prompt_tokens(answers)
        said = sum(answer.usage.completion_tokens for answer in answers.values())
        thought = sum(map(self._thought_tokens, answers.values()))
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": said,
            "total_tokens": prompt_tokens + said,
            "prompt_tokens_details": details,
            "completion_tokens_details": {"reasoning_tokens": thought},
        }

    def _ending(self, number: int, answer: Generation, text: str, *, calls: bool = False) -> dict[str, Any]:
        finish_reason = FINISH[answer.finish_reason]
        ending: dict[str, Any] = {"finish_reason": "tool_calls" if calls and finish_reason == "stop" else finish_reason}
        if answer.finish_reason != finish_reason:
            ending["stop_reason"] = answer.finish_reason
        return {**ending, **self._boxes(text, number)}

    @abstractmethod
    def _choice(self, number: int, answer: Generation) -> dict[str, Any]:
        """Of a response that is not streamed."""

    @abstractmethod
    def _text_choice(self, number: int, text: str) -> dict[str, Any]:
        """Of a chunk that brings text."""

    @abstractmethod
    def _pieces(self, event: Said | Ended) -> Sequence[Chunk]:
        """The chunks that an event makes."""

    def _openings(self) -> list[dict[str, Any]]:
        """Choices of the chunks before all others."""
        return []


class CompletionReply(ChoicesReply):
    """POST /v1/completions: the text as the model said it."""

    kind = chunk_kind = "text_completion"
    id_prefix = "cmpl"

    def _choice(self, number: int, answer: Generation) -> dict[str, Any]:
        ending = self._ending(number, answer, answer.text)
        return {"index": number, "text": answer.text, "logprobs": self._logprobs(answer.logprobs), **ending}

    def _text_choice(self, number: int, text: str) -> dict[str, Any]:
        return {"index": number, "text": text}

    def _pieces(self, event: Said | Ended) -> Sequence[Chunk]:
        if isinstance(event, Said) and not event.logprobs:
            return [self._plain(event.number, event.text)]
        choice = self._text_choice(event.number, event.text if isinstance(event, Said) else "")
        choice["logprobs"] = self._logprobs(event.logprobs or None)
        if isinstance(event, Ended):
            choice |= self._ending(event.number, event.generation, event.generation.text)
        return [self._chunk(choice)]

    def _logprobs(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        offsets, texts = [0], [self._text(entry.token_id) for entry in entries]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [max(entry.logprob, LEAST_LOGPROB) for entry in entries],
            "top_logprobs": [{self._text(token_id): logprob for token_id, logprob in entry.top} for entry in entries],
            "text_offset": offsets[:-1],
        }


class ChatReply(ChoicesReply):
    """POST /v1/chat/completions: thinking and calls told apart from what is meant for the reader."""

    kind, chunk_kind, id_prefix = "chat.completion", "chat.completion.chunk", "chatcmpl"

    def __init__(self, order: Order, prompts: Sequence[ModelInputs], model: str, spellings: Sequence[bytes]) -> None:
        super().__init__(order, prompts, model, spellings)
        self._readers = [AnswerReader(order.tools) for _ in range(order.num)]
        self._said = [""] * order.num
        """Text of each streamed answer, and below how often it has called."""
        self._num_calls = [0] * order.num

    def _choice(self, number: int, answer: Generation) -> dict[str, Any]:
        pieces = self._read(answer.text)
        text, thinking = ("".join(p.text for p in pieces if p.kind == kind) for kind in ("text", "thinking"))
        calls = [_call(piece) for piece in pieces if piece.kind == "call"]
        message: dict[str, Any] = {"role": "assistant", "content": None if calls and not text else text}
        if thinking:
            message["reasoning_content"] = thinking
        if calls:
            message["tool_calls"] = calls
        ending = self._ending(number, answer, text, calls=bool(calls))
        return {"index": number, "message": message, "logprobs": self._logprobs(answer.logprobs), **ending}

    def _openings(self) -> list[dict[str, Any]]:
        return [{"index": n, "delta": {"role": "assistant", "content": ""}} for n in range(self._order.num)]

    def _text_choice(self, number: int, text: str) -> dict[str, Any]:
        return {"index": number, "delta": {"content": text}}

    def _pieces(self, event: Said | Ended) -> Sequence[Chunk]:
        number, reader = event.number, self._readers[event.number]
        pieces = reader.push(event.text) if isinstance(event, Said) else reader.finish()
        if isinstance(event, Said) and not event.logprobs and all(piece.kind == "text" for piece in pieces):
            return [self._plain(number, delta["content"]) for piece in pieces for delta in self._deltas(number, piece)]
        deltas = [delta for piece in pieces for delta in self._deltas(number, piece)]
        if event.logprobs and not deltas:
            deltas = [{}]
        choices: list[dict[str, Any]] = [{"index": number, "delta": delta} for delta in deltas]
        if event.logprobs:
            choices[0]["logprobs"] = self._logprobs(event.logprobs)
        if isinstance(event, Ended):
            calls = self._num_calls[number] > 0
            ending = self._ending(number, event.generation, self._said[number], calls=calls)
            choices.append({"index": number, "delta": {}, **ending})
        return [self._chunk(choice) for choice in choices]

    def _deltas(self, number: int, piece: Piece) -> list[dict[str, Any]]:
        """A call comes when it is whole: its head first, as clients expect it."""
        if piece.kind == "text":
            self._said[number] += piece.text
            return [{"content": piece.text}]
        if piece.kind == "thinking":
            return [{"reasoning_content": piece.text}]
        index, call = self._num_calls[number], _call(piece)
        self._num_calls[number] += 1
        head = {**call, "index": index, "function": {"name": piece.name, "arguments": ""}}
        return [
            {"tool_calls": [head]},
            {"tool_calls": [{"index": index, "function": {"arguments": piece.text}}]},
        ]

    def _logprobs(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        return None if entries is None else {"content": self._tokens(entries), "refusal": None}


def _call(piece: Piece) -> dict[str, Any]:
    return {
        "id": f"call_{uuid.uuid4().hex[:24]}",
        "type": "function",
        "function": {"name": piece.name, "arguments": piece.text},
    }
