"""adapter_config.json of a PEFT LoRA: what is read, and what is refused because it would compute otherwise."""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from cascadevl.checkpoints.layouts import read_json
from cascadevl.core.config import fits
from cascadevl.core.errors import CheckpointError

CONFIG = "adapter_config.json"

HARMLESS = frozenset(
    {
        *("auto_mapping", "base_model_name_or_path", "revision", "task_type", "inference_mode", "peft_version"),
        *("lora_dropout", "eva_config", "qalora_group_size", "loftq_config", "megatron_core", "runtime_config"),
        *("ensure_weight_tying", "peft_type", "bias", "init_lora_weights"),
    }
)
"""Settings that say nothing of what the finished adapter computes, or are checked by themselves."""

INITIAL = (True, False, None, "gaussian", "eva", "orthogonal")
"""Beginnings of A and B that leave the base model as it is; others (PiSSA, OLoRA, …) change its weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LoraConfig:
    """The settings that matter, under PEFT's names."""

    r: int = 8
    lora_alpha: float = 8
    use_rslora: bool = False
    use_dora: bool = False
    target_modules: Any = None
    """Ends of module names, or a regular expression for the whole."""
    exclude_modules: Any = None
    modules_to_save: Any = None
    """Modules that were trained in full."""
    layers_to_transform: Any = None
    layers_pattern: Any = None
    rank_pattern: Any = None
    alpha_pattern: Any = None

    def rank(self, module: str) -> int:
        return _by_pattern(self.rank_pattern, module, self.r)

    def scale(self, module: str) -> float:
        """alpha/r; with rank stabilisation alpha/√r (arXiv 2312.03732)."""
        rank = self.rank(module)
        return _by_pattern(self.alpha_pattern, module, self.lora_alpha) / (math.sqrt(rank) if self.use_rslora else rank)

    def targets(self, module: str) -> bool:
        """Whether a module has a LoRA."""
        if _named(self.exclude_modules, module) or self.saves(f"{module}.weight"):
            return False
        return _named(self.target_modules, module) and self._in_layers(module)

    def _in_layers(self, module: str) -> bool:
        if self.layers_to_transform is None or self.layers_to_transform == [] or isinstance(self.target_modules, str):
            return True
        patterns = self.layers_pattern or [r"[^.]*"]
        for pattern in [patterns] if isinstance(patterns, str) else patterns:
            if match := re.match(rf"(?:^|.*?\.){pattern}\.(\d+)\.", module):
                chosen = self.layers_to_transform
                return int(match[1]) in ([chosen] if isinstance(chosen, int) else chosen)
        return False

    def saves(self, tensor: str) -> bool:
        """Whether a tensor belongs to a module that was trained in full."""
        return any(f".{module}." in f".{tensor}" for module in self.modules_to_save or [])


def read_config(folder: Path) -> LoraConfig:
    """Raises CheckpointError for another method than LoRA and for settings that are not supported, by name."""
    raw = read_json(folder / CONFIG)
    path = folder / CONFIG
    if str(raw.get("peft_type")).upper() != "LORA":
        raise CheckpointError(f"{path} has peft_type {raw.get('peft_type')!r}; only 'LORA' is supported.")
    if raw.get("bias", "none") != "none":
        raise CheckpointError(f"{path} has bias {raw['bias']!r}: trained biases are not supported, only 'none'.")
    if raw.get("init_lora_weights") not in INITIAL:
        raise CheckpointError(
            f"{path} has init_lora_weights {raw['init_lora_weights']!r}, which changes the base model as well: "
            "convert the adapter to a plain LoRA (PEFT's path_initial_model_for_weight_conversion), or merge it there."
        )
    known = {field.name for field in fields(LoraConfig)}
    others = sorted(key for key, value in raw.items() if key not in known | HARMLESS and value)
    if others:
        raise CheckpointError(f"{path} has {others[0]} {raw[others[0]]!r:.80}: not supported here.")
    values = {key: raw[key] for key in known if raw.get(key) is not None}
    _check(path, values)
    return LoraConfig(**values)


def _check(path: Path, values: Mapping[str, Any]) -> None:
    for key, kind in (("r", int), ("lora_alpha", float), ("use_rslora", bool), ("use_dora", bool)):
        if key in values and not fits(kind, values[key]):
            raise CheckpointError(f"{path}: {key} is {values[key]!r:.80}; expected {kind.__name__}.")
    for key in ("target_modules", "exclude_modules", "modules_to_save"):
        value = values.get(key, [])
        text = isinstance(value, str) and key != "modules_to_save"
        if not text and not (isinstance(value, list) and all(isinstance(item, str) for item in value)):
            raise CheckpointError(f"{path}: {key} is {value!r:.80}; expected a list of names.")
    patterns = [values[key] for key in ("target_modules", "exclude_modules") if isinstance(values.get(key), str)]
    for key, kind in (("rank_pattern", int), ("alpha_pattern", float)):
        given = values.get(key, {})
        if not isinstance(given, dict) or not all(fits(kind, value) for value in given.values()):
            raise CheckpointError(f"{path}: {key} is {given!r:.80}; expected patterns with numbers.")
        patterns += given
    for pattern in patterns:
        try:
            re.compile(pattern)
        except re.error as error:
            raise CheckpointError(f"{path}: {pattern!r} is no regular expression: {error}.") from error
    ranks = [values.get("r", 8), *values.get("rank_pattern", {}).values()]
    if min(ranks) < 1:
        raise CheckpointError(f"{path}: the rank {min(ranks)} is not possible; 1 or more was expected.")


def _named(names: list[str] | str | None, module: str) -> bool:
    if isinstance(names, str):
        return re.fullmatch(names, module) is not None
    return any(module == name or module.endswith(f".{name}") for name in names or [])


def _by_pattern(patterns: Mapping[str, Any] | None, module: str, otherwise: Any) -> Any:
    """The first pattern that matches the end of a module's name decides."""
    return next((value for key, value in (patterns or {}).items() if re.match(rf"(.*\.)?({key})$", module)), otherwise)
