"""From the bytes of a picture or video to its tiles: the work that hostile media can spoil, apart from the rest.

Run as a program, this is a worker: `workers.py` gives it tasks over a socket, each with what it may cost, and kills it
where it takes too long. What comes back is numbers and raw pixels, never an object: a decoder that somebody has taken
over can lie about a picture and no more. Without torch, which would be most of its memory and of its start.

A message is eight bytes of length, JSON of that length, and the bytes that the JSON announces.
"""

import dataclasses
import io
import json
import math
import os
import socket
import struct
import sys
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image as Pillow

from cascadevl.core.config import from_dict, to_dict
from cascadevl.core.errors import MediaError, MessageError, MissingExtra, UserError
from cascadevl.core.messages import Image, Video
from cascadevl.core.shapes import num_tiles
from cascadevl.preprocessing.image import MediaLimits, open_image
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tiling import Tiled, Tiling
from cascadevl.preprocessing.video import open_frames

Source = str | bytes | Path
"""A data URL, the bytes of a file, or where a file is."""

LENGTH = struct.Struct("!Q")
ERRORS: dict[str, type[UserError]] = {each.__name__: each for each in (MediaError, MessageError, MissingExtra)}
"""What a worker may say that a user has done wrong."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Task:
    """One picture or video, how it is to be cut up, and what it may cost."""

    medium: Image | Video
    """Its source is a `Source`, or a list of them: the frames of a video."""
    spec: Spec
    tiling: Tiling
    limits: MediaLimits
    room: int
    """Tiles that it may have at most; checked before they are made."""


@dataclass(frozen=True, slots=True)
class Cut(Tiled):
    """What is left of a picture, or of the frames of a video."""

    took_s: float
    """Without any waiting for a worker."""


def cut_up(task: Task) -> Cut:
    """Raises MediaError for what cannot be used, MessageError for what is more than the prompt has room for."""
    started_s, medium, tiling = time.monotonic(), task.medium, task.tiling
    if isinstance(medium, Image):
        picture = open_image(medium.source, task.limits)
        frames, sizes, opened = [picture], [picture.size], nullcontext()
    else:
        frames = opened = open_frames(medium, task.spec, task.limits)
        sizes = frames.sizes
    with opened:
        grids = [tiling.grid(*size) for size in sizes]
        total = sum(num_tiles(grid, tiling.thumbnail) for grid in grids)
        if total > task.room:
            raise MessageError(
                f"A picture or video would be {total} tiles of {task.spec.visual_tokens_per_tile} tokens; the prompt "
                f"has room for {task.room}. Send fewer pictures or frames (num_frames), or lower max_tiles."
            )
        tiles_SCYX = np.empty((total, 3, tiling.tile_px, tiling.tile_px), np.uint8)
        done = 0
        for frame in frames:
            _, tiles = tiling.cut(frame)
            tiles_SCYX[done : done + len(tiles)] = tiles
            done += len(tiles)
    return Cut(list(sizes), grids, tiles_SCYX, isinstance(medium, Video), time.monotonic() - started_s)


# Messages


def pack(task: Task, seconds: float) -> list[bytes]:
    """A task as the pieces of a message; `seconds` is when the worker must be done."""
    medium = task.medium
    sources: list[Source] = medium.source if isinstance(medium.source, list) else [medium.source]
    payload = [os.fsencode(each) if isinstance(each, Path) else each for each in sources]
    payload = [each.encode(errors="surrogatepass") if isinstance(each, str) else each for each in payload]
    header = {
        "kind": type(medium).__name__,
        "fields": {**to_dict(dataclasses.replace(medium, source=None)), "source": isinstance(medium.source, list)},
        "sources": [(type(source).__name__, len(data)) for source, data in zip(sources, payload, strict=True)],
        "spec": to_dict(task.spec),
        "tiling": to_dict(task.tiling),
        "limits": to_dict(task.limits),
        "room": task.room,
        "seconds": seconds,
    }
    return [framed(header), *payload]


def framed(header: dict[str, Any]) -> bytes:
    data = json.dumps(header).encode()
    return LENGTH.pack(len(data)) + data


def _unpack(header: dict[str, Any], file: io.BufferedIOBase) -> Task:
    sources = [_source(kind, file.read(length)) for kind, length in header["sources"]]
    fields = header["fields"]
    fields["source"] = sources if fields["source"] else sources[0]
    return Task(
        medium={"Image": Image, "Video": Video}[header["kind"]](**fields),
        spec=from_dict(Spec, header["spec"]),
        tiling=from_dict(Tiling, header["tiling"]),
        limits=from_dict(MediaLimits, header["limits"]),
        room=header["room"],
    )


def _source(kind: str, data: bytes) -> Source:
    if kind == "str":
        return data.decode(errors="surrogatepass")
    return data if kind == "bytes" else Path(os.fsdecode(data))


# The worker


def work(channel: socket.socket, memory_bytes: int, resize: str) -> None:
    """Serve tasks until nobody is at the other end; `resize` is that of their spec."""
    _warm_up(resize)
    _bound_memory(memory_bytes)
    channel.sendall(framed({"ready": os.getpid()}))
    with channel, channel.makefile("rb") as file:
        while length := file.read(LENGTH.size):
            header = json.loads(file.read(*LENGTH.unpack(length)))
            _bound_time(header["seconds"])
            answer(channel, _unpack(header, file))


def answer(channel: socket.socket, task: Task) -> None:
    try:
        cut = cut_up(task)
    except tuple(ERRORS.values()) as error:
        channel.sendall(framed({"error": type(error).__name__, "message": str(error)[:2000]}))
    except MemoryError:
        channel.sendall(framed({"error": "MediaError", "message": "It takes more memory to decode than is allowed."}))
    else:
        channel.sendall(framed({"sizes": cut.sizes, "grids": cut.grids}))
        channel.sendall(cut.tiles_SCYX.data.cast("B"))


def _warm_up(resize: Any) -> None:
    """Whatever is loaded at first use is loaded now, before memory is bounded and a user waits."""
    for format in ("PNG", "JPEG", "WEBP"):
        Pillow.new("RGB", (40, 30)).save(file := io.BytesIO(), format)
        Tiling(tile_px=8, resize=resize).cut(open_image(file.getvalue()))
    with suppress(ImportError):
        import av  # noqa: F401


def _bound_memory(num_bytes: int) -> None:
    """Address space beyond what a worker takes anyway, where the system can bound it."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        Path("/proc/self/oom_score_adj").write_text("1000")  # rather a worker than the server
        taken_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        most_bytes = taken_bytes + num_bytes
        resource.setrlimit(resource.RLIMIT_AS, (most_bytes, most_bytes))


def _bound_time(seconds: float) -> None:
    """Should the server die in the meantime, nobody else would end a task that never ends."""
    with suppress(ImportError, OSError, ValueError):
        import resource

        _, hard = resource.getrlimit(resource.RLIMIT_CPU)
        most_s = time.process_time() + seconds * (os.cpu_count() or 1)
        resource.setrlimit(resource.RLIMIT_CPU, (math.ceil(most_s) + 1, hard))


def main(arguments: Sequence[str]) -> None:
    descriptor, memory_bytes, resize = arguments
    with suppress(BrokenPipeError, ConnectionError):  # nobody waits any more
        work(socket.socket(fileno=int(descriptor)), int(memory_bytes), resize)


if __name__ == "__main__":
    main(sys.argv[1:])
