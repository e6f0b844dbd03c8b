"""Frames of a video file by number, exactly those, with one frame in memory at a time (PyAV, the extra `video`).

Frame n is the n-th that decoding from the start shows, as for decord, whose numbers the released code uses. The
file is read once without decoding it: the times of its packets, sorted, are the times of its frames. A frame far
away is then reached from the keyframe before it. Files of which this is not sure (no times, a beginning that
cannot be decoded, packets that are no frames: three frames are compared) are decoded from the start instead, once
to count and once to look.

Phone videos are turned upright by their display matrix. Colours follow the colour space that the file declares;
transparency lies on white. Pixels that are not square stay as they are stored, and interlaced pictures stay
interlaced: the released code does neither.
"""

import io
import itertools
import math
import struct
from bisect import bisect_right
from collections.abc import Container, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, NoReturn

from PIL import Image

from cascadevl.core.errors import MediaError, MissingExtra
from cascadevl.preprocessing.image import MediaLimits, to_rgb

FORMATS = "mov,mp4,m4a,3gp,3g2,mj2,matroska,webm,avi,mpegts,mpeg,mpegvideo,m4v,flv,asf,ogg,h264,hevc,ivf,obu,mjpeg,nut"
"""Containers that hold their frames themselves. Playlists, scripts and devices, which lead elsewhere, are not here."""

_HIDDEN_VP8 = 0x10
"""Bit of a VP8 packet's first byte that is off where the packet shows no frame (RFC 6386, 9.1)."""


class VideoFile:
    """An open file. Its header is read and checked at once, its packets when frames are first asked for."""

    def __init__(self, data: bytes | Path, name: str, limits: MediaLimits) -> None:
        self.name, self._data = name, data
        self._max_pixels = limits.max_frame_pixels
        self._opened = ExitStack()
        self._container, self._stream = self._open(self._opened)
        codec = self._stream.codec_context
        if codec.width * codec.height > limits.max_frame_pixels:
            self.close()
            raise MediaError(
                f"{name} has frames of {codec.width}×{codec.height} pixels; at most {limits.max_frame_pixels:,} "
                "pixels are allowed. Scale it down, or raise `max_frame_pixels`."
            )
        self._times: list[int] | None = None
        self._keys: list[tuple[int, int]] = []
        self._num_frames = 0
        self._stored_size = (0, 0)
        self._turn: Image.Transpose | None = None
        self._decoding: Iterator[Any] = iter(())
        self._position = math.inf
        """Time of the frame that `_decoding` showed last; infinite where it leads nowhere."""

    def close(self) -> None:
        self._opened.close()

    @property
    def header_s(self) -> float | None:
        """Length that the header tells."""
        if self._stream.duration:
            return float(self._stream.duration * self._stream.time_base)
        return self._container.duration / 1e6 if self._container.duration else None

    @property
    def fps(self) -> float | None:
        """The average rate of the header."""
        rate = self._stream.average_rate or self._stream.guessed_rate
        return float(rate) if rate else None

    def __len__(self) -> int:
        """Counted, not taken from the header. Raises MediaError for a file that is cut off or holds no frame."""
        if not self._num_frames:
            with self._told():
                self._scan()
        return self._num_frames

    def sizes(self, indices: Sequence[int]) -> list[tuple[int, int]]:
        assert len(self), "counted before frames are asked for"
        width, height = self._stored_size
        return [(height, width) if self._turn in _SIDEWAYS else (width, height)] * len(indices)

    def frames(self, indices: Sequence[int]) -> Iterator[Image.Image]:
        """The frames of ascending numbers, upright and RGB; a number that stands twice gives the same picture."""
        assert list(indices) == sorted(indices) and len(self) > max(indices, default=-1)
        wanted = ((index, len(list(same))) for index, same in itertools.groupby(indices))
        with self._told():
            if self._times is None:
                yield from self._frames_from_start(dict(wanted))
            else:
                self._position = math.inf
                times = {self._times[index] for index in indices}
                for index, count in wanted:
                    yield from [self._upright(self._frame_at(self._times[index], times))] * count

    def _frames_from_start(self, wanted: dict[int, int]) -> Iterator[Image.Image]:
        for index, frame in zip(range(max(wanted, default=-1) + 1), self._from_start(), strict=False):
            if index in wanted:
                yield from [self._upright(frame)] * wanted[index]

    def _open(self, opened: ExitStack) -> tuple[Any, Any]:
        """A container at its beginning, and the stream that is looked at; `opened` will close it."""
        av = _av()
        try:
            file = opened.enter_context(
                io.BytesIO(self._data) if isinstance(self._data, bytes) else self._data.open("rb")
            )
        except OSError as error:
            raise MediaError(f"{self.name} cannot be read: {error}.") from error
        options = {"format_whitelist": FORMATS, "protocol_whitelist": "none"}
        try:
            container = av.open(file, container_options=options, io_open=_refuse, buffer_size=2**18)
        except _errors() as error:
            file.seek(0)
            head = file.read(12)
            opened.close()
            raise MediaError(
                f"{self.name} cannot be opened as a video: it begins with {head!r}. Expected mp4, mov, webm, mkv, avi, "
                "ts, mpg, flv, wmv or ogv; playlists are not followed. If it is one, it is damaged or cut off."
            ) from error
        opened.enter_context(container)
        cover, usual = av.stream.Disposition.attached_pic, av.stream.Disposition.default
        streams = [each for each in container.streams.video if each.codec_context and not each.disposition & cover]
        if not streams:
            kinds = ", ".join(sorted({each.type for each in container.streams})) or "nothing"
            opened.close()
            raise MediaError(f"{self.name} has no video track that can be decoded: it holds {kinds}. Expected a video.")
        stream = next((each for each in streams if each.disposition & usual), streams[0])
        stream.thread_type = "FRAME"
        stream.codec_context.options = {"max_pixels": str(self._max_pixels)}  # headers may lie
        return container, stream

    def _scan(self) -> None:
        """Read all packets, decode none; then look whether three frames come as they say."""
        times: list[int | None] = []
        keys: list[tuple[int, int]] = []
        num_packets, end_s, broken = 0, 0.0, False
        for packet in self._container.demux():
            if packet.pts is not None:
                end_s = max(end_s, float((packet.pts + (packet.duration or 0)) * packet.time_base))
            if packet.stream_index != self._stream.index:
                continue
            num_packets += packet.dts is not None
            if not packet.size:  # the end, or in avi: as before
                continue
            if packet.is_keyframe and packet.pts is not None:
                keys.append((packet.pts, packet.pts if packet.dts is None else packet.dts))
            broken = bool(packet.is_corrupt)
            if not packet.is_discard and not _shows_nothing(packet):
                times.append(packet.pts)
        self._check_whole(num_packets, end_s, broken)
        self._keys = sorted(keys)
        first = list(itertools.islice(self._from_start(), 3))
        if not first:
            raise MediaError(f"{self.name} holds no frame that can be decoded. Expected a video.")
        self._stored_size = (first[0].width, first[0].height)
        self._turn = _turn(first[0])
        ordered = sorted({time for time in times if time is not None})
        as_told = bool(keys) and len(ordered) == len(times) and [frame.pts for frame in first] == ordered[:3]
        self._times = ordered if as_told else None
        self._num_frames = len(ordered) if self._times else sum(1 for _ in self._from_start())

    def _check_whole(self, num_packets: int, end_s: float, broken: bool) -> None:
        """Some headers tell how much there should be. Broadcasts are cut anywhere, and are whole as they are."""
        container, promised = self._container, self._stream.frames
        told_s = ((container.duration or 0) + min(container.start_time or 0, 0)) / 1e6
        mov, matroska, avi = (word in container.format.name for word in ("mov", "matroska", "avi"))
        missing = ""
        if promised and (mov or avi):
            if num_packets < promised or broken:
                missing = f"{num_packets - broken} of {promised} frames are there"
        elif (mov or matroska) and told_s - end_s > _SLACK_S:
            missing = f"it ends after {end_s:.1f} of {told_s:.1f} s"
        if missing:
            raise MediaError(f"{self.name} is cut off: {missing}. Download or copy it again.")

    def _from_start(self) -> Iterator[Any]:
        """Every frame, from a container of its own. What lies before the first keyframe has nothing to start from."""
        with ExitStack() as opened:
            container, stream = self._open(opened)
            packets = container.demux(stream)
            if self._keys:
                packets = itertools.dropwhile(lambda packet: not packet.is_keyframe, packets)
            for packet in packets:
                yield from packet.decode()

    def _frame_at(self, time: int, wanted: Container[int]) -> Any:
        """From where decoding stands, if no keyframe lies between; else from the keyframe; at worst from the start."""
        key, key_dts = self._keys[max(bisect_right(self._keys, (time, math.inf)) - 1, 0)]
        with suppress(*_errors()):
            if not key <= self._position < time:
                self._decoding = self._from_key(key, key_dts, wanted)
            frame = self._next_at(self._decoding, time)
            if frame is not None:
                return frame
        frame = self._next_at(self._from_start(), time)
        self._position = math.inf
        if frame is None:
            at_s = float(time * self._stream.time_base)
            raise MediaError(f"{self.name} is damaged: its frame at {at_s:.2f} s cannot be decoded.")
        return frame

    def _next_at(self, frames: Iterator[Any], time: int) -> Any:
        """The frame of that time, or None if the frames go past it."""
        for frame in frames:
            self._position = math.inf if frame.pts is None else frame.pts
            if self._position >= time:
                return frame if self._position == time else None
        self._position = math.inf
        return None

    def _from_key(self, time: int, dts: int, wanted: Container[int]) -> Iterator[Any]:
        """Frames from the packet of this keyframe. Seeking may lead before it: those packets are left out.

        Of H.264, frames that are not wanted and that no other frame needs (nal_ref_idc 0) are not decoded. In other
        formats a decoder's idea of these is not safe: H.265 calls frames so that higher temporal layers may need.
        """
        self._container.seek(dts, stream=self._stream, backward=True)
        packets = self._container.demux(self._stream)
        codec = self._stream.codec_context
        for packet in itertools.dropwhile(lambda packet: packet.pts != time, packets):
            if codec.name == "h264":
                codec.skip_frame = "DEFAULT" if packet.pts is None or packet.pts in wanted else "NONREF"
            yield from packet.decode()

    def _upright(self, frame: Any) -> Image.Image:
        """RGB in the size of the first frame, turned."""
        clear = any(component.is_alpha for component in frame.format.components)
        width, height = self._stored_size
        pixels_YXC = frame.to_ndarray(format="rgba" if clear else "rgb24", width=width, height=height)
        image = to_rgb(Image.fromarray(pixels_YXC))
        return image if self._turn is None else image.transpose(self._turn)

    @contextmanager
    def _told(self) -> Iterator[None]:
        """What decoders raise, told as ours."""
        try:
            yield
        except MediaError:
            raise
        except _errors() as error:
            reason = getattr(error, "strerror", None) or error
            raise MediaError(f"{self.name} is damaged: {reason}. Download or encode it again.") from error


_SLACK_S = 1.0
"""By so much a header may be wrong."""

_TURNS = {
    (-1, 0, 0, 1): Image.Transpose.FLIP_LEFT_RIGHT,
    (1, 0, 0, -1): Image.Transpose.FLIP_TOP_BOTTOM,
    (-1, 0, 0, -1): Image.Transpose.ROTATE_180,
    (0, -1, 1, 0): Image.Transpose.ROTATE_90,
    (0, 1, -1, 0): Image.Transpose.ROTATE_270,
    (0, 1, 1, 0): Image.Transpose.TRANSPOSE,
    (0, -1, -1, 0): Image.Transpose.TRANSVERSE,
}
"""a, b, c, d of x' = a·x + c·y, y' = b·x + d·y, y pointing down (ISO 14496-12, 6.2.2); Pillow turns anti-clockwise."""
_SIDEWAYS = {turn for (a, *_), turn in _TURNS.items() if a == 0}


def _turn(frame: Any) -> Image.Transpose | None:
    """What makes a frame upright; angles between are left alone."""
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return None
    a, b, _, c, d, *_ = struct.unpack("=9i", bytes(matrix))
    return _TURNS.get((_sign(a), _sign(b), _sign(c), _sign(d)))


def _sign(fixed: int) -> int:
    """Of a 16.16 number, near zero counting as zero."""
    return (fixed > 2**15) - (fixed < -(2**15))


def _shows_nothing(packet: Any) -> bool:
    return packet.stream.codec_context.name == "vp8" and not memoryview(packet)[0] & _HIDDEN_VP8


def _refuse(url: str, flags: int, options: dict[str, str]) -> NoReturn:
    """Called where a container would open another file; behind the list of formats, a second lock."""
    raise PermissionError(f"a video may not open {url!r}")


def _errors() -> tuple[type[Exception], ...]:
    """What decoders raise at hostile bytes."""
    return (_av().error.FFmpegError, OSError, ValueError, EOFError, IndexError)


def _av() -> Any:
    try:
        import av
    except ImportError as error:
        raise MissingExtra(
            "Video files need PyAV: pip install 'cascadevl[video]'. A GIF, a folder or a list of frames goes without."
        ) from error
    return av
