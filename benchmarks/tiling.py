"""How long does a Full HD JPEG take to become tiles, against transformers' PIL processor?

    python benchmarks/tiling.py --json benchmarks/results/tiling.json

From the bytes of the file to tiles in memory, on one thread, the three in turn. Ours are uint8: normalising
is left to whoever owns the device. Theirs are normalised floats, since that is what their processor gives.
CASCADEVL_NATIVE=0 measures `pil` as it is without a C compiler. Needs transformers (the extra `dev`).
"""

import argparse
import functools
import io
import json
import platform
import random
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import PIL
import torch
from PIL import Image, ImageDraw

from cascadevl.preprocessing.image import open_image
from cascadevl.preprocessing.resize import native_resize
from cascadevl.preprocessing.tiling import Tiling

SIZE = (1920, 1080)


def page() -> bytes:
    """A JPEG somewhat like a photographed slide: smooth light, sensor noise, fine texture, text."""
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[0 : SIZE[1], 0 : SIZE[0]]
    light = np.stack([columns * 255 / SIZE[0], rows * 255 / SIZE[1], 128 + 0 * rows], axis=-1)
    texture = 60 * np.sin(columns / 30 + 4 * np.sin(rows / 90)) * np.cos(rows / 23)
    noisy = light + texture[..., None] + generator.normal(0, 4, light.shape)
    image = Image.fromarray(noisy.clip(0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for number in range(40):
        left, top = generator.uniform(0, 1500), generator.uniform(0, 1040)
        text = f"Invoice {number}: {number * 37} EUR, due in {number} days"
        draw.text((left, top), text, fill="black", font_size=28)
    file = io.BytesIO()
    image.save(file, "JPEG", quality=90)
    return file.getvalue()


def ours(data: bytes, resize: Any) -> Any:
    return Tiling(resize=resize)(open_image(data))[1]


@functools.cache
def their_processor() -> Any:
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import GotOcr2ImageProcessorPil

    return GotOcr2ImageProcessorPil(
        size={"height": 448, "width": 448},
        crop_to_patches=True,
        image_mean=[0.485, 0.456, 0.406],
        image_std=[0.229, 0.224, 0.225],
    )


def theirs(data: bytes) -> Any:
    return their_processor()(Image.open(io.BytesIO(data)), return_tensors="pt")["pixel_values"]


CONTENDERS: dict[str, Callable[[bytes], Any]] = {
    "transformers": theirs,
    "pil": functools.partial(ours, resize="pil"),
    "torch_uint8": functools.partial(ours, resize="torch_uint8"),
}


def times_ms(data: bytes, rounds: int) -> dict[str, list[float]]:
    """Interleaved, so that other load falls on all alike; the first round is not counted."""
    measured: dict[str, list[float]] = {name: [] for name in CONTENDERS}
    for number in range(rounds + 1):
        for name, run in CONTENDERS.items():
            start_s = time.perf_counter()
            run(data)
            if number > 0:
                measured[name].append(1000 * (time.perf_counter() - start_s))
    return measured


def peak_mib(name: str, data: bytes) -> float:
    """Peak resident memory of a fresh process that does this alone, ten times; libraries included; Linux."""
    command = [sys.executable, __file__, "--peak-of", name]
    return float(subprocess.run(command, check=True, capture_output=True, input=data).stdout)


def print_peak(name: str, data: bytes) -> None:
    for _ in range(10):
        CONTENDERS[name](data)
    # Not getrusage: its maximum is inherited from the process that started this one.
    status = Path("/proc/self/status").read_text()
    print(int(status.split("VmHWM:")[1].split()[0]) / 1024)


def disagreements(data: bytes) -> dict[str, float]:
    """Pixels against plain Pillow, and grids against transformers over thousands of sizes."""
    from transformers.models.got_ocr2.image_processing_pil_got_ocr2 import get_optimal_tiled_canvas

    generator = random.Random(0)
    sizes = [(generator.randint(1, 4000), generator.randint(1, 4000)) for _ in range(10_000)]
    grid = Tiling().grid
    wrong = sum(grid(*size) != get_optimal_tiled_canvas(size[::-1], (448, 448), 1, 12) for size in sizes)
    their_processor().do_rescale = their_processor().do_normalize = False
    expected = theirs(data).short()
    their_processor().do_rescale = their_processor().do_normalize = True
    apart = {name: (ours(data, name).short() - expected).abs() for name in ("pil", "torch_uint8")}
    figures: dict[str, float] = {"sizes": len(sizes), "other_grids": wrong}
    for name, difference in apart.items():
        figures[f"{name}_most_levels_apart"] = int(difference.max())
        figures[f"{name}_values_apart"] = (difference > 0).float().mean().item()
    return figures


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--peak-of", choices=CONTENDERS, help=argparse.SUPPRESS)
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.peak_of:
        return print_peak(options.peak_of, sys.stdin.buffer.read())
    data = page()
    measured = times_ms(data, options.rounds)
    median = {name: statistics.median(times) for name, times in measured.items()}
    result: dict[str, Any] = {
        "question": f"{SIZE[0]}×{SIZE[1]} JPEG of {len(data)} bytes to at most 12 tiles and a thumbnail",
        "contenders": {
            name: {
                "median_ms": round(median[name], 2),
                "fastest_ms": round(min(times), 2),
                "times_as_fast": round(median["transformers"] / median[name], 2),
                "peak_mib": round(peak_mib(name, data)),
            }
            for name, times in measured.items()
        },
        "pil_in_c": native_resize() is not None,
        "agreement": disagreements(data),
        "rounds": options.rounds,
        "threads": 1,
        "versions": versions(),
    }
    print(f"{result['question']}; one thread, median of {options.rounds}, interleaved")
    print(f"pil is {'C' if result['pil_in_c'] else 'Pillow itself'}\n")
    print(f"{'':14}{'ms':>8}{'fastest':>9}{'ratio':>8}{'peak MiB':>10}")
    for name, row in result["contenders"].items():
        print(
            f"{name:14}{row['median_ms']:8.1f}{row['fastest_ms']:9.1f}{row['times_as_fast']:7.2f}×{row['peak_mib']:10}"
        )
    print()
    for part in ("agreement", "versions"):
        print(part + ":", ", ".join(f"{key} {value}" for key, value in result[part].items()))
    if options.json:
        options.json.parent.mkdir(parents=True, exist_ok=True)
        options.json.write_text(json.dumps(result, indent=2, ensure_ascii=False) + "\n")


def versions() -> dict[str, str]:
    import transformers

    return {
        "python": platform.python_version(),
        "pillow": PIL.__version__,
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "cpu": torch.backends.cpu.get_cpu_capability(),
    }


if __name__ == "__main__":
    main()
