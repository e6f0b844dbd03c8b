"""Parts become a folder that others read too; either all of it or none."""

import os
from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from cascadevl.checkpoints.layouts import Layout, layouts
from cascadevl.checkpoints.parts import Parts
from cascadevl.checkpoints.weights import write_shards
from cascadevl.core.errors import ConfigError
from cascadevl.core.files import atomic_folder, write_json, write_text

MAX_SHARD_BYTES = 5_000_000_000


def save_parts(
    parts: Parts, folder: str | os.PathLike[str], *, layout: str = "hf", max_shard_bytes: int = MAX_SHARD_BYTES
) -> Path:
    """Write weights, config, tokenizer, template and preprocessing spec in the layout asked for."""
    target = Path(folder)
    if layout not in layouts():
        raise ConfigError(f"Unknown layout {layout!r}: expected {' or '.join(layouts())}.")
    if target.is_file() or (target.is_dir() and any(target.iterdir()) and not (target / "config.json").is_file()):
        raise ConfigError(f"{target} exists and is no model folder: choose another place.")
    chosen = layouts()[layout]
    with atomic_folder(target) as work:
        write_shards(work, named_tensors(parts, chosen), max_shard_bytes)
        write_json(work / "config.json", chosen.write_config(parts))
        for name, text in parts.tokenizer.files.items():
            write_text(work / name, text)
        generation = {**parts.generation, "eos_token_id": list(parts.stop_ids)}
        write_json(work / "generation_config.json", generation)
        chosen.write_extras(parts, work)
        parts.spec.save(work)
        if parts.card is not None:
            write_text(work / "README.md", parts.card)
    return target


def named_tensors(parts: Parts, layout: Layout) -> Iterator[tuple[str, Tensor]]:
    """Tensors under the names of the layout, cut where it keeps them apart."""
    for name, parameter in parts.model.named_parameters():
        for piece in layout.pieces(name):
            yield piece.name, parameter.detach().chunk(piece.parts)[piece.part]
