"""PEFT LoRA folders: adapter_config.json and adapter_model.safetensors, merged or attached.

An adapter speaks of the modules of the model that it was trained on, in either official layout, the
whole model or its language model or tower alone. Where a file's tensor is several of ours or a part of
ours, the rows of B move as the rows of that tensor do (`pieces.py`): rows of scale·B·A are B's rows
times A. Formats: huggingface/peft, `utils/save_and_load.py` and `tuners/lora/`.
"""

import copy
import os
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor, nn

from cascadevl.checkpoints.adapter_config import LoraConfig, read_config
from cascadevl.checkpoints.layouts import layouts
from cascadevl.checkpoints.pieces import Piece, file_shapes, rows_of
from cascadevl.checkpoints.weights import Entry, Reader, read_header
from cascadevl.core.errors import CheckpointError, ConfigError
from cascadevl.models.internvl import InternVL
from cascadevl.models.linear import AdaptedLinear, LowRank, adapter_names

WEIGHTS = "adapter_model.safetensors"
PREFIX = "base_model.model."
WRAPPED = ("", "language_model.", "vision_model.")
"""What the adapter's names lack at their front if a part of the model was trained by itself."""

_PART = re.compile(
    r"\.(lora_A|lora_B|lora_embedding_A|lora_embedding_B|lora_magnitude_vector|base_layer)(?:\.weight)?$"
)


@dataclass(frozen=True, slots=True)
class Adapter:
    """An adapter in terms of our parameters."""

    folder: Path
    changes: dict[str, list[LowRank]]
    """Name of a parameter -> what is added to it."""
    replaced: dict[str, list[tuple[Piece, Tensor]]]
    """Name of a parameter -> rows that were trained in full (`modules_to_save`)."""


class _Names(NamedTuple):
    """One way to read an adapter's names."""

    layout: str
    prefix: str
    current_name: Callable[[str], str]
    ours: dict[str, list[tuple[str, Piece]]]
    """A file's tensor -> our parameters that it is made into."""
    shapes: dict[str, tuple[int, ...]]

    def tensor(self, name: str) -> str:
        """An adapter's `…q_proj.weight` -> the file's tensor."""
        return self.current_name(self.prefix + name)


def read_adapter(folder: str | os.PathLike[str], model: InternVL) -> Adapter:
    """Read and check a folder against a model that has no change in it yet.

    Raises CheckpointError for an adapter of another model or kind, and for missing or unexpected tensors.
    """
    folder = Path(folder)
    config = read_config(folder)
    loras, full = _sorted_tensors(folder, config)
    names = _find_names(folder, model, config, loras, full)
    parameters, reader = dict(model.named_parameters()), Reader()
    changes: dict[str, list[LowRank]] = {}
    for module, parts in loras.items():
        stored = names.tensor(f"{module}.weight")
        _refuse_tied(folder, model, names.ours[stored], module)
        if base := parts.pop("base_layer", None):
            _require_same_base(folder, module, _read(reader, base, module), names.ours[stored], parameters)
        tensors = _read_parts(folder, module, parts, config, names.shapes[stored], reader)
        for ours, change in _changes(names.ours[stored], tensors, config.scale(module), parameters):
            changes.setdefault(ours, []).append(change)
    replaced: dict[str, list[tuple[Piece, Tensor]]] = {}
    for name, entry in full.items():
        stored = names.tensor(name)
        _require_shape(folder, name, entry, names.shapes[stored])
        _refuse_tied(folder, model, names.ours[stored], name)
        whole = _read(reader, entry, name)
        for ours, piece in names.ours[stored]:
            replaced.setdefault(ours, []).append((piece, rows_of(whole, piece.start, piece.rows)))
    return Adapter(folder, changes, replaced)


def merge(model: InternVL, adapter: Adapter) -> None:
    """Put the adapter into the weights, in fp32 and rounded once."""
    with torch.no_grad():
        for weight, change in _targets(model, adapter):
            weight.copy_(change.merged(weight))
        for name, rows in adapter.replaced.items():
            for piece, tensor in rows:
                rows_of(model.get_parameter(name), piece.at, piece.rows).copy_(tensor)


def unmerge(model: InternVL, adapter: Adapter) -> None:
    """Take a merged adapter out again; what rounding took stays lost."""
    if adapter.replaced:
        raise ConfigError(
            f"{adapter.folder} replaced whole modules ({', '.join(sorted(adapter.replaced)[:3])}), whose old weights "
            "are gone: load the model again."
        )
    with torch.no_grad():
        for weight, change in _targets(model, adapter):
            weight.copy_(change.unmerged(weight))


def attach(model: InternVL, adapter: Adapter, name: str) -> None:
    """Set the adapter beside the weights; `models.linear.use` switches it on and off, `detach` takes it off."""
    if not name or "." in name or name in adapter_names(model) or hasattr(nn.ModuleDict, name):
        raise ConfigError(f"An adapter cannot be called {name!r}: the name is taken, empty, reserved, or has a dot.")
    for path in [*adapter.changes, *adapter.replaced]:
        if path in adapter.replaced or not _is_called(model, path):
            raise ConfigError(f"{adapter.folder} changes {path}, which is no linear layer by itself: merge it instead.")
    for path, changes in adapter.changes.items():
        module = model.get_submodule(path.removesuffix(".weight"))
        assert isinstance(module, nn.Linear)
        if not isinstance(module, AdaptedLinear):
            module = AdaptedLinear(module)
            model.set_submodule(path.removesuffix(".weight"), module)
        module.adapters[name] = copy.deepcopy(nn.ModuleList(changes)).to(module.weight.device)


def _is_called(model: InternVL, path: str) -> bool:
    """Whether the parameter is the weight of a linear that is called, not one whose weight others take."""
    module = model.get_submodule(path.rpartition(".")[0])
    return path.endswith(".weight") and type(module) in (nn.Linear, AdaptedLinear) and "lm_head" not in path


def _targets(model: InternVL, adapter: Adapter) -> Iterator[tuple[Tensor, LowRank]]:
    for name, changes in adapter.changes.items():
        for change in changes:
            yield rows_of(model.get_parameter(name), change.at, change.rows), change


def _sorted_tensors(folder: Path, config: LoraConfig) -> tuple[dict[str, dict[str, Entry]], dict[str, Entry]]:
    """Module -> its LoRA's parts, and tensors that were trained in full, by the adapter's names."""
    if not (folder / WEIGHTS).is_file():
        others = sorted(file.name for file in folder.glob("*.bin"))
        hint = f" {others[0]} is a pickle, which is never opened: convert it to safetensors." if others else ""
        raise CheckpointError(f"{folder} has no {WEIGHTS}.{hint}")
    loras: dict[str, dict[str, Entry]] = {}
    full: dict[str, Entry] = {}
    unexpected = []
    for name, entry in read_header(folder / WEIGHTS).items():
        inside = name.removeprefix(PREFIX)
        match = _PART.search(inside)
        if match and config.targets(inside[: match.start()]):
            loras.setdefault(inside[: match.start()], {})[match[1]] = entry
        elif not match and config.saves(inside):
            full[inside] = entry
        else:
            unexpected.append(name)
    if unexpected:
        raise CheckpointError(
            f"{folder / WEIGHTS} has {len(unexpected)} tensors that adapter_config.json does not speak of "
            f"({', '.join(sorted(unexpected)[:3])}): expected LoRAs of {config.target_modules!r:.200}."
        )
    if not loras and not full:
        raise CheckpointError(f"{folder / WEIGHTS} has no tensors.")
    return loras, full


def _find_names(
    folder: Path, model: InternVL, config: LoraConfig, modules: Collection[str], full: Collection[str]
) -> _Names:
    """The reading in which every name has a place and every target its LoRA.

    Both are asked: `language_model.model.layers…` is the original layout and the oldest one of transformers, whose
    towers call different things q_proj.
    """
    wanted = [f"{module}.weight" for module in modules] + list(full)
    absent: list[tuple[list[str], str]] = []
    untrained: list[list[str]] = []
    for names in _readings(model, wanted):
        if missing := sorted(name for name in wanted if names.tensor(name) not in names.ours):
            absent.append((missing, names.layout))
        elif missing := _untrained(config, names, modules):
            untrained.append(missing)
        else:
            return names
    if untrained:
        fewest = min(untrained, key=len)
        raise CheckpointError(
            f"{folder / WEIGHTS} lacks {len(fewest)} tensors that adapter_config.json targets "
            f"({', '.join(fewest[:3])}): was it cut?"
        )
    missing, layout = min(absent, key=lambda found: len(found[0]))
    raise CheckpointError(
        f"{folder} is an adapter for another model: {len(missing)} of its {len(wanted)} modules do not exist in this "
        f"{model.config.decoder.family} (such as {missing[0]!r}; nearest layout: {layout})."
    )


def _readings(model: InternVL, wanted: Collection[str]) -> Iterator[_Names]:
    parameters = {name: tuple(parameter.shape) for name, parameter in _base_parameters(model)}
    for name, layout in layouts().items():
        for prefix in WRAPPED:
            stored = {layout.current_name(prefix + other) for other in wanted}
            try:
                pieces = {ours: layout.pieces(ours, model.config, stored) for ours in parameters}
            except CheckpointError:  # a layout without names for this model
                continue
            places: dict[str, list[tuple[str, Piece]]] = {}
            for ours, parts in pieces.items():
                for piece in parts:
                    places.setdefault(piece.name, []).append((ours, piece))
            yield _Names(name, prefix, layout.current_name, places, file_shapes(parameters, pieces))


def _base_parameters(model: InternVL) -> Iterator[tuple[str, nn.Parameter]]:
    """Without those of adapters that are attached."""
    return ((name, parameter) for name, parameter in model.named_parameters() if ".adapters." not in name)


def _untrained(config: LoraConfig, names: _Names, modules: Collection[str]) -> list[str]:
    """Matrices that the config's targets name and that have no LoRA.

    Regular expressions are not asked: they may be written for names of another age. Nor are experts, which
    PEFT sees as one tensor in newer models and as many in older ones.
    """
    if isinstance(config.target_modules, str) or isinstance(config.exclude_modules, str):
        return []
    have = {names.tensor(f"{module}.weight") for module in modules}
    return [
        stored
        for stored, shape in names.shapes.items()
        if len(shape) == 2 and stored.endswith(".weight") and ".experts." not in stored
        if all(ours.startswith(names.prefix) for ours, _ in names.ours[stored])
        if config.targets(stored.removesuffix(".weight")) and stored not in have
    ]


def _read_parts(
    folder: Path,
    module: str,
    parts: Mapping[str, Entry],
    config: LoraConfig,
    shape: tuple[int, ...],
    reader: Reader,
) -> dict[str, Tensor]:
    """A (R, D), B (F, R) and perhaps a magnitude (F,), fp32; those of embeddings turned to stand alike."""
    embedding = "lora_embedding_A" in parts
    if embedding and config.use_dora:
        raise CheckpointError(f"{folder}: {module!r} is an embedding with use_dora; only matrices can have both.")
    kinds = ("lora_embedding_A", "lora_embedding_B") if embedding else ("lora_A", "lora_B")
    wanted = {*kinds, "lora_magnitude_vector"} if config.use_dora else {*kinds}
    if parts.keys() != wanted:
        raise CheckpointError(f"{folder / WEIGHTS}: {module!r} has {sorted(parts)}; expected {sorted(wanted)}.")
    if len(shape) != 2:
        raise CheckpointError(f"{folder}: {module!r} is no matrix in this model but {list(shape)}; not supported.")
    rank, (num_out, num_in) = config.rank(module), shape
    expected = {
        "lora_A": (rank, num_in),
        "lora_B": (num_out, rank),
        "lora_embedding_A": (rank, num_out),
        "lora_embedding_B": (num_in, rank),
        "lora_magnitude_vector": (num_out,),
    }
    for part, entry in parts.items():
        _require_shape(folder, f"{module}.{part}", entry, expected[part], f" (rank {rank} by adapter_config.json)")
    tensors = {part: _read(reader, entry, f"{module}.{part}") for part, entry in parts.items()}
    if embedding:
        tensors |= {
            "lora_A": tensors["lora_embedding_B"].T.contiguous(),
            "lora_B": tensors["lora_embedding_A"].T.contiguous(),
        }
    return tensors


def _read(reader: Reader, entry: Entry, name: str) -> Tensor:
    tensor = torch.empty(entry.shape)
    reader.fill(tensor, entry, name)
    return tensor


def _require_shape(folder: Path, name: str, entry: Entry, expected: tuple[int, ...], why: str = "") -> None:
    if entry.shape != expected:
        raise CheckpointError(
            f"{folder / WEIGHTS}: {name!r} has the shape {list(entry.shape)}, this model needs {list(expected)}{why}."
        )


def _refuse_tied(folder: Path, model: InternVL, places: list[tuple[str, Piece]], name: str) -> None:
    tied = model.config.decoder.tied and any("embed_tokens" in ours for ours, _ in places)
    if tied:
        raise CheckpointError(f"{folder} changes {name!r} alone, but in this model the output matrix is the same one.")


def _require_same_base(
    folder: Path, module: str, base: Tensor, places: list[tuple[str, Piece]], parameters: Mapping[str, Tensor]
) -> None:
    """PEFT saves the matrix under a LoRA of an embedding too; after `resize_token_embeddings` it is not the model's."""
    for ours, piece in places:
        weight = rows_of(parameters[ours].detach(), piece.at, piece.rows).cpu()
        if not torch.equal(rows_of(base, piece.start, piece.rows).to(weight.dtype), weight):
            raise CheckpointError(
                f"{folder} was trained over another {module!r} than this model's: vocabulary or weights were changed "
                "before. Apply it to that model."
            )


def _changes(
    places: list[tuple[str, Piece]],
    tensors: Mapping[str, Tensor],
    scale: float,
    parameters: Mapping[str, Tensor],
) -> Iterator[tuple[str, LowRank]]:
    """The rows of one LoRA at their places; neighbouring ones stay together."""
    a_RD, b_FR, magnitude_F = (tensors.get(part) for part in ("lora_A", "lora_B", "lora_magnitude_vector"))
    assert a_RD is not None and b_FR is not None
    for ours, run in _runs(places):
        source = torch.cat([torch.arange(len(b_FR))[piece.start :][: piece.rows] for piece in run])
        at, rows = run[0].at, None if run[0].rows is None else len(source)
        change = LowRank(a_RD, b_FR[source], scale, at=at, rows=rows, gain_F=None)
        if magnitude_F is not None:
            changed_FD = rows_of(parameters[ours].detach(), at, rows).float() + change.delta().to(
                parameters[ours].device
            )
            change.gain = magnitude_F[source] / changed_FD.norm(dim=1).cpu()
        yield ours, change


def _runs(places: list[tuple[str, Piece]]) -> Iterator[tuple[str, list[Piece]]]:
    """Pieces that follow each other in one of our parameters, in order."""
    run: list[Piece] = []
    before = ""
    for ours, piece in sorted(places, key=lambda place: (place[0], place[1].at)):
        follows = run and ours == before and piece.at == run[-1].at + (run[-1].rows or 0)
        if run and not follows:
            yield before, run
            run = []
        run.append(piece)
        before = ours
    if run:
        yield before, run
