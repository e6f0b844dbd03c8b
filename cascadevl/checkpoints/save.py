"""Parts become a folder that others read too; either all of it or none."""

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from torch import Tensor

from cascadevl.checkpoints.layouts import Layout, layouts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.pieces import rows_of
from cascadevl.checkpoints.quantized_save import FewBits, Sources, placed, whole_parameters, write_settings
from cascadevl.checkpoints.weights import write_shards
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import atomic_folder, writable_folder, write_json, write_text
from cascadevl.models.linear import adapter_names

MAX_SHARD_BYTES = 5_000_000_000


def save_parts(
    parts: Parts, folder: str | os.PathLike[str], *, layout: str = "hf", max_shard_bytes: int = MAX_SHARD_BYTES
) -> Path:
    """Write weights, config, tokenizer, template and preprocessing spec in the layout asked for."""
    if not isinstance(folder, str | os.PathLike) or not os.fspath(folder):
        raise ConfigError(f"The folder to write is named by a text or a path, got {folder!r:.80}.")
    target = Path(folder)
    check_target(target, layout)
    with atomic_folder(target) as work:
        write_parts(parts, work, layouts()[layout], max_shard_bytes)
    return target


def check_target(target: Path, layout: str) -> None:
    """Refuse, before any work, a layout that does not exist and a place that holds something else or takes nothing."""
    if layout not in layouts():
        raise ConfigError(f"Unknown layout {layout!r}: expected {' or '.join(layouts())}.")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file()):
        raise ConfigError(f"{target} exists and is no model folder: choose another place.")
    writable_folder(target.parent)


def write_parts(parts: Parts, folder: Path, layout: Layout, max_shard_bytes: int = MAX_SHARD_BYTES) -> None:
    """Fill an existing folder. Callers who want all or nothing use `save_parts`."""
    config = layout.write_config(parts) | write_settings(parts, layout)
    write_json(folder / "config.json", config)  # first: it refuses what the layout cannot say
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
    ours, few_bits = whole_parameters(parts.model), FewBits(parts.model)
    for stored, sources in placed(parts, layout).items():
        name, piece = sources[0]
        if any(name in few_bits for name, _ in sources):
            yield from few_bits.stored(stored, sources)
        elif piece.rows is None:
            yield stored, ours[name].detach()
        else:
            yield stored, _joined(ours, sources)


def _joined(ours: Mapping[str, Tensor], sources: Sources) -> Tensor:
    """Rows of several of our tensors, as the file has them."""
    first = ours[sources[0][0]].detach()
    num_rows = max(piece.start + (piece.rows or 0) for _, piece in sources)
    joined = first.new_empty(num_rows, *first.shape[-1:][: first.ndim - 1])
    for name, piece in sources:
        rows_of(joined, piece.start, piece.rows).copy_(rows_of(ours[name].detach(), piece.at, piece.rows))
    return joined
