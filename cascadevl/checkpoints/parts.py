"""Parts: everything that a checkpoint folder gives."""

from dataclasses import dataclass, field
from typing import Any, Literal

from cascadevl.core.precision import KVFormat
from cascadevl.models.internvl import InternVL
from cascadevl.preprocessing.processor import Processor
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tokenizer import TextTokenizer


@dataclass(frozen=True, kw_only=True, slots=True)
class Parts:
    """A loaded checkpoint, before anyone asks it anything."""

    name: str
    model: InternVL
    tokenizer: TextTokenizer
    processor: Processor
    spec: Spec
    stop_ids: tuple[int, ...]
    """Tokens that end an answer."""
    generation: dict[str, Any] = field(default_factory=dict)
    """generation_config.json as it was."""
    card: str | None = None
    """README.md as it was."""
    kv_cache: KVFormat | Literal["auto"] = "auto"
    """The number format of keys and values that the folder asks for; "auto" asks for none."""
    notes: tuple[str, ...] = ()
    """What was decided while loading and is worth saying, such as the type computed in."""
