"""Parts become a folder that others read too; either all of it or none."""

import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from cascadevl.checkpoints.layouts import Layout, layouts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.pieces import Piece, file_shapes, rows_of
from cascadevl.checkpoints.weights import write_shards
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import atomic_folder, write_json, write_text
from cascadevl.models.linear import adapter_names
from cascadevl.models.quant_linear import QuantLinear

MAX_SHARD_BYTES = 5_000_000_000


def save_parts(
    parts: Parts, folder: str | os.PathLike[str], *, layout: str = "hf", max_shard_bytes: int = MAX_SHARD_BYTES
) -> Path:
    """Write weights, config, tokenizer, template and preprocessing spec in the layout asked for."""
    target = Path(folder)
    check_target(target, layout)
    with atomic_folder(target) as work:
        write_parts(parts, work, layouts()[layout], max_shard_bytes)
    return target


def check_target(target: Path, layout: str) -> None:
    """Refuse, before any work, a layout that does not exist and a place that holds something else."""
    if layout not in layouts():
        raise ConfigError(f"Unknown layout {layout!r}: expected {' or '.join(layouts())}.")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file()):
        raise ConfigError(f"{target} exists and is no model folder: choose another place.")


def write_parts(parts: Parts, folder: Path, layout: Layout, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Fill an existing folder. Callers who want all or nothing use `save_parts`."""
    write_json(folder / "config.json", layout.write_config(parts))  # first: it refuses what the layout cannot say
    write_shards(folder, named_tensors(parts, layout), max_shard_bytes)
    for name, text in parts.tokenizer.files.items():
        write_text(folder / name, text) if isinstance(text, str) else (folder / name).write_bytes(text)
    write_json(folder / "generation_config.json", {**parts.generation, "eos_token_id": list(parts.stop_ids)})
    layout.write_extras(parts, folder)
    parts.spec.save(folder)
    if parts.card is not None:
        write_text(folder / "README.md", parts.card)


def named_tensors(parts: Parts, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of the layout, cut and joined as it has them; one of them in memory at a time."""
    if attached := adapter_names(parts.model):
        raise ConfigError(
            f"The model has adapters attached ({', '.join(attached)}): merge them or take them off first."
        )
    if any(isinstance(module, QuantLinear) for module in parts.model.modules()):
        raise ConfigError(
            "The model's weights were rounded when it was loaded, and the official layouts hold whole ones: "
            "load it without quant to save it."
        )
    ours = dict(parts.model.named_parameters())
    pieces = {name: layout.pieces(name, parts.model.config, ()) for name in ours}
    shapes = file_shapes({name: parameter.shape for name, parameter in ours.items()}, pieces)
    wanted: dict[str, list[tuple[str, Piece]]] = {}
    for name, found in pieces.items():
        for piece in found:
            wanted.setdefault(piece.name, []).append((name, piece))
    for stored, sources in wanted.items():
        name, piece = sources[0]
        if piece.rows is None:
            yield stored, ours[name].detach()
            continue
        joined = ours[name].detach().new_empty(shapes[stored])
        for name, piece in sources:
            rows_of(joined, piece.start, piece.rows).copy_(rows_of(ours[name].detach(), piece.at, piece.rows))
        yield stored, joined
