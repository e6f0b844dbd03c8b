"""Folders with weights of few bits: AWQ, GPTQ, compressed-tensors, FP8, MXFP4.

`quantization_config` says the method; a method says which tensors of the files stand for which weight. These are
repacked into our formats, never rounded again; what no format of ours holds exactly becomes whole numbers, and the
log says so.
"""

import logging
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

from cascadevl.checkpoints import quantized_compressed
from cascadevl.checkpoints.pieces import Piece, rows_of
from cascadevl.checkpoints.quantized_matrix import Held, Rounded, same_kind
from cascadevl.checkpoints.quantized_methods import Method, read_awq, read_fp8, read_gptq, read_mxfp4
from cascadevl.checkpoints.weights import Entry, Reader
from cascadevl.core.errors import CheckpointError
from cascadevl.core.precision import KV_FORMATS, KVFormat
from cascadevl.models.quant_linear import STACKS, cut, joined, put
from cascadevl.ops.formats import Quantized

logger = logging.getLogger("cascadevl")

METHODS: dict[str, Method] = {
    "awq": read_awq,
    "compressed-tensors": quantized_compressed.read,
    "fbgemm_fp8": read_fp8,
    "fp8": read_fp8,
    "gptq": read_gptq,
    "mxfp4": read_mxfp4,
}
"""The table: `quant_method` -> how its tensors are read."""

KEYS = ("quantization_config", "compression_config")
WHOLE = ("modules_to_not_convert", "ignore", "ignored_layers", "modules_to_not_quantize")
"""Lists of modules that stay in full precision, by the names that methods give them."""

ACTIVATIONS = (".input_scale", ".input_zero_point", ".output_scale", ".q_scale", ".k_scale", ".v_scale")
"""Ends of tensors that round activations by a fixed scale, which we do not."""


def settings(raw: Mapping[str, Any], where: Path) -> dict[str, Any] | None:
    """`quantization_config` of a folder, which may stand in the part for the language model."""
    found = [
        part[key]
        for part in (raw, raw.get("text_config") or {}, raw.get("llm_config") or {})
        for key in KEYS
        if part.get(key)
    ]
    if not found:
        return None
    if any(other != found[0] for other in found):
        raise CheckpointError(f"{where} has two quantization_configs that differ.")
    method = found[0].get("quant_method")
    if method not in METHODS:
        raise CheckpointError(f"{where} has quant_method {method!r}. Known: {', '.join(METHODS)}.")
    return found[0]


def kv_cache(raw: Mapping[str, Any], where: Path) -> KVFormat | Literal["auto"]:
    """The format of keys and values that `cascadevl quantize --kv` wrote down."""
    wanted = (raw.get("cascadevl") or {}).get("kv_cache", "auto")
    if wanted not in ("auto", *KV_FORMATS):
        raise CheckpointError(
            f"{where} asks for keys and values in {wanted!r}: expected auto, {', '.join(KV_FORMATS)}."
        )
    return wanted


def gather(config: Mapping[str, Any] | None, stored: Mapping[str, Entry], folder: Path) -> dict[str, "Entry | Rounded"]:
    """The tensors of a folder, those that stand for a weight of few bits in one, under that weight's name.

    Raises CheckpointError for parts that are missing or misshapen, and where config and tensors contradict.
    """
    if config is None:
        _refuse_codes(stored, folder)
        return dict(stored)
    rest = {name: entry for name, entry in stored.items() if not name.endswith(ACTIVATIONS)}
    if len(rest) < len(stored):
        logger.info("%s: %d fixed scales of activations are not used.", folder, len(stored) - len(rest))
    found = METHODS[config["quant_method"]](config, rest)
    if not found:
        raise CheckpointError(
            f"{folder / 'config.json'} says quant_method {config['quant_method']!r}, "
            "but no tensor of the folder is stored so. Were weights and config mixed?"
        )
    _refuse_listed(config, found, folder)
    used = {name for rounded in found.values() for name, _ in rounded.tensors.values()}
    whole = {name: entry for name, entry in rest.items() if name not in used}
    _refuse_codes(whole, folder)
    return {**whole, **found}


def _refuse_listed(config: Mapping[str, Any], found: Collection[str], folder: Path) -> None:
    listed = [entry for key in WHOLE for entry in config.get(key) or ()]
    for weight in found:
        for entry in listed:
            if quantized_compressed.names(entry, weight.removesuffix(".weight")):
                raise CheckpointError(
                    f"{folder} contradicts itself: quantization_config leaves {entry!r} in full precision, "
                    f"and {weight!r} is of few bits."
                )


def _refuse_codes(stored: Mapping[str, Entry], folder: Path) -> None:
    """Numbers of a byte mean nothing without their scales."""
    for name, entry in stored.items():
        if name.endswith(".weight") and (entry.dtype.itemsize == 1 or not entry.dtype.is_floating_point):
            raise CheckpointError(
                f"The tensor {name!r} in {folder} is {str(entry.dtype).removeprefix('torch.')}, and neither a scale "
                "beside it nor quantization_config says what its numbers mean."
            )


class Placer:
    """Puts weights of few bits into a model, one after the other."""

    def __init__(self, found: Mapping[str, "Entry | Rounded"], dtype: torch.dtype, device: torch.device) -> None:
        self._found, self._dtype, self._device = found, dtype, device
        self._reader = Reader()
        self._last: tuple[str, Held] | None = None
        self._whole: dict[str, list[str]] = {}

    def place(self, network: nn.Module, name: str, pieces: list[Piece]) -> None:
        """Put what the files say into the place of a parameter; biases must be there already."""
        path, _, attribute = name.rpartition(".")
        owner = network.get_submodule(path)
        try:
            weight, order_D = self._few_bits(owner, pieces)
        except _Whole as reason:
            self._whole.setdefault(str(reason), []).append(name)
            dense = self._dense(getattr(owner, attribute).shape, pieces)
            setattr(owner, attribute, nn.Parameter(dense.to(self._device), requires_grad=False))
            return
        moved = {part: tensor.to(self._device) for part, tensor in weight.tensors().items()}
        order_D = None if order_D is None else order_D.to(self._device)
        put(network, name, Quantized(weight.format, **moved), order_D)

    def notes(self) -> tuple[str, ...]:
        """What became whole, and why."""
        dtype = str(self._dtype).removeprefix("torch.")
        return tuple(
            f"{len(names)} weights of few bits became {dtype}, as no format of ours holds them: {reason} ({names[0]}"
            + (", …)" if len(names) > 1 else ")")
            for reason, names in self._whole.items()
        )

    def _few_bits(self, owner: nn.Module, pieces: list[Piece]) -> tuple[Quantized, Tensor | None]:
        if type(owner) is not nn.Linear and not isinstance(owner, STACKS):
            raise _Whole("they are no linear layer's")
        parts: list[Quantized] = []
        first: Held | None = None
        for piece in sorted(pieces, key=lambda piece: piece.at):
            held = self._held(piece.name)
            first = first or held
            if isinstance(held.weight, Tensor):
                raise _Whole(held.reason)
            part = held.weight if piece.rows is None else cut(held.weight, piece.start, piece.rows)
            if part is None or not same_kind(first, held):
                raise _Whole("the files join what we have apart")
            parts.append(part)
        weight = joined(parts)
        if weight is None or first is None:
            raise _Whole("we join what the files have apart")
        return weight, first.order_D

    def _held(self, name: str) -> Held:
        """Kept for the next parameter, as neighbours may share a tensor of the file."""
        if self._last is None or self._last[0] != name:
            rounded = self._found[name]
            if not isinstance(rounded, Rounded):
                raise _Whole("a part of them is whole in the file")
            self._last = None  # before the next one is read
            self._last = name, rounded.read()
        return self._last[1]

    def _dense(self, shape: torch.Size, pieces: list[Piece]) -> Tensor:
        tensor = torch.empty(shape, dtype=self._dtype)
        for piece in pieces:
            entry, target = self._found[piece.name], rows_of(tensor, piece.at, piece.rows)
            if isinstance(entry, Entry):
                skipped = piece.start * shape[-1] if len(shape) > 1 else piece.start
                self._reader.fill(target, entry, piece.name, skipped)
                continue
            dense = self._held(piece.name).dense()
            if len(entry.shape) == 3:
                dense = dense.unflatten(0, (entry.shape[0], -1)).mT
            target.copy_(rows_of(dense, piece.start, piece.rows))
            if not bool(target.isfinite().all()):
                raise CheckpointError(
                    f"The weight {piece.name!r} in {self._file(piece.name)} holds numbers too large for {self._dtype}: "
                    "load it as bfloat16 or float32."
                )
        return tensor

    def _file(self, name: str) -> Path:
        entry = self._found[name]
        return entry.file if isinstance(entry, Entry) else next(iter(entry.tensors.values()))[1].file


class _Whole(Exception):
    """A weight cannot stay of few bits; says why."""
