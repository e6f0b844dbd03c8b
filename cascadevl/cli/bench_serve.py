"""Load on an OpenAI-compatible server, and what it felt like. Works without torch."""

import asyncio
import json
import os
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascadevl.core.errors import ConfigError
from cascadevl.core.files import write_json
from cascadevl.serving.load.client import Client, connect, load
from cascadevl.serving.load.figures import Limits
from cascadevl.serving.load.plot import plot
from cascadevl.serving.load.sweep import sweep
from cascadevl.serving.load.traffic import Pace, Traffic
from cascadevl.serving.load.wire import Target

KEYS = ("CASCADEVL_API_KEY", "OPENAI_API_KEY")
ROWS = {"TTFT": "ttft_ms", "ITL": "itl_ms", "TPOT": "tpot_ms", "E2E": "e2e_ms"}


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchServe:
    """Load a server: cascadevl bench serve --url http://127.0.0.1:8000 --concurrency 16

    Any OpenAI-compatible server will do. TTFT: time to the first piece of the answer. ITL: gaps between pieces. TPOT:
    time for each further token of an answer. E2E: the whole of it.
    """

    url: str
    """Where the server is, with or without /v1."""
    model: str | None = None
    """None: the first that the server lists."""
    api_key: Annotated[str | None, tyro.conf.arg(metavar="KEY")] = None
    """None: $CASCADEVL_API_KEY, or $OPENAI_API_KEY; there, others on this machine cannot read it."""
    traffic: tyro.conf.OmitArgPrefixes[Traffic] = field(default_factory=Traffic)
    rate: Annotated[float | None, tyro.conf.arg(metavar="R")] = None
    """Requests a second, whether or not others are answered (open loop); inf: all at once."""
    concurrency: Annotated[int | None, tyro.conf.arg(metavar="C")] = None
    """Clients that ask again as soon as they are answered (closed loop); with --rate, most requests under way."""
    burstiness: float = 1.0
    """With --rate: shape of the gamma distribution of the gaps. 1: Poisson; less: bursts; inf: a clock."""
    goodput: Annotated[tuple[str, ...], tyro.conf.arg(metavar="LIMIT")] = ()
    """What a good answer keeps within, in ms: ttft:500 tpot:50 e2e:9000."""
    sweep: bool = False
    """Double the rate, or the clients, until it is too much."""
    warmup: Annotated[int, tyro.conf.arg(metavar="N")] = 0
    """Requests before, that do not count."""
    seed: int = 0
    """Another seed asks other questions, so that no cache knows them from the run before."""
    extra: Annotated[str, tyro.conf.arg(metavar="JSON")] = "{}"
    """Fields for every body, as a JSON object, such as '{"min_tokens": 64}'."""
    timeout_s: float = 600.0
    """An answer that takes longer has failed."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write what was measured, with all settings."""
    plot: Annotated[Path | None, tyro.conf.arg(metavar="FILE.png")] = None
    """Draw throughput and latency over the load."""

    def __post_init__(self) -> None:
        if self.warmup < 0:
            raise ConfigError(f"warmup must be at least 0, got {self.warmup}.")
        if not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be above 0, got {self.timeout_s}.")
        if self.sweep and self.rate is not None and self.rate == float("inf"):
            raise ConfigError("A sweep begins at a finite --rate.")
        for path in (self.json, self.plot):
            if path is not None and not path.absolute().parent.is_dir():
                raise ConfigError(f"There is no folder {path.absolute().parent} to write {path.name} in.")


def main(arguments: list[str]) -> int:
    order = tyro.cli(BenchServe, prog="cascadevl bench serve", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    pace = Pace(rate=order.rate, concurrency=order.concurrency, burstiness=order.burstiness)
    api_key = order.api_key or next((os.environ[name] for name in KEYS if os.environ.get(name)), None)
    target, limits, extra = Target.of(order.url, api_key), Limits.read(order.goodput), _fields(order.extra)
    found = asyncio.run(measure(order, target, pace, limits, extra))
    if order.json:
        write_json(order.json, _spelled(found))
    if order.plot:
        name = "rate" if pace.rate is not None else "concurrency"
        by = "requests offered a second" if pace.rate is not None else "clients"
        at = [row["load"][name] for row in found["loads"]]
        plot(order.plot, str(found["model"]), by, at, found["loads"], found["knee"])
    show(found)
    return 0 if any(row["failed"] < row["requests"] for row in found["loads"]) else 1


def _spelled(found: Any) -> Any:
    """JSON has no infinity."""
    if isinstance(found, dict):
        return {name: _spelled(value) for name, value in found.items()}
    if isinstance(found, list):
        return [_spelled(value) for value in found]
    return "inf" if found == float("inf") else found


def _fields(text: str) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if not isinstance(found, dict):
        raise ConfigError(f"--extra takes a JSON object, got {text!r:.80}.")
    return found


async def measure(
    order: BenchServe, target: Target, pace: Pace, limits: Limits | None, extra: dict[str, Any]
) -> dict[str, Any]:
    """What --json writes."""
    client = await connect(target, order.model, extra, order.timeout_s, order.traffic)
    if order.warmup:
        warm = replace(order.traffic, requests=order.warmup)
        await load(client, warm, Pace(concurrency=order.concurrency or 4), f"{order.seed} warm-up")

    async def run(at: Pace) -> dict[str, Any]:
        # Every load asks what no load before it asked.
        seed = f"{order.seed} {at.rate} {at.concurrency}"
        row, _ = await load(client, order.traffic, at, seed, limits)
        return {"load": asdict(at), **row}

    rows, knee = await sweep(pace, run) if order.sweep else ([await run(pace)], None)
    return {**_settings(order, client, limits), "loads": rows, "knee": knee}


def _settings(order: BenchServe, client: Client, limits: Limits | None) -> dict[str, Any]:
    return {
        "url": order.url,
        "model": client.model,
        "traffic": asdict(order.traffic),
        "limits_ms": asdict(limits) if limits else None,
        "seed": order.seed,
        "warmup": order.warmup,
        "extra": dict(client.extra),
        "exact_lengths": "ignore_eos" in client.dialect,
    }


def show(found: dict[str, Any]) -> None:
    """For people; plain where nobody sees colours."""
    framed = Console().is_terminal
    console = Console() if framed else Console(width=160)
    console.print(_table(found, framed))
    for note in notes(found):
        console.print(Text(f"• {note}"))


def _table(found: dict[str, Any], framed: bool) -> Table:
    """A column for each load."""
    rows = found["loads"]
    table = Table("", title=f"{found['model']} at {found['url']}", box=box.HEAVY_HEAD if framed else None)
    for number, row in enumerate(rows):
        table.add_column(_load(row["load"]) + (" ← knee" if number == found["knee"] else ""), justify="right")
    table.add_row("answered", *(f"{row['requests'] - row['failed']} of {row['requests']}" for row in rows))
    table.add_row("requests/s", *(f"{row['requests_per_s']:.2f}" for row in rows))
    if found["limits_ms"]:
        table.add_row("good requests/s", *(f"{row['goodput_per_s']:.2f}" for row in rows))
    table.add_row("output tokens/s", *(f"{row['output_tokens_per_s']:.1f}" for row in rows))
    table.add_row("prompt tokens/s", *(f"{row['prompt_tokens_per_s']:.1f}" for row in rows))
    for title, name in ROWS.items():
        for part in ("mean", "median", "p99"):
            cells = ("" if row[name] is None else f"{row[name][part]:.1f}" for row in rows)
            table.add_row(f"{title} {part}, ms", *cells)
    return table


def _load(load: dict[str, Any]) -> str:
    if load["rate"] is None:
        return f"{load['concurrency']} clients"
    return f"{load['rate']:g}/s" + (f", at most {load['concurrency']}" if load["concurrency"] else "")


def notes(found: dict[str, Any]) -> list[str]:
    """What the table cannot say."""
    told = []
    for row in found["loads"]:
        told += [f"{_load(row['load'])}: {count} × {why}" for why, count in row["problems"].items()]
        if row["client"]["busy"] > 0.5:
            told.append(f"{_load(row['load'])}: this client itself was busy {row['client']['busy']:.0%} of the time.")
        if row["client"]["late_ms_p99"] > 50:
            told.append(f"{_load(row['load'])}: requests left up to {row['client']['late_ms_p99']:.0f} ms late.")
    if not found["exact_lengths"]:
        told.append("The server does not take ignore_eos: answers may be shorter than asked for.")
    if any(row["tokens_counted"] == "pieces" for row in found["loads"]):
        told.append("The server tells no usage: pieces are counted as tokens.")
    return told
