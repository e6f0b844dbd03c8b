"""Ask a model about pictures and videos; without any words, chat with it.

Every check that needs no weights is made before torch is imported, so a mistake is answered at once.
"""

import contextlib
import dataclasses
import json
import os
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from cascadevl.checkpoints.layouts import locate
from cascadevl.cli import batch
from cascadevl.cli.overlay import check_overlay, save_overlay
from cascadevl.core.boxes import Grounded, read_boxes
from cascadevl.core.errors import ConfigError, MediaError, MessageError, UserError
from cascadevl.core.generation import Generation, Sampling
from cascadevl.core.messages import Conversation, Image, Text, Turn, Video
from cascadevl.preprocessing.image import open_image
from cascadevl.preprocessing.video import is_video, open_footage

if TYPE_CHECKING:
    from cascadevl.api import Bundle


@dataclass(frozen=True, kw_only=True, slots=True)
class Ask:
    """Ask a model about pictures and videos: cascadevl ask receipt.png "What is the total?"

    Without any words a chat opens; it also reads questions from a pipe.
    """

    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[IMAGE|VIDEO …] QUESTION")] = ()
    """Pictures and videos (files, or folders of frames), then the question in quotes."""
    model: str = "nano"
    """An embedded model, a folder, or a hub id such as OpenGVLab/InternVL3_5-1B."""
    max_tiles: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tile limit of each picture; None leaves it to the model."""
    start: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Second at which the clip of a video begins; None is its beginning."""
    end: Annotated[float | None, tyro.conf.arg(metavar="S")] = None
    """Second at which it ends; None is its end."""
    num_frames: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Frames of a video that are looked at; None leaves it to the model."""
    json: bool = False
    """Print one JSON object: text, tokens, tiles, grids, spec hash, boxes in pixels of the last picture, seconds."""
    overlay: Annotated[Path | None, tyro.conf.arg(metavar="OUT.png")] = None
    """Draw the boxes of the answer on the last picture and save it here, upright and in full size."""
    batch: Annotated[tuple[Path, Path] | None, tyro.conf.arg(metavar="IN.jsonl OUT.jsonl")] = None
    """Answer a file in OpenAI's batch form; started again, it goes on where it stopped."""
    sampling: tyro.conf.AvoidSubcommands[tyro.conf.OmitArgPrefixes[Sampling]] = field(default_factory=Sampling)

    @property
    def clip(self) -> tuple[float | None, float | None, int | None]:
        """What every video among the words is asked for: start, end, frames."""
        return self.start, self.end, self.num_frames

    def __post_init__(self) -> None:
        if self.batch and (self.words or self.json or self.overlay or any(each is not None for each in self.clip)):
            raise ConfigError(
                "--batch takes its questions from a file: no words, --json, --overlay, "
                "--start, --end or --num-frames beside it."
            )
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"--max-tiles must be at least 1, got {self.max_tiles}.")
        if self.overlay and len(self.words) < 2:
            raise ConfigError("--overlay draws on a picture: give at least one, then the question.")


def main(arguments: list[str]) -> int:
    ask = tyro.cli(Ask, prog="cascadevl ask", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    if ask.batch:
        defaults = batch.Defaults(model=ask.model, sampling=ask.sampling, max_tiles=ask.max_tiles)
        return batch.answer_file(*ask.batch, defaults)
    if ask.overlay:
        check_overlay(ask.overlay)
    conversation = read_words(ask) if ask.words else None
    if ask.overlay and conversation and not conversation.images:
        raise ConfigError("--overlay draws on a picture, these are videos: give a picture too, or leave it out.")
    locate(ask.model)

    start = time.perf_counter()
    from cascadevl.api import load

    bundle = load(ask.model)
    load_s = time.perf_counter() - start
    if conversation is None:
        return chat(bundle, ask)
    answer = say(bundle, conversation, ask, load_s)
    if ask.overlay:
        found = _boxes(conversation, answer)
        for malformed in (grounded.malformed for grounded in found if grounded.malformed):
            _note(f"not drawn, since it is no box: {malformed}")
        save_overlay(conversation.images[-1].source, [box for each in found for box in each.boxes], ask.overlay)
    return 0


def read_words(ask: Ask) -> Conversation:
    """All words but the last are pictures and videos.

    Pictures are opened here: each is decoded once, and before torch loads. Of videos the header is read.
    """
    *paths, question = ask.words
    if os.path.isfile(question):
        raise MessageError(f"The last word, {question!r}, is a file: expected the question after the pictures.")
    if not question.strip():
        return Conversation.ask(question)
    media = [_word(path, ask) for path in paths]
    if any(each is not None for each in ask.clip) and not any(isinstance(medium, Video) for medium in media):
        raise ConfigError("--start, --end and --num-frames are about videos: none is given.")
    return Conversation((Turn("user", (*media, Text(question))),))


def _word(word: str, ask: Ask) -> Image | Video:
    try:
        return _medium(word, ask)
    except MediaError as problem:
        if os.path.exists(word):
            raise
        raise MediaError(f"{problem} (All words but the last are pictures or videos; quote the question.)") from None


def _medium(path: str, ask: Ask) -> Image | Video:
    if not is_video(path):
        return Image(open_image(path))
    video = Video(path, *ask.clip)
    open_footage(video).close()
    return video


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
    """What `--json` prints. Boxes are left, top, right, bottom in pixels of the last picture."""
    found = _boxes(conversation, answer)
    facts: dict[str, Any] = {
        "model": bundle.name,
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        **dataclasses.asdict(answer.usage),
        "grids": [list(grid) for grid in answer.grids],
        "spec_hash": answer.spec_hash,
        "boxes": [
            {"label": box.label, "box": [round(edge, 2) for edge in (box.left, box.top, box.right, box.bottom)]}
            for grounded in found
            for box in grounded.boxes
        ],
        "malformed_boxes": [grounded.malformed for grounded in found if grounded.malformed],
        "timings": {name: round(value, 4) for name, value in seconds.items()},
        "notes": list(bundle.parts.notes),
    }
    if answer.logprobs is not None:
        facts["logprobs"] = [
            {"token": bundle.tokenizer.decode([entry.token_id]), **dataclasses.asdict(entry)}
            for entry in answer.logprobs
        ]
    return facts


def _boxes(conversation: Conversation, answer: Generation) -> list[Grounded]:
    """Boxes belong to the last picture: the question follows it. Without pictures, to the frames of a video."""
    if conversation.images:
        return read_boxes(answer.text, *conversation.images[-1].source.size)
    videos = [medium for medium in conversation.media if isinstance(medium, Video)]
    if not videos or "<box>" not in answer.text:
        return []
    with contextlib.closing(open_footage(videos[-1])) as footage:
        return read_boxes(answer.text, *footage.sizes([len(footage) - 1])[0])


CHAT_HELP = "/image PATH shows a picture or a video, /reset starts afresh, /quit ends."


def chat(bundle: "Bundle", ask: Ask) -> int:
    """Questions from the terminal or a pipe until they end. A mistake is told, and the chat goes on."""
    prompt = "› " if sys.stdin.isatty() else ""
    if prompt:
        with contextlib.suppress(ImportError):
            import readline  # noqa: F401  (line editing and history, where there is one)

        _note("; ".join([bundle.name, *bundle.parts.notes, CHAT_HELP]))
    turns: tuple[Turn, ...] = ()
    pictures: list[Image | Video] = []
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
                    pictures.append(_medium(os.path.expanduser(path.strip("\"'")), ask))
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


def _note(text: str) -> None:
    """To stderr: stdout holds answers only."""
    print(f"({text})", file=sys.stderr)
