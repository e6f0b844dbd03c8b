"""Which pictures and videos of a request are looked at, and what they may cost: asked before anything is decoded."""

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cascadevl.core.errors import MediaError
from cascadevl.core.messages import Conversation, Image, Text, Turn, Video
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tiling import Tiling
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.decode import Cut, Source, Task
from cascadevl.serving.fetch import Fetch

Cutter = Callable[[Task, float], Cut]
"""Cuts a picture or video up within so many seconds."""


def check_media(conversation: Conversation, config: ServingConfig) -> None:
    """What can be told without looking. Raises MediaError."""
    media = conversation.media
    if len(media) > config.max_images:
        raise MediaError(f"The request has {len(media)} pictures and videos; at most {config.max_images} are taken.")
    for medium in media:
        if isinstance(medium, Image) and (medium.max_tiles or 0) > config.max_tiles:
            raise MediaError(f"max_tiles is {medium.max_tiles}; this server cuts a picture into {config.max_tiles}.")


class Viewer:
    """Looks at the pictures and videos of one request, one after the other: each may have what is left of it all."""

    def __init__(self, config: ServingConfig, spec: Spec, room: int, cut: Cutter, fetch: Fetch | None) -> None:
        """`room`: tiles that the prompt may have."""
        self._config, self._spec, self._cut, self._fetch = config, spec, cut, fetch
        self._room = room
        self._pixels_left = config.max_request_pixels
        self._seconds_left = config.media_s

    def look(self, conversation: Conversation, tiling: Callable[[Image | Video], Tiling]) -> Conversation:
        """The same conversation, each of its media as a `Cut`. Slow: not for the event loop. Raises MediaError."""

        def seen(part: Any) -> Any:
            return part if isinstance(part, Text) else dataclasses.replace(part, source=self._look(part, tiling(part)))

        return Conversation(tuple(Turn(turn.role, tuple(map(seen, turn.parts))) for turn in conversation.turns))

    def _look(self, medium: Image | Video, tiling: Tiling) -> Cut:
        config, source = self._config, medium.source
        if self._pixels_left < 1:
            raise MediaError(f"The pictures together have more than {config.max_request_pixels:,} pixels: send fewer.")
        several = isinstance(medium, Video) and isinstance(source, list)
        found = [self._find(each) for each in source] if several else self._find(source)
        task = Task(
            medium=dataclasses.replace(medium, source=found),
            spec=self._spec,
            tiling=tiling,
            limits=dataclasses.replace(config.media, max_pixels=min(config.max_image_pixels, self._pixels_left)),
            room=self._room,
        )
        cut = self._cut(task, self._time_left())
        self._seconds_left -= cut.took_s
        self._room -= len(cut.tiles_SCYX)
        self._pixels_left -= sum(width * height for width, height in cut.sizes) if isinstance(medium, Image) else 0
        return cut

    def _find(self, source: Any) -> Source:
        if not is_remote(source):
            return allowed(source, self._config)
        if self._fetch is None:
            raise MediaError(
                f"{source!r:.120} is not fetched: this server fetches nothing from other machines. {_SEND}"
            )
        started_s = time.monotonic()
        found = self._fetch(source, self._time_left())
        self._seconds_left -= time.monotonic() - started_s
        return found

    def _time_left(self) -> float:
        if self._seconds_left <= 0:
            raise MediaError(f"Its pictures and videos take more than {self._config.media_s:g} s: send fewer.")
        return self._seconds_left


def is_remote(source: Any) -> bool:
    return isinstance(source, str) and source[:8].lower().startswith(("http:", "https:"))


def allowed(source: Any, config: ServingConfig) -> str | Path:
    """A data URL as it is, a `file:` address as the path of a file in the allowed folder. Raises MediaError."""
    if not isinstance(source, str):
        raise MediaError(f"A picture or video must be an address, got {type(source).__name__}. {_SEND}")
    scheme = source.partition(":")[0].lower() if ":" in source[:10] else ""
    if scheme == "data":
        return source
    if scheme != "file":
        raise MediaError(f"{source!r:.120} is no address that this server reads. {_SEND}")
    if config.media_folder is None:
        raise MediaError(f"{source!r:.120} is not read: files of the server are off. {_SEND}")
    folder = config.media_folder.resolve()
    try:
        parts = urlsplit(source)
        path = Path(unquote(parts.path)).resolve()
    except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links, a bracket that is not closed
        raise _outside(source) from None
    # Links are followed before the comparison. What does not exist gets the same words as what is out of reach.
    if parts.netloc not in ("", "localhost") or not path.is_relative_to(folder) or not path.is_file():
        raise _outside(source)
    return path


def _outside(source: str) -> MediaError:
    return MediaError(f"{source!r:.120} is not a file in the folder that this server shows.")


_SEND = "Send it as a data URL: 'data:image/png;base64,…'."
