"""A file of questions in OpenAI's batch form -> a file of answers, row by row, resumable.

In:  {"custom_id": …, "method": "POST", "url": "/v1/chat/completions", "body": {"messages": […], …}}
Out: {"id": …, "custom_id": …, "response": {"status_code": 200, "request_id": …, "body": {…}}, "error": null}

A row that cannot be answered gets status 400 (its own mistake) or 500 (ours) and never stops the others.
Every row is on disk before the next one starts; `id` is a hash of the question, so an output file that
belongs to other questions is recognised and left alone.
"""

import dataclasses
import difflib
import json
import os
import sys
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

from cascadevl.checkpoints.layouts import locate
from cascadevl.core.errors import ConfigError, MessageError, UserError
from cascadevl.core.files import content_hash
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation

if TYPE_CHECKING:
    from cascadevl.api import Bundle

URL = "/v1/chat/completions"

NUMBER = (int, float)
SAMPLING_FIELDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "max_tokens": ("max_new_tokens", (int,)),
    "max_completion_tokens": ("max_new_tokens", (int,)),
    "temperature": ("temperature", NUMBER),
    "top_p": ("top_p", NUMBER),
    "top_k": ("top_k", (int,)),
    "min_p": ("min_p", NUMBER),
    "repetition_penalty": ("repetition_penalty", NUMBER),
    "seed": ("seed", (int,)),
    "stop": ("stop", (str, list)),
}
"""Field of a body -> (field of Sampling, its JSON types)."""

BODY_FIELDS = ("model", "messages", *SAMPLING_FIELDS)


@dataclass(frozen=True, slots=True)
class Row:
    """Where a question stands in the input file; its text, perhaps megabytes of pictures, stays there."""

    custom_id: str
    id: str
    line: int
    offset_bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Defaults:
    """What holds for every row; its body may override the sampling."""

    model: str
    sampling: Sampling
    max_tiles: int | None = None


def answer_file(source: Path, target: Path, defaults: Defaults) -> int:
    """Answer what `target` does not hold yet. Exit code: 1 if a row failed through our fault, else 0."""
    rows = read_rows(source)
    answered, whole_bytes = read_answers(target, rows)
    waiting = [row for row in rows if row.custom_id not in answered]
    locate(defaults.model)
    if not waiting:
        print(f"All {len(rows)} rows of {source} are answered in {target}.", file=sys.stderr)
        return 0

    from cascadevl.api import load

    with source.open("rb") as questions, target.open("ab") as answers:
        answers.truncate(whole_bytes)
        counts = answer_rows(load(defaults.model), questions, answers, waiting, defaults)
    skipped = f"; {len(answered)} were there already" if answered else ""
    print(f"{counts[200]} answered, {counts[400]} refused, {counts[500]} failed{skipped}.", file=sys.stderr)
    return 1 if counts[500] else 0


def read_rows(source: Path) -> list[Row]:
    """Raises MessageError, naming the line, for whatever would leave a row without its own answer."""
    if not source.is_file():
        raise MessageError(f"No such batch file: {str(source)!r}. Expected JSON lines in OpenAI's batch form.")
    rows: dict[str, Row] = {}
    offset_bytes = 0
    with source.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if line.strip():
                custom_id = _custom_id(line, f"{source}, line {number}")
                if custom_id in rows:
                    lines = f"{rows[custom_id].line} and {number}"
                    raise MessageError(f"{source}: lines {lines} have the same custom_id {custom_id!r}.")
                digest = content_hash(line.strip())
                rows[custom_id] = Row(custom_id, f"batch_req_{digest}", number, offset_bytes)
            offset_bytes += len(line)
    if not rows:
        raise MessageError(f"{source} holds no rows: expected one JSON object a line.")
    return list(rows.values())


def _custom_id(line: bytes, where: str) -> str:
    row = _json(line, where)
    custom_id = row.get("custom_id") if isinstance(row, dict) else None
    if not isinstance(custom_id, str) or not custom_id:
        raise MessageError(f"{where}: expected an object with a text 'custom_id', got {custom_id!r}.")
    return custom_id


def _json(line: bytes, where: str) -> Any:
    try:
        return json.loads(line)
    except (ValueError, RecursionError) as problem:
        raise MessageError(f"{where} is not JSON: {problem}.") from None


def read_answers(target: Path, rows: Sequence[Row]) -> tuple[set[str], int]:
    """The custom_ids that `target` answers, and the bytes of its whole lines (a last one may be torn).

    Raises ConfigError if it holds anything but answers to these rows.
    """
    if not target.parent.is_dir():
        raise ConfigError(f"{target}: the folder {str(target.parent)!r} does not exist; make it first.")
    if not target.exists():
        return set(), 0
    if not target.is_file():
        raise ConfigError(f"{target} is not a file: expected a place for JSON lines.")
    ids = {row.custom_id: row.id for row in rows}
    answered: set[str] = set()
    whole_bytes = 0
    with target.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if not line.endswith(b"\n"):
                break
            row = _json(line, f"{target}, line {number},")
            custom_id = row.get("custom_id") if isinstance(row, dict) else None
            if custom_id not in ids or row.get("id") != ids[custom_id]:
                raise ConfigError(
                    f"{target}, line {number}: not an answer to a row of this input. "
                    "Name another output file, or remove this one."
                )
            answered.add(custom_id)
            whole_bytes += len(line)
    return answered, whole_bytes


def answer_rows(
    bundle: "Bundle", questions: BinaryIO, answers: BinaryIO, rows: Sequence[Row], defaults: Defaults
) -> Counter[int]:
    """Append an answer per row, each on disk before the next starts; the count of every status."""
    from rich.console import Console
    from rich.progress import Progress

    counts: Counter[int] = Counter()
    terminal = Console(stderr=True)
    with Progress(console=terminal, disable=not terminal.is_terminal) as progress:
        for row in progress.track(rows, description="answering"):
            questions.seek(row.offset_bytes)
            status, body = answer_row(bundle, json.loads(questions.readline()), row.id, defaults)
            counts[status] += 1
            answers.write(_line(row, status, body))
            answers.flush()
            os.fsync(answers.fileno())
    return counts


def answer_row(bundle: "Bundle", row: dict[str, Any], id: str, defaults: Defaults) -> tuple[int, dict[str, Any]]:
    """(status, body): a chat.completion, or {"error": …}."""
    try:
        conversation, sampling = read_body(row, defaults)
        answer = bundle.generate(conversation, sampling, max_tiles=defaults.max_tiles)
        if answer.error:
            raise answer.error
        return 200, completion(bundle.name, answer, id)
    except UserError as mistake:
        return 400, _error("invalid_request_error", mistake)
    except Exception as failure:  # the border of one row: recorded, counted, and the next one starts
        traceback.print_exc()
        return 500, _error("server_error", failure)


def read_body(row: dict[str, Any], defaults: Defaults) -> tuple[Conversation, Sampling]:
    """Raises a UserError for all that is unknown; a body overrides the sampling field by field."""
    for name, expected in (("method", "POST"), ("url", URL)):
        if row.get(name, expected) != expected:
            raise MessageError(f"{name!r} must be {expected!r}, got {row[name]!r}.")
    body = row.get("body")
    if not isinstance(body, dict) or "messages" not in body:
        raise MessageError("Expected a 'body' with 'messages'.")
    for name in body:
        if name not in BODY_FIELDS:
            close = difflib.get_close_matches(name, BODY_FIELDS, n=1)
            hint = f"Did you mean {close[0]!r}?" if close else f"Known: {', '.join(BODY_FIELDS)}."
            raise MessageError(f"Unknown field {name!r} in 'body'. {hint}")
    if body.get("model", defaults.model) != defaults.model:
        raise MessageError(
            f"This row asks {body['model']!r}, the batch runs {defaults.model!r}: give --model, or split it."
        )
    changes = {
        SAMPLING_FIELDS[name][0]: _typed(name, value)
        for name, value in body.items()
        if name in SAMPLING_FIELDS and value is not None
    }
    return Conversation.parse(body["messages"]), dataclasses.replace(defaults.sampling, **changes)


def _typed(name: str, value: Any) -> Any:
    kinds = SAMPLING_FIELDS[name][1]
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or (isinstance(value, list) and not all(isinstance(text, str) for text in value)):
        expected = " or ".join(kind.__name__ for kind in kinds)
        raise MessageError(f"{name!r} must be {expected}, got {value!r}.")
    return tuple(value) if isinstance(value, list) else value


def completion(model: str, answer: Generation, id: str) -> dict[str, Any]:
    """OpenAI's chat.completion, with our visual counts and the hash of the preprocessing spec."""
    usage = answer.usage
    return {
        "id": id.replace("batch_req_", "chatcmpl-"),
        "object": "chat.completion",
        "created": int(time.time()),
        "model": model,
        "choices": [
            {
                "index": 0,
                "message": {"role": "assistant", "content": answer.text},
                "logprobs": None,
                "finish_reason": answer.finish_reason,
            }
        ],
        "usage": {
            **dataclasses.asdict(usage),
            "total_tokens": usage.prompt_tokens + usage.completion_tokens,
        },
        "spec_hash": answer.spec_hash,
    }


def _error(kind: str, problem: Exception) -> dict[str, Any]:
    return {"error": {"type": kind, "code": type(problem).__name__, "message": str(problem)}}


def _line(row: Row, status: int, body: dict[str, Any]) -> bytes:
    line = {
        "id": row.id,
        "custom_id": row.custom_id,
        "response": {"status_code": status, "request_id": row.id.removeprefix("batch_"), "body": body},
        "error": body.get("error"),
    }
    # A lone surrogate, which UTF-8 cannot hold, becomes its JSON escape.
    return json.dumps(line, ensure_ascii=False).encode(errors="backslashreplace") + b"\n"
