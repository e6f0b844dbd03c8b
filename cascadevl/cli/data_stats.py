"""How long samples are and what is learned from them: counts by data set, histograms of tokens and tiles."""

import json
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascadevl.checkpoints.layouts import locate
from cascadevl.data.check import Check
from cascadevl.data.sources import open_data

BAR = 40
"""Characters of the longest bar."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stats:
    """Count tokens and tiles of every sample, without decoding a picture."""

    path: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="PATH")]
    """A file (.jsonl, .json, .parquet, .tar), a folder of them, or an InternVL meta file."""
    model: str = "nano"
    """Whose tokens are counted: an embedded model, a folder, or a hub id."""
    format: Literal["auto", "conversations", "messages", "columns", "interleaved"] = "auto"
    """Form of the rows; auto is that of the first readable row of each file."""
    root: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Where relative paths of pictures begin; None: where the file lies."""
    json: bool = False
    """Print one JSON object."""


@dataclass(slots=True)
class Counts:
    """Sums over the samples of a data set that can be read."""

    name: str
    repeat: float
    num_samples: int = 0
    num_bad: int = 0
    num_tokens: int = 0
    num_visual: int = 0
    num_trained: int = 0
    num_tiles: int = 0
    tokens: Counter[int] = field(default_factory=Counter)
    """Upper bound, a power of two -> samples with at most that many tokens, and more than half."""
    tiles: Counter[int] = field(default_factory=Counter)
    """Tiles -> samples that have so many."""

    def facts(self) -> dict[str, Any]:
        names = ("name", "repeat", "num_samples", "num_bad", "num_tokens", "num_visual", "num_trained", "num_tiles")
        histograms = {"tokens": dict(sorted(self.tokens.items())), "tiles": dict(sorted(self.tiles.items()))}
        return {**{name: getattr(self, name) for name in names}, "share_trained": self.share_trained, **histograms}

    @property
    def share_trained(self) -> float:
        return self.num_trained / self.num_tokens if self.num_tokens else 0.0


def stats(order: Stats) -> int:
    datasets = open_data(order.path, order.format, order.root)
    locate(order.model)
    from cascadevl.checkpoints.load import load_processor
    from cascadevl.data.lengths import Lengths

    check = Check(count_tokens=Lengths(load_processor(order.model)))
    counted = []
    for dataset in datasets:
        counts = Counts(dataset.source.name, dataset.repeat)
        for checked in check([dataset]):
            # What training would refuse is not counted, even where it could be mended.
            if checked.length is None or checked.problems:
                counts.num_bad += 1
                continue
            length = checked.length
            counts.num_samples += 1
            counts.num_tokens += length.num_tokens
            counts.num_visual += length.num_visual
            counts.num_trained += length.num_trained
            counts.num_tiles += length.num_tiles
            counts.tokens[1 << (length.num_tokens - 1).bit_length()] += 1
            counts.tiles[length.num_tiles] += 1
        counted.append(counts)
    if order.json:
        print(json.dumps([counts.facts() for counts in counted], ensure_ascii=False))
    else:
        _print(counted)
    return 0


def _print(counted: list[Counts]) -> None:
    table = Table("data set", "samples", "repeat", "bad", "tokens", "visual", "trained", "tiles")
    for counts in counted:
        table.add_row(
            Text(counts.name),
            f"{counts.num_samples:,}",
            f"{counts.repeat:g}",
            f"{counts.num_bad:,}",
            f"{counts.num_tokens:,}",
            f"{counts.num_visual / counts.num_tokens if counts.num_tokens else 0:.1%}",
            f"{counts.share_trained:.1%}",
            f"{counts.num_tiles:,}",
        )
    console = Console()
    console.print(table)
    tokens, tiles = Counter[int](), Counter[int]()
    for counts in counted:
        tokens.update(counts.tokens)
        tiles.update(counts.tiles)
    for name, histogram, sign in (("tokens", tokens, "≤ "), ("tiles", tiles, "")):
        console.print(Text(f"\n{name} of a sample"))
        for line in bars(histogram, sign):
            console.print(Text(line))


def bars(histogram: Counter[int], sign: str = "") -> list[str]:
    """A line for each bin with its bound, a bar and its count."""
    longest = max(histogram.values(), default=0)
    width = max((len(f"{sign}{bound:,}") for bound in histogram), default=0)
    return [
        f"{f'{sign}{bound:,}':>{width}} {'█' * max(1, round(BAR * count / longest)):<{BAR}} {count:,}"
        for bound, count in sorted(histogram.items())
    ]
