"""What the files of a tokenizer folder say about its tokens: which steer, which come first."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from cascadevl.core.errors import CheckpointError

SPECIAL_TOKENS = (
    *("<img>", "</img>", "<IMG_CONTEXT>"),
    *("<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"),
)
"""The nine tokens that every InternVL adds, in their official order."""

SPOKEN = frozenset({"<quad>", "</quad>", "<ref>", "</ref>", "<box>", "</box>"})
"""Special tokens that are part of what people and models say: typed in questions, kept in answers."""


def is_control(content: str, special: bool) -> bool:
    """Whether an added token steers the model: text never becomes it, answers are shown without it."""
    steers = special or content in SPECIAL_TOKENS or content in ("<s>", "</s>", "<unk>")
    return (steers or (content.startswith("<|") and content.endswith("|>"))) and content not in SPOKEN


_FILES = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json"),
    *("vocab.json", "merges.txt"),
)

_CONFIG_FILES = ("special_tokens_map.json", "tokenizer_config.json")
"""What `config_of` reads: kilobytes, where a vocabulary has megabytes."""

MODEL_FILE = "tokenizer.model"


def texts(folder: Path, names: Iterable[str] = _FILES) -> dict[str, str]:
    """Name -> content of the files that are text and there."""
    try:
        return {name: (folder / name).read_text(encoding="utf-8") for name in names if (folder / name).is_file()}
    except (OSError, ValueError) as error:
        raise CheckpointError(f"The tokenizer files in {folder} cannot be read: {error}") from error


def _object(files: Mapping[str, Any], name: str) -> dict[str, Any]:
    """What a JSON file holds; nothing where it is missing."""
    try:
        data = json.loads(files.get(name, "{}"))
    except ValueError as error:
        raise CheckpointError(f"{name} cannot be read: {error}") from error
    if not isinstance(data, dict):
        raise CheckpointError(f"{name} cannot be read: it holds {type(data).__name__}, expected a JSON object.")
    return data


def config_of(files: Mapping[str, Any]) -> dict[str, Any]:
    """tokenizer_config.json, over what special_tokens_map.json says of old folders."""
    return {**_object(files, "special_tokens_map.json"), **_object(files, "tokenizer_config.json")}


def added_tokens(files: Mapping[str, Any]) -> dict[int, dict[str, Any]]:
    """Id -> content and flags, of slow tokenizers; older files tell only contents and ids."""
    added = {int(i): token for i, token in config_of(files).get("added_tokens_decoder", {}).items()}
    for content, i in _object(files, "added_tokens.json").items():
        added.setdefault(i, {"content": content, "special": is_control(content, False)})
    return added


def added_bos(folder: Path) -> str | None:
    """The token that the folder's tokenizer puts in front of every prompt, if it does.

    A tokenizer.json says so in its post-processor, whatever the config says beside it. Slow InternLM2
    and Llama tokenizers do unless the config forbids it; Qwen's and GPT-OSS's do not.
    """
    files = texts(folder)
    if "tokenizer.json" in files:
        return _first_of_template(_object(files, "tokenizer.json").get("post_processor"))
    wanted = (folder / MODEL_FILE).is_file() and config_of(files).get("add_bos_token", True)
    return named_tokens(folder)["bos_token"] if wanted else None


def named_tokens(folder: Path) -> dict[str, str | None]:
    """What the folder's tokenizer calls `bos_token` and `eos_token`."""
    config = config_of(texts(folder, _CONFIG_FILES))
    names = {"bos_token": "<s>", "eos_token": "</s>"} if (folder / MODEL_FILE).is_file() else {}
    tokens = {name: config.get(name, names.get(name)) for name in ("bos_token", "eos_token")}
    return {name: token["content"] if isinstance(token, dict) else token for name, token in tokens.items()}


def _first_of_template(post_processor: dict[str, Any] | None) -> str | None:
    steps = (post_processor or {}).get("processors", [post_processor])
    template = next((step["single"] for step in steps if step and step.get("type") == "TemplateProcessing"), [])
    return template[0].get("SpecialToken", {}).get("id") if template else None
