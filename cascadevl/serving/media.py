"""Which pictures and videos of a request are looked at, and what they may cost: asked before anything is decoded."""

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from cascadevl.core.errors import MediaError
from cascadevl.core.messages import Conversation, Image, Text, Turn, Video
from cascadevl.preprocessing.image import open_image
from cascadevl.serving.config import ServingConfig


def open_media(conversation: Conversation, config: ServingConfig) -> Conversation:
    """The same conversation with its pictures opened, upright and RGB. Slow: not for the event loop.

    They are in memory at the same time, so each may have the pixels that those before it have left. Videos stay
    closed: their frames are read one by one, within the limits of the processor. Raises MediaError.
    """
    media = conversation.media
    if len(media) > config.max_images:
        raise MediaError(f"The request has {len(media)} pictures and videos; at most {config.max_images} are taken.")
    for medium in media:
        if isinstance(medium, Image) and (medium.max_tiles or 0) > config.max_tiles:
            raise MediaError(f"max_tiles is {medium.max_tiles}; this server cuts a picture into {config.max_tiles}.")
    opened = _opened(conversation, config)
    return Conversation(
        tuple(
            Turn(turn.role, tuple(part if isinstance(part, Text) else next(opened) for part in turn.parts))
            for turn in conversation.turns
        )
    )


def _opened(conversation: Conversation, config: ServingConfig) -> Iterator[Image | Video]:
    pixels_left = config.max_request_pixels
    for medium in conversation.media:
        if isinstance(medium, Video):
            frames = medium.source
            listed = [allowed(frame, config) for frame in frames] if isinstance(frames, list) else None
            yield dataclasses.replace(medium, source=listed or allowed(frames, config))
            continue
        source = allowed(medium.source, config)
        if pixels_left < 1:
            raise MediaError(f"The pictures together have more than {config.max_request_pixels:,} pixels: send fewer.")
        limits = dataclasses.replace(config.media, max_pixels=min(config.max_image_pixels, pixels_left))
        picture = open_image(source, limits)
        pixels_left -= picture.width * picture.height
        yield dataclasses.replace(medium, source=picture)


def allowed(source: Any, config: ServingConfig) -> str | Path:
    """A data URL as it is, a `file:` address as the path of a file in the allowed folder. Raises MediaError."""
    if not isinstance(source, str):
        raise MediaError(f"A picture or video must be an address, got {type(source).__name__}. {_SEND}")
    scheme = source.partition(":")[0].lower() if ":" in source[:10] else ""
    if scheme == "data":
        return source
    if scheme in ("http", "https"):
        raise MediaError(f"{source!r:.120} is not fetched: this server fetches nothing from other machines. {_SEND}")
    if scheme != "file":
        raise MediaError(f"{source!r:.120} is no address that this server reads. {_SEND}")
    if config.media_folder is None:
        raise MediaError(f"{source!r:.120} is not read: files of the server are off. {_SEND}")
    folder = config.media_folder.resolve()
    parts = urlsplit(source)
    try:
        path = Path(unquote(parts.path)).resolve()
    except (OSError, ValueError, RuntimeError):  # a zero byte, a loop of links
        path = Path("/")
    # Links are followed before the comparison. What does not exist gets the same words as what is out of reach.
    if parts.netloc not in ("", "localhost") or not path.is_relative_to(folder) or not path.is_file():
        raise MediaError(f"{source!r:.120} is not a file in the folder that this server shows.")
    return path


_SEND = "Send it as a data URL: 'data:image/png;base64,…'."
