"""What is asked and when: questions and pictures made of a seed, arrivals of a gamma process.

Pictures are drawn, not noise: they weigh a few kilobytes, so that the client's own work stays small, and a server
decodes and encodes them like any other.
"""

import base64
import io
import math
import random
import re
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageDraw

from cascadevl.core.errors import ConfigError

WORDS = (
    *("river", "cloud", "table", "seven", "paper", "green", "house", "music", "light", "stone", "bread", "north"),
    *("glass", "horse", "apple", "chair", "ocean", "clock", "plant", "wheel", "sugar", "night", "smile", "train"),
)


@dataclass(frozen=True, kw_only=True, slots=True)
class Traffic:
    """What is asked."""

    requests: int = 64
    """How many; of a sweep, at each load."""
    input_words: tuple[int, int] = (8, 16)
    """Least and most words of a question."""
    output_tokens: int = 64
    """Length of an answer: exactly, where the server takes `ignore_eos`, and at most, where it does not."""
    images_share: float = 0.0
    """Share of the questions that show a picture."""
    repeated_share: float = 0.0
    """Share of these pictures that were shown before."""
    image_size: str = "448x448"
    """Width and height in pixels."""

    def __post_init__(self) -> None:
        for name in ("requests", "output_tokens"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} must be at least 1, got {getattr(self, name)}.")
        least, most = self.input_words
        if not 1 <= least <= most:
            raise ConfigError(f"input_words must be 1 ≤ least ≤ most, got {least} and {most}.")
        for name in ("images_share", "repeated_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name} is a share: expected 0 … 1, got {getattr(self, name)}.")
        if not re.fullmatch(r"[1-9]\d{0,4}x[1-9]\d{0,4}", self.image_size):
            raise ConfigError(f"image_size is {self.image_size!r}; expected WIDTHxHEIGHT in pixels, such as 448x448.")

    @property
    def size(self) -> tuple[int, int]:
        width, height = self.image_size.split("x")
        return int(width), int(height)


@dataclass(frozen=True, kw_only=True, slots=True)
class Pace:
    """When it is asked. With a rate, requests come whether or not others are answered; without, `concurrency` clients
    ask again as soon as they are answered. With both, at most so many requests are under way."""

    rate: float | None = None
    """Requests a second."""
    concurrency: int | None = None
    """Requests under way."""
    burstiness: float = 1.0
    """Shape of the gamma distribution of the gaps: 1 is a Poisson process, less comes in bursts, inf is a clock."""

    def __post_init__(self) -> None:
        if self.rate is None and self.concurrency is None:
            raise ConfigError("Give --rate (requests a second, open loop) or --concurrency (clients, closed loop).")
        if self.rate is not None and not self.rate > 0:
            raise ConfigError(f"rate must be above 0 requests a second, got {self.rate}.")
        if self.concurrency is not None and self.concurrency < 1:
            raise ConfigError(f"concurrency must be at least 1, got {self.concurrency}.")
        if not self.burstiness > 0:
            raise ConfigError(f"burstiness must be above 0, got {self.burstiness}.")


@dataclass(frozen=True, slots=True)
class Question:
    text: str
    picture: str | None = None
    """A data URL."""

    def messages(self) -> list[dict[str, Any]]:
        if self.picture is None:
            return [{"role": "user", "content": self.text}]
        shown = {"type": "image_url", "image_url": {"url": self.picture}}
        return [{"role": "user", "content": [shown, {"type": "text", "text": self.text}]}]


def questions(traffic: Traffic, seed: str) -> list[Question]:
    """The same seed asks the same; another shares no picture with it. Shares are kept exactly, not on average."""
    rng, num = random.Random(seed), traffic.requests
    pictured = set(rng.sample(range(num), round(traffic.images_share * num)))
    # The first picture cannot have been shown before.
    num_repeated = min(round(traffic.repeated_share * len(pictured)), max(0, len(pictured) - 1))
    repeated = set(rng.sample(sorted(pictured)[1:], num_repeated))
    asked, shown = [], list[str]()
    for number in range(num):
        text = " ".join(rng.choices(WORDS, k=rng.randint(*traffic.input_words)))
        if number not in pictured:
            asked.append(Question(text))
            continue
        if number not in repeated:
            shown.append(picture(traffic.size, f"{seed} {number}"))
            asked.append(Question(text, shown[-1]))
        else:
            asked.append(Question(text, rng.choice(shown)))
    return asked


def picture(size: tuple[int, int], seed: str) -> str:
    """A data URL: some shapes on a plain ground, as PNG."""
    rng, (width, height) = random.Random(seed), size

    def colour() -> tuple[int, int, int]:
        return rng.randrange(256), rng.randrange(256), rng.randrange(256)

    image = Image.new("RGB", size, colour())
    pen = ImageDraw.Draw(image)
    for _ in range(8):
        across, down = sorted(rng.choices(range(width), k=2)), sorted(rng.choices(range(height), k=2))
        box = (across[0], down[0], across[1], down[1])
        (pen.ellipse if rng.random() < 0.5 else pen.rectangle)(box, fill=colour())
    file = io.BytesIO()
    image.save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def arrivals(num: int, pace: Pace, seed: str) -> np.ndarray:
    """Seconds from the start at which each of `num` requests is due; the last exactly at num / rate, so that what is
    offered is the rate asked for whatever was drawn."""
    if pace.rate is None or math.isinf(pace.rate):
        return np.zeros(num)
    gaps = np.ones(num)
    if not math.isinf(pace.burstiness):
        rng = np.random.default_rng(list(seed.encode()))
        gaps = rng.gamma(shape=pace.burstiness, scale=1 / (pace.rate * pace.burstiness), size=num)
    due_s = gaps.cumsum()
    return due_s * (num / pace.rate / due_s[-1])
