"""CPU seconds of `cascadevl ask` from a cold process, imports included; target: under 4.

python benchmarks/ask_cold.py [--repeats 7] [--json OUT]
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from PIL import Image, ImageDraw, ImageFont


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    cpu, wall = [], []
    with tempfile.TemporaryDirectory() as scratch:
        picture = Path(scratch) / "line.png"
        image = Image.new("RGB", (448, 224), "white")
        ImageDraw.Draw(image).text((30, 80), "quiet harbour", font=ImageFont.load_default(size=40), fill="black")
        image.save(picture)
        command = [sys.executable, "-m", "cascadevl", "ask", str(picture), "Read the text."]
        for _ in range(arguments.repeats):
            before, started = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            after = resource.getrusage(resource.RUSAGE_CHILDREN)
            cpu.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
            wall.append(time.perf_counter() - started)
    row = {"cpu_s": round(statistics.median(cpu), 2), "wall_s": round(statistics.median(wall), 2)}
    print(json.dumps(row))
    if arguments.json:
        arguments.json.write_text(json.dumps(row) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
