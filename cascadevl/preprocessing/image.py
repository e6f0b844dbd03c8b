"""Any picture a user may hand us becomes an upright RGB picture, or a MediaError that says why not.

The released code calls `Image.open(path).convert("RGB")` (InternVL, `chat/train/dataset.py`). We depart from
it where that spoils a picture: transparency lies on white instead of being dropped, sixteen bits are scaled
instead of clipped, the EXIF orientation is obeyed, and what is too large is refused before it is decoded.
Colour profiles are ignored, there as here.
"""

import base64
import binascii
import io
import os
import re
import stat
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any, Literal

import numpy as np
from PIL import ExifTags, Image
from PIL.BmpImagePlugin import BmpImageFile
from PIL.GifImagePlugin import GifImageFile
from PIL.ImageFile import ImageFile
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from PIL.PpmImagePlugin import PpmImageFile
from PIL.TiffImagePlugin import TiffImageFile
from PIL.WebPImagePlugin import WebPImageFile

from cascadevl.core.errors import ConfigError, MediaError


@dataclass(frozen=True, kw_only=True, slots=True)
class MediaLimits:
    """What a picture or a video may cost; checked on the file and on its header, before decoding."""

    max_bytes: int = 64 * 2**20
    """Size of the encoded picture."""
    max_pixels: int = 180_000_000
    """Width times height: an A2 page at 600 dpi passes, and takes 0.7 GB while it is prepared."""
    max_video_bytes: int = 4 * 2**30
    """Size of the encoded video, which is read once from end to end."""
    max_video_s: float = 4 * 3600.0
    """Length of the clip that is looked at."""
    max_frames: int = 512
    """Frames that are looked at."""
    max_frame_pixels: int = 8192 * 4320
    """Width times height of a frame."""

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) > 0:
                raise ConfigError(f"Media limits must be positive, {field.name} is {getattr(self, field.name)}.")


DEFAULT_LIMITS = MediaLimits()


def open_image(source: Any, limits: MediaLimits = DEFAULT_LIMITS) -> Image.Image:
    """An upright picture of mode RGB; the first frame where a file has several.

    `source` is a path, a base64 data URL, the bytes of a file, a PIL picture (never changed; returned itself
    if nothing is to be done) or a uint8 array of (rows, columns) or (rows, columns, 1 | 3 | 4).
    Raises MediaError.
    """
    if isinstance(source, Image.Image):
        name, image = "The PIL picture", source
    elif isinstance(source, np.ndarray):
        name, image = "The array", _from_array(source)
    else:
        name, data = find_media(source, limits.max_bytes)
        image = _from_bytes(data if isinstance(data, bytes) else _read(data, name), name)
    width, height = image.size
    if width == 0 or height == 0:
        raise MediaError(f"{name} is empty: {width}×{height} pixels. Expected at least 1×1.")
    if width * height > limits.max_pixels:
        raise MediaError(
            f"{name} has {width}×{height} = {width * height:,} pixels; at most {limits.max_pixels:,} are "
            "allowed. Scale it down or cut it."
        )
    try:
        image.load()
        turn = _TURNS.get(_orientation(image))
        image = to_rgb(image)
    except MediaError as error:
        raise MediaError(f"{name} {error}") from None
    except Exception as error:
        # Hostile bytes lead decoders to OSError, SyntaxError, ValueError, struct.error, zlib.error and more.
        raise _damaged(name, error) from error
    return image if turn is None else image.transpose(turn)


Kind = Literal["picture", "video"]
_SOURCES: dict[Kind, str] = {
    "picture": "a path, bytes, a data URL, a PIL picture, or a numpy uint8 array of (rows, columns[, channels])",
    "video": "a path, a folder of frames, bytes, a data URL, or a list of frames",
}
_TOO_LARGE: dict[Kind, str] = {
    "picture": "Save the picture smaller, or raise `max_bytes`.",
    "video": "Cut it or encode it smaller, or raise `max_video_bytes`.",
}


def find_media(source: Any, max_bytes: int, kind: Kind = "picture") -> tuple[str, bytes | Path]:
    """What to call the source in messages, and its bytes or the path of a file that is there and not too large."""
    if isinstance(source, os.PathLike):
        source = os.fspath(source)
    if isinstance(source, bytes | bytearray | memoryview):
        name, data = f"The {kind} in memory", bytes(source)
    elif isinstance(source, str) and source[:5].lower() == "data:":
        name, data = "The data URL", _from_data_url(source, max_bytes, kind)
    elif isinstance(source, str) and (scheme := re.match(r"[a-zA-Z][a-zA-Z0-9+.-]*://", source)):
        raise MediaError(
            f"{source!r:.120} is not fetched: {scheme[0].lower()} addresses are off. "
            f"Give a local path, or the {kind} itself as bytes or as a data URL."
        )
    elif isinstance(source, str):
        return _find_file(source, max_bytes, kind)
    else:
        raise MediaError(f"A value of type {type(source).__qualname__} is no {kind}. Expected {_SOURCES[kind]}.")
    if not data:
        raise _no_bytes(name, kind)
    if len(data) > max_bytes:
        raise _too_many_bytes(name, len(data), max_bytes, kind)
    return name, data


def _find_file(path: str, max_bytes: int, kind: Kind) -> tuple[str, Path]:
    name = f"{path!r:.300}"
    try:
        status = os.stat(path)
    except FileNotFoundError:
        raise MediaError(f"{name} does not exist, seen from {os.getcwd()}. Check the path.") from None
    except (OSError, ValueError) as error:  # no permission, a name too long, a zero byte in the name
        raise MediaError(f"{name} cannot be read: {error}. Expected the path of a {kind}.") from error
    if not stat.S_ISREG(status.st_mode):
        what = "a folder" if stat.S_ISDIR(status.st_mode) else "a device or a pipe"
        raise MediaError(f"{name} is {what}. Expected the path of one {kind} file.")
    if status.st_size > max_bytes:
        raise _too_many_bytes(name, status.st_size, max_bytes, kind)
    if not status.st_size:
        raise _no_bytes(name, kind)
    return name, Path(path)


def _read(path: Path, name: str) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error}. Expected the path of a picture.") from error


def _from_data_url(url: str, max_bytes: int, kind: Kind) -> bytes:
    header, comma, payload = url.partition(",")
    if not comma or not header.lower().endswith(";base64"):
        example = {"picture": "image/png", "video": "video/mp4"}[kind]
        raise MediaError(f"The data URL begins with {url[:40]!r}. Expected 'data:{example};base64,…'.")
    payload = "".join(payload.split())
    size_bytes = len(payload) * 3 // 4 - payload[-2:].count("=")
    if size_bytes > max_bytes:
        raise _too_many_bytes("The data URL", size_bytes, max_bytes, kind)
    try:
        return base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError) as error:
        raise MediaError(f"The data URL is not valid base64: {error}. Encode the file again.") from None


def _no_bytes(name: str, kind: Kind) -> MediaError:
    formats = {"picture": f" ({_FORMATS})", "video": ""}[kind]
    return MediaError(f"{name} is empty: 0 bytes. Expected an encoded {kind}{formats}.")


def _too_many_bytes(name: str, size_bytes: int, max_bytes: int, kind: Kind) -> MediaError:
    return MediaError(f"{name} has {size_bytes:,} bytes; at most {max_bytes:,} are allowed. {_TOO_LARGE[kind]}")


# By their first bytes, not by Image.open, which warns or raises at a global pixel limit before ours is asked.
_READERS: dict[bytes, type[ImageFile]] = {
    rb"\x89PNG\r\n\x1a\n": PngImageFile,
    rb"\xff\xd8\xff": JpegImageFile,
    rb"RIFF....WEBP": WebPImageFile,
    rb"GIF8[79]a": GifImageFile,
    rb"BM": BmpImageFile,
    rb"II[*+]\x00|MM\x00[*+]": TiffImageFile,
    rb"P[1-6]\s": PpmImageFile,
}
_FORMATS = "PNG, JPEG, WebP, GIF, BMP, TIFF, PPM"


def _from_bytes(data: bytes, name: str) -> Image.Image:
    """Opened, not yet decoded: only the header has been read."""
    for magic, reader in _READERS.items():
        if re.match(magic, data, re.DOTALL):
            try:
                return reader(io.BytesIO(data))
            except Exception as error:  # as in open_image
                raise _damaged(name, error) from error
    raise MediaError(f"{name} begins with {data[:12]!r}, which is no picture. Expected one of {_FORMATS}.")


def _damaged(name: str, error: Exception) -> MediaError:
    return MediaError(f"{name} cannot be decoded: {error or error!r}. Save or download it again.")


def _from_array(array: np.ndarray) -> Image.Image:
    if array.dtype != np.uint8:
        raise MediaError(f"The array is of {array.dtype}. Expected uint8, 0 to 255: scale and convert it.")
    if array.ndim != 2 and (array.ndim != 3 or array.shape[2] not in (1, 3, 4)):
        raise MediaError(
            f"The array has the shape {array.shape}. Expected (rows, columns) or (rows, columns, 1, 3 or 4): "
            "channels come last."
        )
    if array.size == 0:
        raise MediaError(f"The array is empty: its shape is {array.shape}. Expected at least 1×1 pixels.")
    return Image.fromarray(array[..., 0] if array.shape[2:] == (1,) else array)


def to_rgb(image: Image.Image) -> Image.Image:
    if image.mode == "I" or image.mode.startswith("I;16"):
        return _from_16_bits(image)
    if image.mode == "F":
        return _from_floats(image)
    if image.has_transparency_data:
        layer = image.convert("RGBA")
        white = Image.new("RGB", image.size, "white")
        white.paste(layer, mask=layer)
        return white
    return image if image.mode == "RGB" else image.convert("RGB")


def _from_16_bits(image: Image.Image) -> Image.Image:
    """65535 becomes 255; Pillow's own conversion clips everything above 255."""
    levels_YX = np.asarray(image)
    low, high = levels_YX.min(), levels_YX.max()
    if low < 0 or high > 65535:
        raise MediaError(f"holds integers from {low} to {high}. Expected 0 to 65535: scale them.")
    levels_YX = (levels_YX.astype(np.int32) * 255 + 32767) // 65535
    return Image.fromarray(levels_YX.astype(np.uint8)).convert("RGB")


def _from_floats(image: Image.Image) -> Image.Image:
    """0 to 1 where no value exceeds 1, else 0 to 255 as Pillow writes them: files do both and say neither."""
    levels_YX = np.asarray(image)
    low, high = levels_YX.min(), levels_YX.max()
    if not (low >= 0 and high <= 255):  # NaN fails too
        raise MediaError(f"holds floats from {low} to {high}. Expected 0 to 1, or 0 to 255.")
    levels_YX = np.rint(levels_YX * (255 if high <= 1 else 1))
    return Image.fromarray(levels_YX.astype(np.uint8)).convert("RGB")


# What makes a picture of each EXIF orientation upright; Pillow turns anti-clockwise.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


def _orientation(image: Image.Image) -> int:
    try:
        return image.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # a damaged EXIF block does not damage the picture
        return 1
