"""Ask a model about pictures; without any words, chat with it.

Every check that needs no weights is made before torch is imported, so a mistake is answered at once.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from PIL import Image as Pillow
from PIL import ImageDraw, ImageFont

from cascadevl.checkpoints.layouts import locate
from cascadevl.cli import batch
from cascadevl.core.boxes import Box, parse_boxes
from cascadevl.core.errors import ConfigError, MediaError, MessageError, UserError
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation, Image, Text, Turn
from cascadevl.preprocessing.image import open_image

if TYPE_CHECKING:
    from cascadevl.api import Bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Ask a model about pictures: cascadevl ask receipt.png "What is the total?"

    Without any words a chat opens; it also reads questions from a pipe.
    """

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[IMAGE …] QUESTION")] = ()
    """Pictures, then the question in quotes."""
    model: str = "nano"
    """An embedded model, a folder, or a hub id such as OpenGVLab/InternVL3_5-1B."""
    max_tiles: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tile limit of each picture; None leaves it to the model."""
    json: bool = False
    """Print one JSON object: text, tokens, tiles, grids, spec hash, boxes in pixels, seconds."""
    overlay: Annotated[Path | None, tyro.conf.arg(metavar="OUT.png")] = None
    """Draw the boxes of the answer on the last picture and save it here."""
    batch: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="IN.jsonl OUT.jsonl")] = None
    """Answer a file in OpenAI's batch form; started again, it goes on where it stopped."""
    sampling: tyro.conf.OmitArgPrefixes[Sampling] = field(default_factory=Sampling)

    def __post_init__(self) -> None:
        if self.batch and (self.words or self.json or self.overlay):
            raise ConfigError("--batch takes its questions from a file: no words, --json or --overlay beside it.")
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"--max-tiles must be at least 1, got {self.max_tiles}.")
        if self.overlay and len(self.words) < 2:
            raise ConfigError("--overlay draws on a picture: give at least one, then the question.")


def main(arguments: list[str]) -> int:
    ask = tyro.cli(Ask, prog="cascadevl ask", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    if ask.batch:
        defaults = batch.Defaults(model=ask.model, sampling=ask.sampling, max_tiles=ask.max_tiles)
        return batch.answer_file(*ask.batch, defaults)
    conversation = read_words(ask.words) if ask.words else None
    if ask.overlay:
        check_overlay(ask.overlay)
    locate(ask.model)

    start = time.perf_counter()
    from cascadevl.api import load

    bundle = load(ask.model)
    load_s = time.perf_counter() - start
    if conversation is None:
        return chat(bundle, ask)
    answer = say(bundle, conversation, ask, load_s)
    if ask.overlay:
        picture = conversation.images[-1].source
        save_overlay(picture, parse_boxes(answer.text, *picture.size), ask.overlay)
    return 0


def read_words(words: Sequence[str]) -> Conversation:
    """All words but the last are pictures, opened here: each is decoded once, and before torch loads."""
    *paths, question = words
    if os.path.isfile(question):
        raise MessageError(f"The last word, {question!r}, is a file: expected the question after the pictures.")
    if not question.strip():
        return Conversation.ask(question)
    return Conversation.ask(question, [_picture(path) for path in paths])


def _picture(word: str) -> Pillow.Image:
    try:
        return open_image(word)
    except MediaError as problem:
        if os.path.exists(word):
            raise
        raise MediaError(f"{problem} (All words but the last are pictures; quote the question.)") from None


def say(bundle: "Bundle", conversation: Conversation, ask: Ask, load_s: float = 0.0) -> Generation:
    """Stream the answer to stdout as it comes, or print its JSON object when it is whole."""
    start = time.perf_counter()
    answer = None
    for piece in bundle.stream_generation(conversation, ask.sampling, max_tiles=ask.max_tiles):
        if isinstance(piece, Generation):
            answer = piece
        elif not ask.json:
            print(piece, end="", flush=True)
    assert answer is not None, "a stream ends with its Generation"
    total_s = load_s + time.perf_counter() - start
    if ask.json:
        seconds = {"load_s": load_s, **answer.timings, "total_s": total_s}
        print(json.dumps(report(bundle, conversation, answer, seconds), ensure_ascii=False))
    else:
        print()
    if answer.finish_reason == "length":
        _note(f"cut after {answer.usage.completion_tokens} tokens; --max-new-tokens allows more")
    elif answer.finish_reason == "repetition":
        _note("stopped because the answer only repeated itself; --no-loop-guard lets it go on")
    return answer


def report(
    bundle: "Bundle",
    conversation: Conversation,
    answer: Generation,
    seconds: dict[str, float],
) -> dict[str, Any]:
    """What `--json` prints. Boxes are in pixels of the last picture."""
    images = conversation.images
    boxes = parse_boxes(answer.text, *images[-1].source.size) if images else []
    facts: dict[str, Any] = {
        "model": bundle.name,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        **dataclasses.asdict(answer.usage),
        "grids": [list(grid) for grid in answer.grids],
        "spec_hash": answer.spec_hash,
        "boxes": [dataclasses.asdict(box) for box in boxes],
        "timings": {name: round(value, 4) for name, value in seconds.items()},
        "notes": list(bundle.parts.notes),
    }
    if answer.logprobs is not None:
        facts["logprobs"] = [
            {"token": bundle.tokenizer.decode([entry.token_id]), **dataclasses.asdict(entry)}
            for entry in answer.logprobs
        ]
    return facts


CHAT_HELP = "/image PATH shows a picture, /reset starts afresh, /quit ends."


def chat(bundle: "Bundle", ask: Ask) -> int:
    """Questions from the terminal or a pipe until they end. A mistake is told, and the chat goes on."""
    prompt = "› " if sys.stdin.isatty() else ""
    if prompt:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history, where there is one)

        _note("; ".join([bundle.name, *bundle.parts.notes, CHAT_HELP]))
    turns: tuple[Turn, ...] = ()
    pictures: list[Image] = []
    while True:
        try:
            line = input(prompt).strip()
        except EOFError:
            return 0
        try:
            match line.split(maxsplit=1):
                case []:
                    continue
                case ["/quit" | "/exit"]:
                    return 0
                case ["/reset"]:
                    turns, pictures = (), []
                case ["/image", path]:
                    pictures.append(Image(open_image(os.path.expanduser(path.strip("\"'")))))
                case [word, *_] if word.startswith("/"):
                    raise MessageError(f"Unknown command {word!r}. {CHAT_HELP}")
                case _:
                    question = Turn("user", (*pictures, Text(line)))
                    answer = say(bundle, Conversation((*turns, question)), ask)
                    turns = (*turns, question, Turn("assistant", (Text(answer.text),)))
                    pictures = []
        except UserError as mistake:
            print(f"error: {mistake}", file=sys.stderr)
        except KeyboardInterrupt:
            _note("stopped; this question is forgotten")


def check_overlay(path: Path) -> None:
    """Refuse before any work what could not be saved after it."""
    if not path.parent.is_dir():
        raise ConfigError(f"--overlay {path}: the folder {str(path.parent)!r} does not exist; make it first.")
    if path.suffix.lower() not in (".png", ".jpg", ".jpeg", ".webp"):
        raise ConfigError(f"--overlay {path}: expected a name ending in .png, .jpg or .webp.")


def save_overlay(picture: Pillow.Image, boxes: Sequence[Box], path: Path) -> None:
    """The picture with its boxes, saved whole or not at all."""
    if not boxes:
        return _note(f"the answer names no box: {path} was not written")
    drawn = draw_boxes(picture, boxes)
    partial = path.with_name(f".{os.getpid()}.{path.name}")
    try:
        drawn.save(partial)
        os.replace(partial, path)
    finally:
        partial.unlink(missing_ok=True)
    _note(f"{len(boxes)} box{'es' if len(boxes) > 1 else ''} drawn: {path}")


def draw_boxes(picture: Pillow.Image, boxes: Sequence[Box]) -> Pillow.Image:
    """A copy with every box outlined and labelled."""
    drawn = picture.convert("RGB")
    if drawn is picture:
        drawn = picture.copy()
    pen = ImageDraw.Draw(drawn)
    line_px = max(2, round(max(drawn.size) / 300))
    font = ImageFont.load_default(size=6 * line_px)
    for number, box in enumerate(boxes):
        colour = COLOURS[number % len(COLOURS)]
        pen.rectangle((box.left, box.top, box.right, box.bottom), outline=colour, width=line_px)
        if box.label:
            corner = (box.left + 2 * line_px, box.top + line_px)
            pen.text(corner, box.label, fill=colour, font=font, stroke_width=1, stroke_fill="white")
    return drawn


COLOURS = ("#d62728", "#1f77b4", "#2ca02c", "#9467bd", "#ff7f0e", "#17becf")


def _note(text: str) -> None:
    """To stderr: stdout holds answers only."""
    print(f"({text})", file=sys.stderr)
