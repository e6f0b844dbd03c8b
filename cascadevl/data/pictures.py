"""Is a picture there and whole, and how large is it? JPEG and PNG are asked by their first and last bytes.

That is some hundred times faster than decoding, and finds what is missing, empty, no picture, or cut off in the
middle; whether every pixel decodes, only decoding tells. Other kinds of pictures are decoded.
"""

import mmap
import os
import struct
from typing import Literal

from PIL import ExifTags
from PIL.Image import Exif

from cascadevl.core.errors import MediaError
from cascadevl.preprocessing.image import DEFAULT_LIMITS, MediaLimits, find_media, open_image

Look = Literal["header", "decode"]
Size = tuple[int, int]


def picture_size(source: str | bytes, look: Look = "header", limits: MediaLimits = DEFAULT_LIMITS) -> Size:
    """(width, height), upright. Raises MediaError."""
    size = _header_size(source, limits) if look == "header" else None
    if size is None or size[0] * size[1] > limits.max_pixels:
        return open_image(source, limits).size
    return size


def _header_size(source: str | bytes, limits: MediaLimits) -> Size | None:
    """None for what the ends of the file do not tell; then decoding says what is wrong, or nothing is."""
    name, data = find_media(source, limits.max_bytes)
    if isinstance(data, bytes):
        return _size(data)
    try:
        with data.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as memory:
            return _size(memory)
    except OSError as error:
        raise MediaError(f"{name} cannot be read: {error}. Expected the path of a picture.") from error


def _size(data: bytes | mmap.mmap) -> Size | None:
    if data[:3] == b"\xff\xd8\xff" and data[-2:] == b"\xff\xd9":
        return _jpeg_size(data)
    if data[:8] == b"\x89PNG\r\n\x1a\n" and data[-8:-4] == b"IEND":
        return _png_size(data)
    return None


_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
"""Segments that say how large the picture is (ITU T.81, table B.1)."""
_APP1 = 0xE1


def _jpeg_size(data: bytes | mmap.mmap) -> Size | None:
    place, lies = 2, False
    while place + 9 <= len(data) and data[place] == 0xFF:
        marker = data[place + 1]
        if marker == 0xFF:  # fill bytes may stand in front of a marker
            place += 1
            continue
        length = int.from_bytes(data[place + 2 : place + 4])
        if marker in _FRAMES:
            height, width = struct.unpack(">HH", data[place + 5 : place + 9])
            size = (height, width) if lies else (width, height)
            return size if width and height else None
        if marker == _APP1 and data[place + 4 : place + 8] == b"Exif":
            lies = _lies(data[place + 4 : place + 2 + length])
        if length < 2:
            return None
        place += 2 + length
    return None


def _lies(block: bytes) -> bool:
    """Whether EXIF says that a camera was held sideways."""
    exif = Exif()
    try:
        exif.load(block)
        return exif.get(ExifTags.Base.Orientation) in (5, 6, 7, 8)
    except Exception:  # a damaged EXIF block does not damage the picture
        return False


def _png_size(data: bytes | mmap.mmap) -> Size | None:
    """None where EXIF might turn the picture."""
    place = 8
    while place + 8 <= len(data) and data[place + 4 : place + 8] != b"IDAT":
        if data[place + 4 : place + 8] == b"eXIf":
            return None
        place += 12 + int.from_bytes(data[place : place + 4])
    if data[12:16] != b"IHDR" or place + 8 > len(data):
        return None
    width, height = struct.unpack(">II", data[16:24])
    return (width, height) if width and height else None


def elsewhere(path: str, root: str | os.PathLike[str]) -> str | None:
    """Where below `root` a file lies that is not at `path`: at the longest end of the path that is there."""
    inside = os.path.relpath(path, root) if path.startswith(os.fspath(root)) else path
    names = [name for name in inside.replace("\\", "/").split("/") if name not in ("", ".", "..")]
    tails = (os.path.join(root, *names[start:]) for start in range(len(names)))
    return next((tail for tail in tails if os.path.isfile(tail)), None)
