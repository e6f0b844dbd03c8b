"""What a question will take before it is asked: tokens, parameters, memory, products, seconds.

Only config.json, tokenizer and spec are read, and of weights that are there their headers: a model that is far too
large for this machine is estimated on it in a second.
"""

import dataclasses
import json
import mimetypes
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table
from rich.text import Text

from cascadevl.checkpoints.layouts import EMBEDDED, locate, read_json, recognise
from cascadevl.cli import doctor
from cascadevl.core.errors import CheckpointError, CheckpointNotFound, ConfigError
from cascadevl.core.files import write_json
from cascadevl.core.generation import Sampling
from cascadevl.core.messages import Conversation
from cascadevl.core.native import cache_folder
from cascadevl.core.shapes import num_tiles
from cascadevl.preprocessing.image import open_image

if TYPE_CHECKING:
    from cascadevl.engine.speed import Speed
    from cascadevl.models.config import InternVLConfig
    from cascadevl.models.costs import Parameters
    from cascadevl.preprocessing.processor import ModelInputs
    from cascadevl.preprocessing.spec_file import Spec

QUESTION = "What is in the picture?"
"""What is asked where no question is given."""

BITS = {"fp32": 32, "bf16": 16, "fp16": 16, "int8": 8, "int4": 4}
COMPUTED = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
"""Precision -> torch's name; of the others only what the weights take is told."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Estimate:
    """Tell what a question will take before it is asked: cascadevl estimate nano receipt.png "What is the total?"

    Needs config.json and the tokenizer's files, no weights. Seconds are those of this machine's CPU.
    """

    model: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="MODEL")]
    """An embedded model or a folder."""
    words: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[IMAGE …] [QUESTION]")] = ()
    """Pictures, and the question in quotes."""
    max_tiles: Annotated[int | None, tyro.conf.arg(metavar="N")] = None
    """Tile limit of each picture; None leaves it to the model."""
    max_new_tokens: Annotated[int, tyro.conf.arg(metavar="N")] = Sampling().max_new_tokens
    """Length of the answer."""
    no_time: bool = False
    """Leave out the seconds, and the calibration they need, which is made once for a processor and kept."""
    json: bool = False
    """Print one JSON object."""

    def __post_init__(self) -> None:
        if self.max_tiles is not None and self.max_tiles < 1:
            raise ConfigError(f"--max-tiles must be at least 1, got {self.max_tiles}.")
        Sampling(max_new_tokens=self.max_new_tokens)


def main(arguments: list[str]) -> int:
    order = tyro.cli(Estimate, prog="cascadevl estimate", args=arguments, config=(tyro.conf.FlagCreatePairsOff,))
    conversation = read_words(order.words)
    folder = find(order.model)
    recognise(read_json(folder / "config.json"), folder)

    from cascadevl.checkpoints.load import load_processor

    config, auto = read_sizes(folder)
    processor = load_processor(folder)
    processor.max_tokens = config.decoder.rope.longest
    inputs = processor(conversation, max_tiles=order.max_tiles)
    speeds = None if order.no_time else machine_speeds()
    told = estimate(config, processor.spec, inputs, order.max_new_tokens, speeds)
    facts = {"model": order.model, **told, "auto": auto}
    if order.json:
        print(json.dumps(facts, ensure_ascii=False))
    else:
        show(facts)
    return 0


def read_words(words: Sequence[str]) -> Conversation:
    """Pictures, and the last word is the question unless it is, or is named like, a picture."""
    pictures, question = list(words), QUESTION
    if words and not os.path.isfile(words[-1]) and not _named_like_a_picture(words[-1]):
        *pictures, question = words
    return Conversation.ask(question, [open_image(path) for path in pictures])


def _named_like_a_picture(word: str) -> bool:
    kind, _ = mimetypes.guess_type(word)
    return " " not in word and (kind or "").startswith("image/")


def find(model: str) -> Path:
    """The folder of a model that is here: nothing is fetched only to be counted."""
    remote = model.count("/") == 1 and not model.startswith((".", "/", "~")) and not Path(model).exists()
    if remote:
        raise CheckpointNotFound(
            f"There is no folder {model!r}, and nothing is fetched from the hub only to be counted. The small files "
            f"are enough: hf download {model} --include '*.json' '*.txt' '*.model' '*.jinja' --local-dir FOLDER, "
            f"and then cascadevl estimate FOLDER. Embedded: {', '.join(sorted(p.name for p in EMBEDDED.iterdir()))}."
        )
    return locate(model)


def read_sizes(folder: Path) -> "tuple[InternVLConfig, str | None]":
    """Sizes of the parts, and the precision in which `load` would compute here; None: the files do not say it."""
    import torch

    from cascadevl.checkpoints.layouts import layouts
    from cascadevl.checkpoints.load import is_tied, resolve_dtype
    from cascadevl.checkpoints.weights import entries

    raw = read_json(folder / "config.json")
    layout = layouts()[recognise(raw, folder)]
    try:
        found = {layout.current_name(name): entry for name, entry in entries(folder).items()}
    except CheckpointError:  # no weights, or not all of them yet: config.json alone speaks
        found = {}
    config = layout.read_config(raw, folder, is_tied(raw, found))
    stored = {entry.dtype for entry in found.values()}
    named = getattr(torch, str(raw.get("dtype") or raw.get("torch_dtype")).removeprefix("torch."), None)
    if not stored and isinstance(named, torch.dtype):
        stored = {named}
    if not stored:
        return config, None
    computed = str(resolve_dtype("auto", stored, torch.device("cpu"))[0]).removeprefix("torch.")
    return config, next(name for name, known in COMPUTED.items() if known == computed)


def machine_speeds() -> "dict[str, Speed]":
    """Of each precision that is computed in; measured unless this processor was measured before."""
    import torch

    from cascadevl.engine.speed import Speed, measure

    key = f"{doctor.cpu()['model']}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    folder = cache_folder()
    path = folder / "speed.json" if folder else None
    try:
        known = json.loads(path.read_text(encoding="utf-8")) if path else {}
        return {name: Speed(**known[key][name]) for name in COMPUTED}
    except (OSError, ValueError, TypeError, KeyError):  # none, of other processors, or damaged
        speeds = {name: measure(getattr(torch, dtype)) for name, dtype in COMPUTED.items()}
    if path:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_json(path, {key: {name: dataclasses.asdict(speed) for name, speed in speeds.items()}})
        except OSError:  # it is measured again next time
            pass
    return speeds


def estimate(
    config: "InternVLConfig",
    spec: "Spec",
    inputs: "ModelInputs",
    max_new_tokens: int,
    speeds: "dict[str, Speed] | None" = None,
) -> dict[str, Any]:
    """What `--json` prints of one question."""
    from cascadevl.models import costs

    num_tokens, tiles = len(inputs.token_ids), len(inputs.tiles)
    # The engine says one token even where no room is left, and does not read the last one it says.
    num_new = max(1, min(max_new_tokens, config.decoder.rope.longest - num_tokens))
    sizes = costs.parameters(config)
    products = {
        "tower": costs.tower_products(config, tiles),
        "projector": [*costs.router_products(config, tiles), *costs.projector_products(config, tiles)],
        "prefill": costs.prefill_products(config.decoder, num_tokens),
        "decode_per_token": costs.decode_products(config.decoder, num_tokens + num_new // 2),
    }
    layers = {"tower": config.vision.num_layers, "projector": 1}
    seconds = {}
    for precision, speed in (speeds or {}).items():
        taken = {
            part: speed.seconds(listed, layers.get(part, config.decoder.num_layers))
            for part, listed in products.items()
            if tiles or part not in layers
        }
        decode_s = (num_new - 1) * taken["decode_per_token"]
        answer_s = sum(taken.values()) - taken["decode_per_token"] + decode_s
        seconds[precision] = {**taken, "decode": decode_s, "answer": answer_s}
    return {
        "family": config.decoder.family,
        "prompt": prompt(config, spec, inputs),
        "new_tokens": num_new,
        "parameters": {**dataclasses.asdict(sizes), "total": sizes.total, "active": sizes.active},
        "flops": {part: costs.flops(listed) for part, listed in products.items()},
        "memory_bytes": {precision: memory(config, sizes, num_tokens, tiles, num_new, precision) for precision in BITS},
        "seconds": seconds or None,
    }


def prompt(config: "InternVLConfig", spec: "Spec", inputs: "ModelInputs") -> dict[str, Any]:
    """Tokens and pictures, as the processor made them."""
    from cascadevl.models.costs import least_tokens

    num_tokens, tiles = len(inputs.token_ids), [num_tiles(grid, spec.thumbnail) for grid in inputs.grids]
    return {
        "tokens": num_tokens,
        "text_tokens": num_tokens - inputs.num_visual_tokens,
        "visual_tokens": inputs.num_visual_tokens,
        "least_tokens": least_tokens(config, num_tokens, len(inputs.tiles)),
        "tiles": len(inputs.tiles),
        "pictures": [
            {
                "size": list(size),
                "grid": list(grid),
                "tiles": count,
                "visual_tokens": count * spec.visual_tokens_per_tile,
            }
            for size, grid, count in zip(inputs.sizes, inputs.grids, tiles, strict=True)
        ],
    }


def memory(
    config: "InternVLConfig", sizes: "Parameters", num_tokens: int, tiles: int, num_new: int, precision: str
) -> dict[str, int]:
    """Bytes of one precision; of those that are not computed in yet the weights alone, without scales."""
    from cascadevl.engine.simple import GROWTH
    from cascadevl.models import costs

    bits = BITS[precision]
    if precision not in COMPUTED:
        return {"weights": sizes.matrices * bits // 8 + 2 * (sizes.total - sizes.matrices)}
    numbers = {
        "weights": sizes.total,
        "kv_cache": costs.cache_numbers(config.decoder, num_tokens + num_new - 1),
        "tower_activations": costs.tower_activations(config, tiles),
        "prefill_activations": costs.prefill_activations(config.decoder, num_tokens),
    }
    embeddings = num_tokens * config.decoder.hidden_size if tiles else 0
    numbers["peak"] = sizes.total + max(
        embeddings + numbers["tower_activations"],
        costs.cache_numbers(config.decoder, num_tokens + GROWTH) + numbers["prefill_activations"],
        costs.cache_numbers(config.decoder, num_tokens + num_new - 1 + GROWTH),
    )
    return {name: number * bits // 8 for name, number in numbers.items()}


def show(facts: dict[str, Any]) -> None:
    """For people."""
    console = Console()
    for table in (_prompt_table(facts), _parts_table(facts), _precisions_table(facts)):
        console.print(table)
    for note in notes(facts):
        console.print(Text(f"• {note}"))


def _prompt_table(facts: dict[str, Any]) -> Table:
    told = facts["prompt"]
    table = Table("prompt", "size", "grid", "tiles", "tokens", title=Text(f"{facts['model']} ({facts['family']})"))
    for number, picture in enumerate(told["pictures"], start=1):
        (width, height), (columns, rows) = picture["size"], picture["grid"]
        counts = (str(picture["tiles"]), f"{picture['visual_tokens']:,}")
        table.add_row(f"picture {number}", f"{width}×{height}", f"{columns}×{rows}", *counts)
    table.add_row("text and template", "", "", "", f"{told['text_tokens']:,}")
    table.add_row("together", "", "", str(told["tiles"]), f"{told['tokens']:,}", style="bold")
    return table


def _parts_table(facts: dict[str, Any]) -> Table:
    sizes, flops = facts["parameters"], facts["flops"]
    table = Table("part", "parameters", "active", "FLOPs of this prompt")
    table.add_row("tower", _scaled(sizes["tower"]), "", _scaled(flops["tower"]))
    projector = sizes["projector"] + sizes["router"]
    title = "projector and router" if sizes["router"] else "projector"
    table.add_row(title, _scaled(projector), "", _scaled(flops["projector"]))
    active = _scaled(sizes["decoder_active"]) if sizes["active"] < sizes["total"] else ""
    each = f"{_scaled(flops['prefill'])}, then {_scaled(flops['decode_per_token'])} a token"
    table.add_row("decoder", _scaled(sizes["decoder"]), active, each)
    table.add_row("together", _scaled(sizes["total"]), _scaled(sizes["active"]) if active else "", "", style="bold")
    return table


ROWS = {
    "weights": "weights",
    "kv_cache": "keys and values",
    "tower_activations": "tower at work",
    "prefill_activations": "prefill at work",
    "peak": "peak",
}


def _precisions_table(facts: dict[str, Any]) -> Table:
    bytes_in, timed = facts["memory_bytes"], facts["seconds"]
    table = Table("memory")
    for precision in BITS:
        table.add_column(precision, style="bold" if precision == facts["auto"] else None)
    for row, title in ROWS.items():
        cells = [_scaled(numbers[row], "B") if row in numbers else "" for numbers in bytes_in.values()]
        table.add_row(title, *cells)
    if timed:
        table.add_section()
        firsts = [_duration(taken["answer"] - taken["decode"]) for taken in timed.values()]
        table.add_row("first token", *firsts)
        table.add_row("each further", *(_duration(taken["decode_per_token"]) for taken in timed.values()))
        table.add_row("whole answer", *(_duration(taken["answer"]) for taken in timed.values()))
    return table


def notes(facts: dict[str, Any]) -> list[str]:
    """What the tables cannot say."""
    told, auto, memory = facts["prompt"], facts["auto"], doctor.memory_gb()
    found = [f"The answer is reckoned with {facts['new_tokens']} new tokens; most end sooner."]
    if auto:
        found.append(f"On the CPU of this machine the model would compute in {auto}.")
    precision = auto or "fp32"
    peak_gb = facts["memory_bytes"][precision]["peak"] / 2**30
    if memory and peak_gb > memory.get("available", memory["total"]):
        found.append(f"It does not fit in {precision}: {peak_gb:.1f} GiB of {memory['available']} GiB that are free.")
    if told["least_tokens"] < told["tokens"]:
        found.append(f"The router of this Flash model may leave as few as {told['least_tokens']:,} prompt tokens.")
    found.append("int8 and int4: weights alone, without scales, and no seconds: see `cascadevl bench`.")
    found.append("Memory is the model's own: Python, torch and the buffers of its kernels come on top.")
    if facts["seconds"]:
        found.append("Seconds are for an idle CPU, reading pictures and loading weights not included.")
    return found


def _scaled(value: float, unit: str = "") -> str:
    """1234567 -> `1.23 M`, in powers of 1000."""
    for prefix, size in (("P", 1e15), ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if value >= size:
            return (
                f"{value / size:.3g} {prefix}{unit}" if value < 999.5 * size else f"{value / size:.0f} {prefix}{unit}"
            )
    return f"{value:.0f} {unit}".rstrip()


def _duration(seconds: float) -> str:
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    if seconds < 120:
        return f"{seconds:.3g} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
