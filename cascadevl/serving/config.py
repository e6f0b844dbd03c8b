"""How a server behaves: who may reach it, how much it takes on, how long it waits."""

import ipaddress
import os
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from cascadevl.core.errors import ConfigError
from cascadevl.preprocessing.image import MediaLimits


@dataclass(frozen=True, kw_only=True, slots=True)
class ServingConfig:
    """The defaults are those of a laptop that talks to itself."""

    host: str = "127.0.0.1"
    """Address to listen on; one that others can reach needs a key."""
    port: int = 8000
    """0 takes a free one."""
    open_to_all: bool = False
    """Listen on an address that others can reach without any key."""
    media_folder: Path | None = None
    """Folder whose files `file:` addresses may name; None: none."""
    max_body_bytes: int = 64 * 2**20
    """Size of a request, enforced while it is read."""
    max_choices: int = 16
    """Answers of one request: prompts times `n`."""
    max_tiles: int = 40
    """Tile limit that a request may ask for, of one picture."""
    max_images: int = 64
    """Pictures and videos of one request."""
    max_request_pixels: int = 100_000_000
    """Pixels of all pictures of a request together."""
    max_image_pixels: int = 50_000_000
    """Pixels of one picture."""
    max_video_s: float = 600.0
    """Length of the clip that is looked at."""
    max_frames: int = 128
    """Frames of a video that are looked at."""
    media_workers: int = 2
    """Processes, or threads, that decode pictures and videos and cut them up."""
    media_isolation: Literal["process", "thread"] = "process" if os.name == "posix" else "thread"
    """`process`: what makes a decoder hang, crash or swell harms its own request and no other."""
    media_memory_bytes: int = 2 * 2**30
    """Memory that such a process may take for its work."""
    media_s: float = 30.0
    """Seconds that all pictures and videos of a request may take to be fetched and decoded."""
    fetch_hosts: tuple[str, ...] = ()
    """Hosts from which http and https addresses are fetched: names, *.example.com, or * for every public one."""
    fetch_s: float = 10.0
    """Seconds within which a picture or video must be fetched."""
    max_requests: int = 512
    """Requests taken on at a time; more are told to come again."""
    max_queue_tokens: int = 400_000
    """Tokens taken on at a time: of prompts, visual ones included, and of the answers as long as they may get."""
    max_queue_bytes: int = 2**30
    """Bytes taken on at a time: of bodies and of tiles."""
    body_s: float = 60.0
    """Seconds within which a request must have arrived."""
    deadline_s: float = 600.0
    """Seconds within which an answer must be finished; a request may ask for less."""
    drain_s: float = 60.0
    """Seconds that running requests are given after SIGTERM."""
    hang_s: float = 120.0
    """Seconds without a sign of life after which the engine's loop counts as hanging."""

    def __post_init__(self) -> None:
        if not self.host.strip():
            raise ConfigError(
                "host is empty: expected an address such as 127.0.0.1, or 0.0.0.0 for all of this machine."
            )
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port is {self.port}: expected 0 to 65535.")
        for name in _POSITIVE:
            if not getattr(self, name) > 0:
                raise ConfigError(f"ServingConfig: {name} must be positive, got {getattr(self, name)}.")
        for host in self.fetch_hosts:
            if not _HOST.fullmatch(host):
                raise ConfigError(
                    f"fetch_hosts has {host!r:.100}: expected a name without scheme, port or path, *.example.com, or *."
                )
        if self.media_isolation == "process" and os.name != "posix":
            raise ConfigError("media_isolation 'process' needs Linux or macOS: say --media-isolation thread.")
        if self.media_folder is not None and not self.media_folder.is_dir():
            raise ConfigError(f"media_folder is {str(self.media_folder)!r}: there is no such folder.")

    @property
    def media(self) -> MediaLimits:
        """What one picture or video may cost; what stands in a body is no larger than the body."""
        return MediaLimits(
            max_bytes=self.max_body_bytes,
            max_pixels=self.max_image_pixels,
            max_video_bytes=self.max_body_bytes,
            max_video_s=self.max_video_s,
            max_frames=self.max_frames,
        )

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach the server."""
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return self.host == "localhost"

    def check_key(self, api_key: str | None) -> None:
        """Raise ConfigError for a server that anybody could use by mistake."""
        if not api_key and not self.loopback and not self.open_to_all:
            raise ConfigError(
                f"{self.host} can be reached by others, and there is no key. Name the environment variable that holds "
                "one with --api-key-env, listen on 127.0.0.1, or say --open-to-all if that is what you want."
            )


_HOST = re.compile(r"\*|(?:\*\.)?[\w.-]+|[0-9a-fA-F:]+")
_POSITIVE = (
    "max_body_bytes",
    "max_choices",
    "max_tiles",
    "max_images",
    "max_request_pixels",
    "max_image_pixels",
    "max_video_s",
    "max_frames",
    "media_workers",
    "media_memory_bytes",
    "media_s",
    "fetch_s",
    "max_requests",
    "max_queue_tokens",
    "max_queue_bytes",
    "body_s",
    "deadline_s",
    "drain_s",
    "hang_s",
)
