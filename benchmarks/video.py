"""How long does it take to get 8 or 32 evenly spaced frames of a minute of 720p video?

    python benchmarks/video.py --json benchmarks/results/video.json

Against the plain PyAV loop that decodes every frame and keeps the wanted ones; from the file on disk to RGB
pictures, in turn. The films are made here: H.264 with B-frames and a keyframe every 250 frames (the encoder's
default) or every 50, and one group alone, where there is nothing to skip to.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import numpy as np

from cascadevl.core.messages import Video
from cascadevl.preprocessing.frame_rules import Clip, choose
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.video import open_frames

SIZE, FPS, SECONDS = (1280, 720), 25, 60
FILMS = {"keyframe every 250": 250, "keyframe every 50": 50, "one keyframe": 10**6}
COUNTS = (8, 32)


def make_film(path: Path, gop: int) -> None:
    """A camera moving over a textured wall, with a little noise."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : SIZE[1] + 400, 0 : SIZE[0] + 400]
    wall = 128 + 60 * np.sin(columns / 30 + 4 * np.sin(rows / 90)) * np.cos(rows / 23)
    wall = np.stack([wall, wall[::-1], 255 - wall], axis=-1) + generator.normal(0, 6, (*rows.shape, 3))
    pixels_YXC = wall.clip(0, 255).astype(np.uint8)
    with av.open(str(path), "w") as file:
        stream: Any = file.add_stream("libx264", rate=FPS, options={"preset": "veryfast", "crf": "26"})
        stream.width, stream.height, stream.pix_fmt = *SIZE, "yuv420p"
        stream.codec_context.gop_size, stream.codec_context.max_b_frames = gop, 3
        stream.codec_context.time_base = Fraction(1, FPS)
        for number in range(SECONDS * FPS):
            left, top = int(200 + 190 * np.sin(number / 60)), int(200 + 190 * np.cos(number / 47))
            view = np.ascontiguousarray(pixels_YXC[top : top + SIZE[1], left : left + SIZE[0]])
            frame = av.VideoFrame.from_ndarray(view, format="rgb24")
            frame.pts = number
            file.mux(stream.encode(frame))
        file.mux(stream.encode(None))


def ours(path: Path, num_frames: int) -> list[Any]:
    with open_frames(Video(path, num_frames=num_frames), Spec()) as frames:
        return list(frames)


def plain(path: Path, num_frames: int) -> list[Any]:
    with av.open(str(path)) as file:
        stream = file.streams.video[0]
        stream.thread_type = "AUTO"
        wanted = set(choose("middle", Clip(0, stream.frames - 1, FPS), num_frames, 0))
        return [frame.to_image() for number, frame in enumerate(file.decode(stream)) if number in wanted]


CONTENDERS: dict[str, Callable[[Path, int], list[Any]]] = {"plain loop": plain, "ours": ours}


def times_ms(path: Path, num_frames: int, rounds: int) -> dict[str, list[float]]:
    """Interleaved, so that other load falls on both alike; the first round is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds + 1):
        for name, run in CONTENDERS.items():
            start_s = time.perf_counter()
            run(path, num_frames)
            if number > 0:
                measured[name].append(1000 * (time.perf_counter() - start_s))
    return measured


def measure(path: Path, num_frames: int, rounds: int) -> dict[str, Any]:
    pairs = zip(ours(path, num_frames), plain(path, num_frames), strict=True)
    measured = times_ms(path, num_frames, rounds)
    median = {name: statistics.median(times) for name, times in measured.items()}
    return {
        "same_pixels": all(np.array_equal(np.asarray(a), np.asarray(b)) for a, b in pairs),
        "times_as_fast": round(median["plain loop"] / median["ours"], 2),
        **{
            name: {"median_ms": round(median[name], 1), "fastest_ms": round(min(times), 1)}
            for name, times in measured.items()
        },
    }


def peak_mib(path: Path, num_frames: int) -> float:
    """Peak resident memory of a fresh process that looks at each frame and forgets it; libraries included; Linux."""
    command = [sys.executable, __file__, "--peak-of", str(path), str(num_frames)]
    return float(subprocess.run(command, check=True, capture_output=True).stdout)


def print_peak(path: Path, num_frames: int) -> None:
    with open_frames(Video(path, num_frames=num_frames), Spec()) as frames:
        for _ in frames:
            pass
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peak-of", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.peak_of:
        return print_peak(Path(options.peak_of[0]), int(options.peak_of[1]))
    films: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, gop in FILMS.items():
            path = Path(folder) / f"{gop}.mp4"
            make_film(path, gop)
            films[name] = {"megabytes": round(path.stat().st_size / 1e6, 1)}
            for count in COUNTS:
                films[name][f"{count} frames"] = row = measure(path, count, options.rounds)
                row["peak_mib"] = round(peak_mib(path, count))
                print(
                    f"{name:20}{count:3} frames: plain {row['plain loop']['median_ms']:8.1f} ms, "
                    f"ours {row['ours']['median_ms']:8.1f} ms, {row['times_as_fast']:.2f}×, same {row['same_pixels']}, "
                    f"{row['peak_mib']} MiB"
                )
    result = {
        "question": f"evenly spaced RGB frames of {SECONDS} s of {SIZE[0]}×{SIZE[1]} H.264 at {FPS} a second",
        "films": films,
        "rounds": options.rounds,
        "cores": len(os.sched_getaffinity(0)),
        "versions": {
            "python": platform.python_version(),
            "av": av.__version__,
            "libavcodec": ".".join(map(str, av.library_versions["libavcodec"])),
        },
    }
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
