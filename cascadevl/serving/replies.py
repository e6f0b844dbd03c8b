"""Answers -> response bodies and chunks of OpenAI's API.

Ours beside its fields: `spec_hash` in every body; `visual_tokens` and `tiles` in the usage; `boxes` of a choice, in
pixels of the original picture; `stop_reason` where the reason is finer than `finish_reason` can tell.
"""

import time
import uuid
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import Any

from cascadevl.core.boxes import read_boxes
from cascadevl.core.generation import Generation, TokenLogprob
from cascadevl.preprocessing.processor import ModelInputs
from cascadevl.serving.loop import Ended, Said
from cascadevl.serving.openai import Order

FINISH = {"stop": "stop", "length": "length", "repetition": "length", "abort": "length"}
"""Ours -> OpenAI's, whose clients know no others: whatever was cut short is "length"."""


class Reply:
    """All that is said in answer to one order."""

    def __init__(self, order: Order, prompts: Sequence[ModelInputs], model: str, spellings: Sequence[bytes]) -> None:
        """`spellings`: the bytes of each token."""
        self._order, self._prompts, self._spellings = order, prompts, spellings
        kind = "chat.completion" if order.chat else "text_completion"
        self._head = {
            "id": f"{'chatcmpl' if order.chat else 'cmpl'}-{uuid.uuid4().hex}",
            "object": kind + ".chunk" * (order.chat and order.stream),
            "created": int(time.time()),
            "model": model,
            "spec_hash": prompts[0].spec_hash,
        }

    def whole(self, answers: Mapping[int, Generation]) -> dict[str, Any]:
        """The body of a response that is not streamed."""
        choices = []
        for number in sorted(answers):
            answer = answers[number]
            said = {"message": {"role": "assistant", "content": answer.text}} if self._order.chat else {}
            said = said or {"text": answer.text}
            choices.append(
                {"index": number, **said, "logprobs": self._logprobs(answer.logprobs), **self._ending(number, answer)}
            )
        return {**self._head, "choices": choices, "usage": self._usage(answers)}

    async def chunks(self, first: Said | Ended, events: AsyncIterator[Said | Ended]) -> AsyncIterator[dict[str, Any]]:
        """The chunks of a streamed response, the one with the usage last, where asked for."""
        answers: dict[int, Generation] = {}
        if self._order.chat:
            for number in range(self._order.num):
                yield self._chunk({"index": number, "delta": {"role": "assistant", "content": ""}})
        event: Said | Ended | None = first
        while event is not None:
            if isinstance(event, Ended):
                answers[event.number] = event.generation
            yield self._piece(event)
            event = await anext(events, None)
        if self._order.include_usage:
            yield {**self._head, "choices": [], "usage": self._usage(answers)}

    def _piece(self, event: Said | Ended) -> dict[str, Any]:
        text = event.text if isinstance(event, Said) else ""
        said: dict[str, Any] = {"delta": {"content": text} if text else {}} if self._order.chat else {"text": text}
        ending = {"finish_reason": None}
        if isinstance(event, Ended):
            ending = self._ending(event.number, event.generation)
        return self._chunk(
            {"index": event.number, **said, "logprobs": self._logprobs(event.logprobs or None), **ending}
        )

    def _chunk(self, choice: dict[str, Any]) -> dict[str, Any]:
        # With include_usage, every chunk but the last says that it has none.
        usage = {"usage": None} if self._order.include_usage else {}
        return {**self._head, "choices": [{"finish_reason": None, **choice}], **usage}

    def _ending(self, number: int, answer: Generation) -> dict[str, Any]:
        finish_reason = FINISH[answer.finish_reason]
        ending: dict[str, Any] = {"finish_reason": finish_reason}
        if answer.finish_reason != finish_reason:
            ending["stop_reason"] = answer.finish_reason
        sizes = self._prompts[number // self._order.num].sizes
        found = read_boxes(answer.text, *sizes[-1]) if sizes else []
        if found:  # they belong to the last picture, which the question follows
            ending["boxes"] = [
                {"label": box.label, "box": [round(edge, 2) for edge in (box.left, box.top, box.right, box.bottom)]}
                for grounded in found
                for box in grounded.boxes
            ]
            ending["malformed_boxes"] = [grounded.malformed for grounded in found if grounded.malformed]
        return ending

    def _usage(self, answers: Mapping[int, Generation]) -> dict[str, Any]:
        """A prompt counts once, however many answers it has."""
        firsts = [answers[number].usage for number in range(0, len(answers), self._order.num)]
        prompt_tokens = sum(usage.prompt_tokens for usage in firsts)
        said = sum(answer.usage.completion_tokens for answer in answers.values())
        return {
            "prompt_tokens": prompt_tokens,
            "completion_tokens": said,
            "total_tokens": prompt_tokens + said,
            "prompt_tokens_details": {
                "cached_tokens": sum(usage.cached_tokens for usage in firsts),
                "visual_tokens": sum(usage.visual_tokens for usage in firsts),
                "tiles": sum(usage.tiles for usage in firsts),
            },
        }

    def _logprobs(self, entries: Sequence[TokenLogprob] | None) -> dict[str, Any] | None:
        if entries is None:
            return None
        if self._order.chat:
            return {
                "content": [
                    {
                        **self._token(entry.token_id, entry.logprob),
                        "top_logprobs": [self._token(*each) for each in entry.top],
                    }
                    for entry in entries
                ],
                "refusal": None,
            }
        offsets, texts = [0], [self._text(entry.token_id) for entry in entries]
        for text in texts:
            offsets.append(offsets[-1] + len(text))
        return {
            "tokens": texts,
            "token_logprobs": [entry.logprob for entry in entries],
            "top_logprobs": [{self._text(token_id): logprob for token_id, logprob in entry.top} for entry in entries],
            "text_offset": offsets[:-1],
        }

    def _token(self, token_id: int, logprob: float) -> dict[str, Any]:
        # JSON has no infinity; what cannot be said is as unlikely as a float tells.
        spelling = self._spelling(token_id)
        return {
            "token": self._text(token_id),
            "logprob": max(logprob, -9999.0),
            "bytes": list(spelling),
        }

    def _text(self, token_id: int) -> str:
        return self._spelling(token_id).decode(errors="replace")

    def _spelling(self, token_id: int) -> bytes:
        """The vocabulary of the weights may be longer than the tokenizer's."""
        return self._spellings[token_id] if token_id < len(self._spellings) else b""
