"""The forms in which people keep conversations; a row of each becomes ours, or a DataError that says why not.

    conversations   [{"from": "human", "value": "<image>\\nRead it."}, …], image(s), video: InternVL, LLaVA, ShareGPT
    messages        [{"role": "user", "content": text or parts}, …], perhaps images beside: OpenAI, TRL
    columns         question and answer, prompt and completion, image and caption, text: Hugging Face
    interleaved     texts and images in turn: OmniCorpus, OBELICS, MMC4

Each gives turns and media to `assemble`, which puts the pictures into their places.
"""

import difflib
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from cascadevl.core.config import fits
from cascadevl.core.errors import MediaError, MessageError
from cascadevl.core.messages import DETAIL, Conversation, Image, Part, Text, ToolResult, Video
from cascadevl.data.assemble import DOCUMENT, Media, Said, assemble, is_marked
from cascadevl.data.fields import read_json, read_media, read_role, read_source, read_text, short
from cascadevl.data.rows import Row


def find_form(fields: Mapping[str, Any]) -> str | None:
    """Which of `FORMS` a row has, by the names of its fields; None for none of them."""
    if "conversations" in fields or "conversation" in fields:
        return "conversations"
    if "messages" in fields:
        return "messages"
    if "text_list" in fields or isinstance(fields.get("texts"), list):
        return "columns" if _are_pairs(fields.get("texts")) else "interleaved"
    if "chosen" in fields and "rejected" in fields:
        return None
    known = {"text", CAPTION, *(name for pair in COLUMNS for name in pair)}
    return "columns" if known & fields.keys() else None


def read_conversation(fields: dict[str, Any], form: str, root: Path, row: Row) -> Conversation:
    """One row of the form `form`; relative paths begin at `root`. Raises DataError."""
    fields = {key: value for key, value in fields.items() if value is not None}  # a table has all columns in all rows
    found = find_form(fields)
    if found is None:
        raise row.bad("unknown form", *_unknown(fields))
    if found != form:
        row.mend(
            "mixed forms",
            f"The row has the form {found!r}, the first rows have the form {form!r}.",
            "Keep one form in a file, or write a converted copy.",
        )
    for name in UNREAD:
        if fields.get(name):
            raise row.bad(
                "unread field",
                f"The row has {name!r}, which is not read: what is learned would be another thing than what is meant.",
                "Leave the row out; or delete the field, if the rest makes sense without it.",
            )
    try:
        return FORMS[found](fields, root, row)
    except (MessageError, MediaError) as error:
        raise row.bad("conversation", _counted_from_1(f"{error}"), "Correct the row.") from None


UNREAD = ("audio", "audios", "objects", "functions", "rejected", "rejected_response")
"""Fields that change the meaning of a row where other programs read them."""


def _counted_from_1(text: str) -> str:
    """Conversations count their messages from 0, and all else that is said of a row counts from 1."""
    return re.sub(r"^Message (\d+)", lambda match: f"Message {int(match[1]) + 1}", text)


def _unknown(fields: Mapping[str, Any]) -> tuple[str, str]:
    if "chosen" in fields and "rejected" in fields:
        return (
            "The row is a preference (chosen and rejected), not a conversation.",
            "Use it for preference training, or rename 'chosen' to 'answer' to learn from the chosen ones alone.",
        )
    known = ["conversations", "messages", "texts", "text", CAPTION, *(name for pair in COLUMNS for name in pair)]
    close = [match for key in fields for match in difflib.get_close_matches(key, known, n=1)]
    hint = f" Did you mean {close[0]!r}?" if close else ""
    return (
        f"The row has the fields {', '.join(sorted(fields)) or 'none'}, which are no form that is read.{hint}",
        "Expected 'conversations', 'messages', 'question' and 'answer', 'prompt' and 'completion', 'image' and "
        "'caption', 'texts' and 'images', or 'text'.",
    )


def _conversations(fields: dict[str, Any], root: Path, row: Row) -> Conversation:
    turns = _listed_turns(fields.get("conversations", fields.get("conversation")), "conversations", row)
    if not isinstance(turns, list) or not turns:
        raise row.bad(
            "no turns", f"'conversations' is {short(turns)}.", "Expected a list of at least a question and an answer."
        )
    said: list[tuple[str, Said]] = []
    for number, turn in enumerate(turns, 1):
        if not isinstance(turn, dict):
            raise row.bad("no turn", f"Turn {number} is {short(turn)}.", "Expected {'from': …, 'value': …}.")
        role = turn.get("from", turn.get("role"))
        value = turn.get("value", turn.get("content"))
        if value is None and "text" in turn:
            row.mend("text for value", f"Turn {number} has 'text' instead of 'value'.", "Rename it to 'value'.")
            value = turn["text"]
        said.append((read_role(role, number, row), read_text(value, f"Turn {number}", row)))
    return assemble(_with_system(said, fields, row), read_media(fields, root, row), row)


def _listed_turns(turns: Any, name: str, row: Row) -> Any:
    """Turns that a table keeps as JSON in a text."""
    if not isinstance(turns, str) or not turns.lstrip().startswith("["):
        return turns
    row.mend("turns as text", f"{name!r} is a list that was written as a text.", "Write it as a list.")
    return read_json(turns, repr(name), row)


def _with_system(said: list[tuple[str, Said]], fields: Mapping[str, Any], row: Row) -> list[tuple[str, Said]]:
    """What some exports keep beside the turns."""
    for name in ("system", "system_prompt"):
        if not (system := fields.get(name)):
            continue
        if said[0][0] == "system":
            raise row.bad("two system turns", f"The row has {name!r} and a system turn.", "Keep one of them.")
        return [("system", read_text(system, repr(name), row)), *said]
    return said


def _messages(fields: dict[str, Any], root: Path, row: Row) -> Conversation:
    said = _with_system(_said(fields["messages"], "messages", root, row), fields, row)
    conversation = assemble(said, read_media(fields, root, row), row)
    tools = fields.get("tools") or []
    if isinstance(tools, str):  # as tables keep them
        tools = read_json(tools, "'tools'", row)
    if not isinstance(tools, list) or not all(isinstance(tool, dict) for tool in tools):
        raise row.bad("tools", f"'tools' is {short(tools)}.", "Expected OpenAI's list of function definitions.")
    return conversation.with_tools(tools)


def _said(messages: Any, name: str, root: Path, row: Row) -> list[tuple[str, Said]]:
    messages = _listed_turns(messages, name, row)
    if not isinstance(messages, list) or not messages:
        raise row.bad("no turns", f"{name!r} is {short(messages)}.", "Expected a list of messages.")
    said: list[tuple[str, Said]] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, dict):
            raise row.bad("no turn", f"Message {number} is {short(message)}.", "Expected {'role': …, 'content': …}.")
        role, content = read_role(message.get("role"), number, row), message.get("content")
        if message.get("weight") not in (None, 1):  # of OpenAI's fine-tuning: 0 is said and not learned
            raise row.bad(
                "weight",
                f"Message {number} has the weight {message['weight']!r}, and every answer of a row is learned.",
                "Cut the conversation in front of it, or delete the weight to learn that answer as well.",
            )
        if role == "tool" or message.get("tool_calls"):
            said.append((role, _tool_parts(message, role, number, row)))
        elif isinstance(content, list):
            said.append((role, tuple(_part(part, number, root, row) for part in content)))
        else:
            said.append((role, read_text(content, f"Message {number}", row)))
    return said


def _tool_parts(message: dict[str, Any], role: str, number: int, row: Row) -> tuple[Part, ...]:
    """What the assistant calls, or what came out of it; whether the two fit, the conversation asks."""
    if role == "tool":
        return (
            ToolResult(read_text(message.get("content"), f"Message {number}", row), str(message.get("tool_call_id"))),
        )
    called = {key: message[key] for key in ("content", "tool_calls") if message.get(key) is not None}
    try:
        return Conversation.parse([{"role": "assistant", **called}]).turns[0].parts
    except MessageError as error:
        raise MessageError(f"{error}".replace("Message 0", f"Message {number - 1}", 1)) from None


def _part(part: Any, number: int, root: Path, row: Row) -> Part | None:
    where = f"Message {number}"
    if isinstance(part, str):
        return Text(read_text(part, where, row))
    if not isinstance(part, dict):
        raise row.bad("no part", f"{where}: a part is {short(part)}.", "Expected {'type': 'text', 'text': …}.")
    part = {key: value for key, value in part.items() if value is not None}
    kind = part.get("type")
    if kind in ("text", "input_text"):
        return Text(read_text(part.get("text"), where, row))
    if kind in ("image", "image_url", "input_image"):
        source = part.get("image", part.get("image_url", part.get("url", part.get("path", part.get("source")))))
        limit = part.get("max_tiles")
        if limit is None and isinstance(source, dict):
            limit = DETAIL.get(str(source.get("detail")))
        if limit is not None and not (fits(int, limit) and limit >= 1):
            raise row.bad("tile limit", f"{where}: max_tiles is {short(limit)}.", "Expected a whole number from 1.")
        return None if source is None else Image(read_source(source, root, row), limit)
    if kind in ("video", "video_url"):
        source = part.get("video", part.get("video_url"))
        if isinstance(source, list):
            source = [read_source(frame, root, row) for frame in source]
        else:
            source = read_source(source, root, row)
        return Video(source, part.get("start"), part.get("end"), part.get("num_frames"))
    raise row.bad(
        "unknown part",
        f"{where}: a part has the type {kind!r}.",
        "Expected text, image, image_url, video or video_url.",
    )


COLUMNS = (
    *(("question", "answer"), ("prompt", "completion"), ("instruction", "output"), ("query", "response")),
    *(("prompt", "response"), ("problem", "solution"), ("question", "response")),
)
"""Column of what is asked -> column of what is answered."""
CAPTION = "caption"


def _are_pairs(texts: Any) -> bool:
    """`[{"user": …, "assistant": …}, …]`, as The Cauldron and FineVision keep questions and answers."""
    return isinstance(texts, list) and bool(texts) and isinstance(texts[0], Mapping)


def _columns(fields: dict[str, Any], root: Path, row: Row) -> Conversation:
    media = read_media(fields, root, row)
    if _are_pairs(fields.get("texts")):
        return assemble(_pairs(fields["texts"], "texts", ("user", "assistant"), row), media, row)
    for question, answer in COLUMNS:
        if question in fields and answer in fields:
            asked, answered = fields[question], fields[answer]
            if isinstance(asked, list) and isinstance(answered, list):
                said = _said(asked, question, root, row) + _said(answered, answer, root, row)
                return assemble(said, media, row)
            text = read_text(asked, repr(question), row)
            if question == "instruction" and fields.get("input"):
                text += "\n" + read_text(fields["input"], "'input'", row)
            before = _pairs(fields.get("history") or [], "history", (0, 1), row)
            said = [*before, ("user", text), ("assistant", _answer(answered, answer, row))]
            return assemble(_with_system(said, fields, row), media, row)
    name = next((name for name in (CAPTION, "text") if name in fields), None)
    if name is None:
        have = [column for pair in COLUMNS for column in pair if column in fields]
        raise row.bad(
            "missing column",
            f"The row has {', '.join(map(repr, dict.fromkeys(have)))} and nothing that belongs to it.",
            f"Expected one of the pairs {', '.join(' and '.join(pair) for pair in COLUMNS)}.",
        )
    text = _answer(fields[name], name, row)
    marked = is_marked(text)
    if name == "text" and (marked or not (media.images or media.videos)):
        return assemble([(DOCUMENT, text)], media, row)
    if not (media.images or media.videos):
        raise row.bad("no picture", f"The row has {name!r} and no picture.", "Add 'image', or call the column 'text'.")
    # Captions are learned without being asked for: the question is the picture alone.
    shown: tuple[Part, ...] = (*media.images, *media.videos)
    return assemble([("user", shown), ("assistant", text)], Media(), row)


def _pairs(pairs: Any, name: str, keys: tuple[Any, Any], row: Row) -> list[tuple[str, Said]]:
    """Questions and answers in turn, each pair with the two under `keys`."""
    said: list[tuple[str, Said]] = []
    for number, pair in enumerate(pairs if isinstance(pairs, list) else [pairs], 1):
        try:
            question, answer = pair[keys[0]], pair[keys[1]]
        except (IndexError, KeyError, TypeError):
            raise row.bad(
                "no pair",
                f"Pair {number} of {name!r} is {short(pair)}.",
                f"Expected a question and its answer, under {keys[0]!r} and {keys[1]!r}.",
            ) from None
        said.append(("user", read_text(question, f"Question {number} of {name!r}", row)))
        said.append(("assistant", read_text(answer, f"Answer {number} of {name!r}", row)))
    return said


def _answer(value: Any, name: str, row: Row) -> str:
    if isinstance(value, int | float) and not isinstance(value, bool):
        row.mend("number as answer", f"{name!r} is the number {value!r}.", "Write it as a text.")
        return str(value)
    return read_text(value, repr(name), row)


def _interleaved(fields: dict[str, Any], root: Path, row: Row) -> Conversation:
    """Parallel lists, of which one says None wherever the other says something; or MMC4's texts with pictures."""
    if "text_list" in fields:
        parts = _mmc4(fields, root, row)
    else:
        texts, images = fields["texts"], fields.get("images", [])
        if not isinstance(images, list):
            raise row.bad("images are no list", f"'images' is {short(images)}.", "Expected a list as long as 'texts'.")
        if images and len(images) != len(texts):
            raise row.bad(
                "number of images",
                f"'texts' has {len(texts)} items and 'images' {len(images)}.",
                "Make them equally long, with null in one where the other has something.",
            )
        parts = []
        for text, image in zip(texts, images or [None] * len(texts), strict=True):
            parts += [Image(read_source(image, root, row))] if image is not None else []
            parts += [Text(read_text(text, "A text", row))] if text is not None else []
    lines = [piece for part in parts for piece in (Text("\n"), part)][1:]  # as lines: nothing else parts them
    return assemble([(DOCUMENT, tuple(lines))], Media(), row)


def _mmc4(fields: dict[str, Any], root: Path, row: Row) -> list[Part]:
    texts, infos = fields["text_list"], fields.get("image_info", [])
    if not isinstance(texts, list) or not isinstance(infos, list):
        raise row.bad("no lists", "'text_list' and 'image_info' must be lists.", "Write them as MMC4 does.")
    before: dict[int, list[Part]] = {}
    for info in infos:
        place = info.get("matched_text_index") if isinstance(info, dict) else None
        if not isinstance(place, int) or not 0 <= place < len(texts) or "image_name" not in info:
            raise row.bad(
                "place of an image",
                f"{short(info)} does not say which picture stands before which of {len(texts)} texts.",
                "Expected 'image_name' and 'matched_text_index'.",
            )
        before.setdefault(place, []).append(Image(read_source(info["image_name"], root, row)))
    parts: list[Part] = []
    for number, text in enumerate(texts):
        parts += [*before.get(number, ()), Text(read_text(text, f"Text {number + 1}", row))]
    return parts


FORMS: dict[str, Callable[[dict[str, Any], Path, Row], Conversation]] = {
    "conversations": _conversations,
    "messages": _messages,
    "columns": _columns,
    "interleaved": _interleaved,
}
"""Form -> how a row of it is read."""
