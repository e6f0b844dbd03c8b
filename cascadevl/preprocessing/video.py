"""Any video a user may hand us becomes labelled frames, or a MediaError that says why not.

Video files are read in `video_file.py`. Pillow reads GIF, animated WebP and animated PNG, as it reads the pictures:
transparency lies on white, and the time of each frame is respected. The pictures of a folder count as three a
second, in the natural order of their names (frame 2 before frame 10), as in the released evaluation (InternVL,
eval/mvbench). A list of frames was chosen by whoever made it: it is taken as it is.
"""

import functools
import io
import os
import re
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from PIL import Image, UnidentifiedImageError

from cascadevl.core.errors import MediaError
from cascadevl.core.messages import Video
from cascadevl.preprocessing.frame_rules import choose, find_clip, takes_all
from cascadevl.preprocessing.image import DEFAULT_LIMITS, MediaLimits, find_media, open_image
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.video_file import VideoFile

FOLDER_FPS = 3.0

VIDEO_SUFFIXES = (
    *(".mp4", ".m4v", ".mov", ".3gp", ".webm", ".mkv", ".avi", ".ts", ".mts", ".m2ts", ".mpg", ".mpeg"),
    *(".flv", ".wmv", ".asf", ".ogv", ".h264", ".hevc", ".ivf"),
)
_PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".ppm", ".pgm")
_ANIMATED = re.compile(rb"GIF8[79]a|\x89PNG\r\n\x1a\n|RIFF....WEBP", re.DOTALL)
_CONTAINER = re.compile(rb"....ftyp|\x1aE\xdf\xa3|RIFF....AVI |OggS|FLV\x01|\x00\x00\x01[\xb3\xba]", re.DOTALL)


class Footage(Protocol):
    """Frames that may be asked for by number, one at a time."""

    name: str

    @property
    def fps(self) -> float | None:
        """Frames per second on average; None where there are no times."""
        ...

    @property
    def header_s(self) -> float | None:
        """Length as far as it is known before frames are counted."""
        ...

    def __len__(self) -> int: ...

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        """(width, height) of these frames, upright."""
        ...

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """These frames, upright and RGB; indices ascend and may repeat."""
        ...

    def close(self) -> None: ...


class Frames(AbstractContextManager["Frames"]):
    """The chosen frames of a video; iterating decodes them one after the other, as often as one likes."""

    def __init__(self, footage: Footage, indices: Sequence[int]) -> None:
        self._footage = footage
        self.indices = tuple(indices)
        """Which frames of the video, counted from 0."""
        self.sizes = footage.sizes(self.indices)
        """(width, height) in pixels, upright."""

    def __len__(self) -> int:
        return len(self.indices)

    def __iter__(self) -> Iterator[Image.Image]:
        return self._footage.frames(self.indices)

    def __exit__(self, *_: Any) -> None:
        self._footage.close()


def open_frames(video: Video, spec: Spec, limits: MediaLimits = DEFAULT_LIMITS, seed: int = 0) -> Frames:
    """The frames that the rule of the spec chooses; `seed` is that of the rule `rand`. Raises MediaError."""
    footage = open_footage(video, limits)
    try:
        return Frames(footage, _choose(video, footage, spec, limits, seed))
    except BaseException:
        footage.close()
        raise


def open_footage(video: Video, limits: MediaLimits = DEFAULT_LIMITS) -> Footage:
    """The video, as far as its header tells refused or accepted. Raises MediaError."""
    footage = _open(video.source, limits)
    try:
        _check_length(video, footage.header_s, footage.name, limits)
    except MediaError:
        footage.close()
        raise
    return footage


def is_video(path: str | os.PathLike[str]) -> bool:
    """Whether a path is rather a video than a picture: a folder, a name such as x.mp4, an animation, a container."""
    path = Path(path)
    if path.is_dir() or path.suffix.lower() in VIDEO_SUFFIXES:
        return True
    try:
        with path.open("rb") as file:
            head = file.read(64)
            if not _ANIMATED.match(head):
                return bool(_CONTAINER.match(head))
            return getattr(Image.open(file), "is_animated", False)
    except Exception:  # it will be told what is wrong with it as a picture
        return False


def _choose(video: Video, footage: Footage, spec: Spec, limits: MediaLimits, seed: int) -> Sequence[int]:
    total = len(footage)
    clip = find_clip(video, total, footage.fps, footage.name)
    if footage.header_s is None and clip.fps:
        _check_length(video, total / clip.fps, footage.name, limits)
    num_frames = video.num_frames or (None if takes_all(spec.frame_rule) else spec.num_frames)
    if video.num_frames is None and isinstance(footage, Listed) and footage.fps is None:
        indices: Sequence[int] = range(total)
    elif num_frames is not None and num_frames > limits.max_frames:  # no rule is asked for a billion
        raise _too_many_frames(num_frames, footage.name, limits)
    else:
        indices = choose(spec.frame_rule, clip, num_frames, seed)
    if len(indices) > limits.max_frames:
        raise _too_many_frames(len(indices), footage.name, limits)
    return indices


def _too_many_frames(num_frames: int, name: str, limits: MediaLimits) -> MediaError:
    return MediaError(
        f"{num_frames} frames of {name} are asked for; at most {limits.max_frames} are allowed. "
        "Give a smaller num_frames or a shorter clip, or raise `max_frames`."
    )


def _check_length(video: Video, length_s: float | None, name: str, limits: MediaLimits) -> None:
    """Only what is looked at counts."""
    if length_s is None:
        return
    end_s = length_s if video.end_s is None else min(video.end_s, length_s)
    if end_s - (video.start_s or 0) > limits.max_video_s:
        raise MediaError(
            f"{name} lasts {length_s:,.0f} s; at most {limits.max_video_s:,.0f} s are looked at. "
            "Give start and end in seconds to look at a part, or raise `max_video_s`."
        )


def _open(source: Any, limits: MediaLimits) -> Footage:
    if isinstance(source, np.ndarray) and source.ndim == 4:
        source = list(source)
    if isinstance(source, list | tuple):
        return Listed(source, "The list of frames", None, limits)
    if isinstance(source, str | os.PathLike) and os.path.isdir(source):
        return _open_folder(Path(source), limits)
    name, data = find_media(source, limits.max_video_bytes, "video")
    head = data[:64] if isinstance(data, bytes) else _head(data, name)
    if _ANIMATED.match(head):
        return Animation(data, name, limits)
    return VideoFile(data, name, limits)


def _head(path: Path, name: str) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(64)
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error}.") from error


def _open_folder(folder: Path, limits: MediaLimits) -> "Listed":
    """Files that are no pictures by name, and hidden ones, lie there for others."""
    files = [path for path in folder.iterdir() if path.suffix.lower() in _PICTURE_SUFFIXES and path.name[0] != "."]
    files.sort(key=lambda path: [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", path.name)])
    return Listed(files, f"{os.fspath(folder)!r:.300}", FOLDER_FPS, limits)


class Listed:
    """Frames that are pictures of their own. Those that are looked at stay in memory until `close`."""

    def __init__(self, sources: Sequence[Any], name: str, fps: float | None, limits: MediaLimits) -> None:
        if not sources:
            raise MediaError(f"{name} holds no pictures. Expected the frames of a video.")
        self.name, self.fps = name, fps
        self.header_s = len(sources) / fps if fps else None
        self._sources, self._limits = sources, limits
        self._opened: dict[int, Image.Image] = {}

    def __len__(self) -> int:
        return len(self._sources)

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        return [image.size for image in self.frames(indices)]

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        for index in indices:
            if index not in self._opened:
                self._opened[index] = self._open(index)
            yield self._opened[index]

    def _open(self, index: int) -> Image.Image:
        try:
            image = open_image(self._sources[index], self._limits)
        except MediaError as problem:
            raise MediaError(f"{self.name}, frame {index + 1}: {problem}") from None
        _check_pixels(image.size, self.name, self._limits)
        return image

    def close(self) -> None:
        self._opened.clear()


class Animation:
    """GIF, animated WebP and animated PNG. A frame without a time is shown for 0.1 s, as browsers do."""

    def __init__(self, data: bytes | Path, name: str, limits: MediaLimits) -> None:
        self.name, self._data, self._limits = name, data, limits
        try:
            self._image: Any = self._open()
            self._num_frames = getattr(self._image, "n_frames", 1)
        except Exception as error:  # as in open_image
            raise self._damaged(error) from error
        _check_pixels(self._image.size, name, limits)

    def _open(self) -> Any:
        return Image.open(io.BytesIO(self._data) if isinstance(self._data, bytes) else self._data)

    def __len__(self) -> int:
        return self._num_frames

    @property
    def header_s(self) -> float:
        return self._length_s

    @functools.cached_property
    def _length_s(self) -> float:
        """All frames are decoded for it: nothing else tells how long each one lasts."""
        try:
            return sum(self._seek(index).info.get("duration") or 100 for index in range(len(self))) / 1000
        except Exception as error:  # as in open_image
            raise self._damaged(error) from error

    @property
    def fps(self) -> float:
        return len(self) / self.header_s

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        return [self._image.size] * len(indices)

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        for index in indices:
            try:
                frame = self._seek(index).copy()
            except Exception as error:  # as in open_image
                raise self._damaged(error) from error
            yield open_image(frame, self._limits)

    def _seek(self, index: int) -> Any:
        if index < self._image.tell():  # Pillow cannot rewind every format
            self._image.close()
            self._image = self._open()
        self._image.seek(index)
        self._image.load()
        return self._image

    def _damaged(self, error: Exception) -> MediaError:
        # Pillow's words for it show the object that holds the bytes.
        reason = "its header cannot be read" if isinstance(error, UnidentifiedImageError) else error or repr(error)
        return MediaError(f"{self.name} cannot be decoded: {reason}. Save or download it again.")

    def close(self) -> None:
        self._image.close()


def _check_pixels(size: tuple[int, int], name: str, limits: MediaLimits) -> None:
    if size[0] * size[1] > limits.max_frame_pixels:
        raise MediaError(
            f"{name} has frames of {size[0]}×{size[1]} pixels; at most {limits.max_frame_pixels:,} pixels are "
            "allowed. Scale it down, or raise `max_frame_pixels`."
        )
