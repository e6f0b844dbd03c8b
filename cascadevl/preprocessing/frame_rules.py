"""Which frames of a clip are looked at: one named rule, part of the preprocessing spec.

    middle    the middles of equal segments: evaluation and model cards (InternVL, eval/mvbench `get_index`)
    hf        InternVLVideoProcessor.sample_frames of transformers
    rand      a random frame of each of equal intervals: a training mode (InternVL, chat/train/dataset.py)
    fps0.5    so many a second, whatever that gives: another training mode

All of them repeat frames where a clip has fewer than are wanted, except `fps`, which never does.
"""

import random
import re
from dataclasses import dataclass

import numpy as np

from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.core.messages import Video


@dataclass(frozen=True, slots=True)
class Clip:
    """The frames `first` … `last` of a video, both included, counted from 0."""

    first: int
    last: int
    fps: float | None
    """On average; None where the video does not tell."""

    def __len__(self) -> int:
        return self.last - self.first + 1


def find_clip(video: Video, num_frames: int, fps: float | None, name: str) -> Clip:
    """Seconds become frames by the average rate, as in the released code; the end is cut to the last frame.

    Where the rate varies, these bounds are as far off as the rate is from its average. Raises MediaError.
    """
    last = num_frames - 1
    if video.start_s is None and video.end_s is None:
        return Clip(0, last, fps)
    if fps is None:
        raise MediaError(f"{name} has no times: it cannot be cut by seconds. Leave out start and end.")
    first = round((video.start_s or 0) * fps)
    if first > last:
        raise MediaError(
            f"{name} lasts {num_frames / fps:.2f} s, the clip begins at {video.start_s:g} s. Begin earlier."
        )
    return Clip(first, last if video.end_s is None else min(round(video.end_s * fps), last), fps)


def check_rule(rule: str) -> None:
    if rule not in _RULES and not _rate(rule):
        raise ConfigError(f"frame_rule is {rule!r}: expected {', '.join(_RULES)}, or fps and a number as in fps0.5.")


def takes_all(rule: str) -> bool:
    """Whether the clip alone decides how many frames there are."""
    return rule not in _RULES


def choose(rule: str, clip: Clip, num_frames: int | None, seed: int) -> list[int]:
    """Indices in order. `num_frames` may be None under `fps…` alone; `seed` matters to `rand` alone."""
    if rule in _RULES:
        assert num_frames is not None, f"the rule {rule} needs a number of frames"
        return _RULES[rule](clip, num_frames, seed)
    return _at_rate(clip, _rate(rule))[:num_frames]


def _middle(clip: Clip, num_frames: int, seed: int) -> list[int]:
    """`last` counts as the end, not as a frame before it: the released rule is one frame short, so is this."""
    segment = (clip.last - clip.first) / num_frames
    return [int(clip.first + segment / 2 + round(segment * k)) for k in range(num_frames)]


def _hf(clip: Clip, num_frames: int, seed: int) -> list[int]:
    """torch.arange(shift, total, total / n) holds float32, so that 2.9999999 may be frame 3.

    transformers refuses more frames than there are, and knows no clips: within one, counting starts anew.
    """
    step = len(clip) / num_frames
    return [clip.first + int(np.float32(step / 2 + k * step)) for k in range(num_frames)]


def _rand(clip: Clip, num_frames: int, seed: int) -> list[int]:
    """The released code never draws the last frame of an interval; here all are equally likely.

    As there, the last frame fills up where there are too few.
    """
    draw, parts = random.Random(seed), min(num_frames, len(clip))
    bounds = [k * len(clip) // parts for k in range(parts + 1)]
    drawn = [clip.first + draw.randrange(bounds[k], bounds[k + 1]) for k in range(parts)]
    return drawn + drawn[-1:] * (num_frames - parts)


def _at_rate(clip: Clip, per_s: float) -> list[int]:
    """The middle of every 1/X seconds; a clip shorter than half of that gives its own middle."""
    if clip.fps is None:
        raise MediaError(f"The rule fps{per_s:g} needs a video with times, this one has none: choose another rule.")
    seconds = np.arange(0.5 / per_s, len(clip) / clip.fps + 0.5 / per_s, 1 / per_s)
    places = [int(place) for place in np.around(seconds * clip.fps) if place < len(clip)]
    return [clip.first + place for place in places or [len(clip) // 2]]


_RULES = {"middle": _middle, "hf": _hf, "rand": _rand}


def _rate(rule: str) -> float:
    """X of fpsX; 0 for anything else."""
    match = re.fullmatch(r"fps(\d{1,4}(?:\.\d{1,6})?)", rule)
    return float(match[1]) if match else 0.0
