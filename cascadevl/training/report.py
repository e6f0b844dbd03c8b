"""report.html of a run, one file that needs nothing else; and the card of the model that came out of it."""

import html
import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
import yaml

import cascadevl
from cascadevl.core.config import to_dict
from cascadevl.core.files import write_text
from cascadevl.core.hardware import cpu_flags
from cascadevl.training.config import TrainConfig

CURVES = ("loss", "token_accuracy", "lr", "gradient_norm", "tokens_per_s", "mfu", "memory_bytes")
PACKAGES = ("torch", "numpy", "safetensors", "tokenizers", "pillow")
WIDTH, HEIGHT, EDGE = 560, 180, 44


@dataclass(frozen=True, kw_only=True, slots=True)
class Facts:
    """What is known of a run when it ends."""

    config: TrainConfig
    rows: Sequence[Mapping[str, Any]]
    """log.jsonl."""
    spec_hash: str
    base: str
    learned: int
    """Numbers that learned."""
    total: int
    data: Sequence[Mapping[str, Any]]
    """Of each source: name, rows, draws of an epoch."""
    num_read: int
    bad: Mapping[str, int]
    """Why samples were refused, and how many."""
    device: str
    num_ranks: int

    @property
    def environment(self) -> dict[str, str]:
        """Versions and machine."""
        versions = {"cascadevl": cascadevl.__version__, **{package: metadata.version(package) for package in PACKAGES}}
        machine = f"{platform.machine()}, {'avx512' if 'avx512f' in cpu_flags() else 'no avx512'}"
        return {
            "python": platform.python_version(),
            **versions,
            "machine": f"{platform.system()} {machine}",
            "device": f"{self.device} × {self.num_ranks}, {torch.get_num_threads()} threads",
        }


def read_rows(path: Path) -> list[dict[str, Any]]:
    """Of a log."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.is_file() else []


def write_report(path: Path, facts: Facts) -> None:
    """Curves, data, resolved config and environment."""
    config = yaml.safe_dump(to_dict(facts.config), sort_keys=False, allow_unicode=True)
    refused = sum(facts.bad.values())
    parts = [
        f"<h1>{html.escape(facts.config.recipe)}</h1>",
        f"<p>{html.escape(summary(facts))}</p>",
        *(_figure(facts.rows, key) for key in CURVES),
        "<h2>Data</h2>",
        _table(["source", "rows", "draws in an epoch"], [[d["name"], d["rows"], d["draws"]] for d in facts.data]),
        f"<p>{facts.num_read:,} samples were read by the first rank, {refused:,} of them refused.</p>",
        _table(["reason", "samples"], [[reason, count] for reason, count in facts.bad.items()]) if refused else "",
        "<h2>Settings</h2>",
        f"<pre>{html.escape(config)}</pre>",
        "<h2>Environment</h2>",
        _table(["", ""], [*facts.environment.items(), ("preprocessing spec", facts.spec_hash)]),
    ]
    write_text(path, PAGE.format(title=html.escape(facts.config.recipe), body="\n".join(parts)))


def summary(facts: Facts) -> str:
    """One sentence."""
    if not facts.rows:
        return "No step was taken."
    first, last = facts.rows[0], facts.rows[-1]
    return (
        f"{last['step']} steps over {last['samples']:,} samples and {last['tokens']:,} tokens, from {facts.base}: "
        f"the loss went from {first['loss']:.4g} to {last['loss']:.4g}. {facts.learned:,} of {facts.total:,} numbers "
        "learned."
    )


def model_card(facts: Facts, *, adapter: bool = False) -> str:
    """README.md with the metadata that hubs read."""
    lines = [
        "---",
        f"base_model: {json.dumps(facts.base)}",
        f"library_name: {'peft' if adapter else 'transformers'}",
        "pipeline_tag: image-text-to-text",
        "tags: [internvl, cascadevl]",
        "---",
        "",
        f"# {facts.config.recipe}",
        "",
        summary(facts),
        "",
        f"Trained by `cascadevl train {facts.config.recipe}`; the resolved settings stand in config.yaml and in "
        "report.html of the run.",
        "",
        "| | |",
        "|---|---|",
        f"| base model | {facts.base} |",
        f"| preprocessing spec | {facts.spec_hash} |",
        "| data | " + ", ".join(f"{d['name']} ({d['rows']:,} rows)" for d in facts.data) + " |",
        f"| refused samples | {sum(facts.bad.values())} of {facts.num_read} |",
        *(f"| {key} | {value} |" for key, value in facts.environment.items()),
        "",
        "It was not evaluated by this run: its loss is that of the data above. The licences of base model and data "
        "apply.",
    ]
    return "\n".join(lines) + "\n"


def _figure(rows: Sequence[Mapping[str, Any]], key: str) -> str:
    points = [(row["step"], float(row[key])) for row in rows if key in row]
    return f"<figure><figcaption>{key}</figcaption>{curve(points)}</figure>" if len(points) > 1 else ""


def curve(points: Sequence[tuple[int, float]]) -> str:
    """An SVG line with the least and the greatest value at its axis."""
    xs, ys = [x for x, _ in points], [y for _, y in points]
    low, high = min(ys), max(ys)
    across, up = max(xs[-1] - xs[0], 1), (high - low) or 1.0
    places = " ".join(
        f"{EDGE + (WIDTH - EDGE) * (x - xs[0]) / across:.1f},{HEIGHT - 16 - (HEIGHT - 32) * (y - low) / up:.1f}"
        for x, y in points
    )
    labels = [(0, HEIGHT - 12, f"{low:.3g}"), (0, 20, f"{high:.3g}"), (EDGE, HEIGHT - 1, str(xs[0]))]
    texts = "".join(f'<text x="{x}" y="{y}">{text}</text>' for x, y, text in labels)
    end = f'<text x="{WIDTH}" y="{HEIGHT - 1}" text-anchor="end">{xs[-1]}</text>'
    line = f'<polyline points="{places}"/>'
    return f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img">{line}{texts}{end}</svg>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    def row(cells: Sequence[Any], tag: str) -> str:
        told = (f"{cell:,}" if isinstance(cell, int) else html.escape(str(cell)) for cell in cells)
        return "<tr>" + "".join(f"<{tag}>{cell}</{tag}>" for cell in told) + "</tr>"

    return f"<table>{row(head, 'th')}{''.join(row(cells, 'td') for cells in rows)}</table>"


PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>{title}</title><style>
body {{ font: 15px/1.5 system-ui, sans-serif; max-width: 62rem; margin: 2rem auto; padding: 0 1rem; }}
figure {{ display: inline-block; width: 29rem; max-width: 100%; margin: 0 1rem 1rem 0; }}
svg polyline {{ fill: none; stroke: #2060c0; stroke-width: 1.5; }}
svg text {{ font-size: 11px; fill: #555; }}
td, th {{ text-align: left; padding: 0.1rem 1rem 0.1rem 0; }}
pre {{ background: #f4f4f4; padding: 1rem; overflow: auto; }}
</style></head><body>
{body}
</body></html>
"""
