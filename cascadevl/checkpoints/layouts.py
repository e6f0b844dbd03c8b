"""Which folder is it, and which layout does it have? Knows files and names, no tensors."""

import json
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cascadevl.core.errors import CheckpointError, CheckpointNotFound

if TYPE_CHECKING:
    from cascadevl.checkpoints.parts import Parts
    from cascadevl.checkpoints.pieces import Piece
    from cascadevl.models.config import InternVLConfig
    from cascadevl.preprocessing.spec_file import Spec

EMBEDDED = Path(__file__).parent.parent / "embedded"
"""Models that ship inside the package."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Layout:
    """How a folder of one kind is read and written."""

    read_config: Callable[[dict[str, Any], Path, bool], "InternVLConfig"]
    """(config.json, folder, tied) -> sizes."""
    write_config: Callable[["Parts"], dict[str, Any]]
    derive_spec: Callable[[dict[str, Any], Path], "Spec"]
    """The preprocessing spec that the official files imply."""
    pieces: "Callable[[str, InternVLConfig, Collection[str]], list[Piece]]"
    """(our parameter's name, sizes, names in the file or nothing when one is written) -> the file's
    tensors that make it up."""
    current_name: Callable[[str], str] = str
    """A tensor's name in files of any age -> its name today, as `pieces` gives it."""
    write_extras: Callable[["Parts", Path], None]
    """Files beside weights and config that readers of this layout expect."""


def layouts() -> dict[str, Layout]:
    """The table: name on the command line -> layout."""
    from cascadevl.checkpoints import chat_layout, hf_layout

    return {"hf": hf_layout.LAYOUT, "chat": chat_layout.LAYOUT}


MODEL_TYPES = {"internvl": "hf", "internvl_chat": "chat", "interns1": "hf"}
"""`model_type` of config.json -> layout. Intern-S1 and S1-mini are InternVL under another name."""

OTHER_ARCHITECTURES = {
    ("interns1_", "interns2", "intern_s1_pro", "intern_s2"): (
        "Intern-S1-Pro and its successors share the name with Intern-S1, not the architecture: their tower has "
        "patches of 16 px and hands features to several layers of the decoder, as in Qwen3-VL"
    ),
}
"""Beginnings of a `model_type` that must not be taken for ours, and why."""


def recognise(config: Mapping[str, Any], folder: Path) -> str:
    """Name of the layout. Raises CheckpointError naming what is supported."""
    kind = config.get("model_type")
    for beginnings, reason in OTHER_ARCHITECTURES.items():
        if isinstance(kind, str) and kind.startswith(beginnings):
            raise CheckpointError(f"{folder / 'config.json'} has model_type {kind!r}. {reason}.")
    if kind not in MODEL_TYPES:
        raise CheckpointError(
            f"{folder / 'config.json'} has model_type {kind!r}. Supported: "
            f"{', '.join(f'{model_type!r} (layout {name})' for model_type, name in MODEL_TYPES.items())}."
        )
    return MODEL_TYPES[kind]


def require(config: Mapping[str, Any], expected: Mapping[str, Any], folder: Path) -> None:
    """Refuse a config that says something else than `expected`; what it leaves unsaid is taken as said."""
    for key, value in expected.items():
        if config.get(key, value) != value:
            raise CheckpointError(
                f"{folder / 'config.json'} has {key} {config[key]!r}; every released InternVL has {value!r}, "
                "and this model would compute something else."
            )


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object, or a CheckpointError that names the file."""
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path.parent} has no {path.name}: it is not a model folder.") from None
    except (ValueError, OSError) as error:
        raise CheckpointError(f"{path} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{path} holds {type(data).__name__}; expected a JSON object.")
    return data


def locate(model: str | os.PathLike[str]) -> Path:
    """The folder of a model: an embedded name, a folder, or a hub id, in this order.

    Raises CheckpointNotFound for what is none of these, CheckpointError for a folder that is not a
    model. Does not import torch.
    """
    if not isinstance(model, str | os.PathLike):
        raise CheckpointNotFound(f"A model is named by a text or a path, got {type(model).__name__} ({model!r:.80}).")
    name = os.fspath(model)
    if not name or max(map(len, name.split(os.sep))) > 255:
        empty = "longer than a path can be" if name else "empty"
        raise CheckpointNotFound(f"The model's name is {empty}: expected a folder, a hub id, or an embedded model.")
    if (EMBEDDED / name / "config.json").is_file() and os.sep not in name:
        return EMBEDDED / name
    folder = Path(name).expanduser()
    if folder.suffix == ".gguf" and folder.is_file():
        raise CheckpointError(
            f"{folder} is a language model without a tower: `cascadevl.checkpoints.gguf.read_gguf` reads it, "
            "`checkpoints.graft.build_around` makes a vision-language model of it."
        )
    if folder.is_file():
        raise CheckpointError(f"{folder} is a file; expected the folder that holds config.json and the weights.")
    if folder.is_dir():
        if not any(folder.iterdir()):
            raise CheckpointError(f"{folder} is empty; expected config.json, weights and tokenizer files.")
        if (folder / "adapter_config.json").is_file() and not (folder / "config.json").is_file():
            raise CheckpointError(
                f"{folder} is an adapter, not a model. Name its base: `cascadevl serve --model BASE --adapter NAME "
                f'{folder}`, or `cascadevl.load(BASE, adapter="{folder}")`.'
            )
        read_json(folder / "config.json")
        return folder
    return _from_hub(name)


def _from_hub(name: str) -> Path:
    embedded = sorted(path.name for path in EMBEDDED.iterdir()) if EMBEDDED.is_dir() else []
    wanted = "a folder, a hub id such as 'OpenGVLab/InternVL3_5-1B', or an embedded model"
    known = f"{wanted} ({', '.join(embedded)})" if embedded else wanted
    if name.count("/") != 1 or name.startswith((".", "/", "~")):
        raise CheckpointNotFound(f"There is no model {name!r}: expected {known}.")
    from huggingface_hub import snapshot_download

    patterns = ["*.json", "*.safetensors", "*.jinja", "*.txt", "*.model", "README.md"]
    try:
        return Path(snapshot_download(name, allow_patterns=patterns))
    except Exception as error:  # every transport of the hub has errors of its own
        reason = str(error).strip().split("\n")[0][:200]
        raise CheckpointNotFound(
            f"The model {name!r} is not here and could not be fetched from the hub ({type(error).__name__}: {reason}). "
            f"Check the name and the connection, or give {known}."
        ) from error
