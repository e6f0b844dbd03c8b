"""Tiny videos made on the fly with PyAV; every frame differs from every other."""

from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np


def painted(number: int, size: tuple[int, int]) -> np.ndarray:
    """Moving stripes, and the number as a grey level on the left: (rows, columns, 3)."""
    x, y = np.meshgrid(np.arange(size[0]), np.arange(size[1]))
    waves = np.stack([np.sin((x + 3 * number) / 5), np.cos((y - 2 * number) / 7), np.sin((x + y + number) / 6)], -1)
    pixels = (128 + 100 * waves).astype(np.uint8)
    pixels[:, : size[0] // 4] = number * 37 % 256
    return pixels


def write_video(
    path: Path,
    num_frames: int,
    size: tuple[int, int] = (48, 32),
    *,
    codec: str = "libx264",
    pixels: str = "yuv420p",
    gop: int = 12,
    b_frames: int = 0,
    container: str | None = None,
    times_ms: Sequence[int] | None = None,
    options: dict[str, str] | None = None,
    flags: dict[str, str] | None = None,
    audio: bool = False,
) -> Path:
    """25 frames a second, or at `times_ms`; `options` are the codec's, `flags` the container's."""
    base = Fraction(1, 1000) if times_ms else Fraction(1, 25)
    with av.open(str(path), "w", format=container, options=flags or {}) as file:
        stream: Any = file.add_stream(codec, rate=25, options=options or {})
        stream.codec_context.thread_count = 1  # one slice a frame, on any machine
        stream.width, stream.height, stream.pix_fmt = *size, pixels
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, b_frames
        stream.codec_context.time_base = base
        sound: Any = file.add_stream("mp2", rate=32000) if audio else None
        for number in range(num_frames):
            frame = av.VideoFrame.from_ndarray(painted(number, size), format="rgb24").reformat(format=pixels)
            frame.pts, frame.time_base = (times_ms[number] if times_ms else number), base
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))
        if sound:
            file.mux([*sound.encode(silence()), *sound.encode(None)])
    return path


def silence(num_samples: int = 1152) -> av.AudioFrame:
    frame = av.AudioFrame.from_ndarray(np.zeros((1, num_samples), np.int16), format="s16", layout="mono")
    frame.sample_rate, frame.pts = 32000, 0
    return frame


def decoded(path: Path) -> list[np.ndarray]:
    """All frames by the plain loop, on one thread: MPEG-2 cut into slices for several comes out otherwise."""
    with av.open(str(path)) as file:
        file.streams.video[0].thread_type = "NONE"
        return [frame.to_ndarray(format="rgb24") for frame in file.decode(video=0)]
