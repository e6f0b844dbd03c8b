"""CascadeVL: the InternVL system, readable.

    bundle = cascadevl.load("nano")
    bundle.ask("What is the total?", images=["receipt.png"])

Names arrive when they are first used: importing the package imports neither torch nor any room.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cascadevl.api import Bundle, load
    from cascadevl.core.errors import (
        CascadeError,
        CheckpointError,
        CheckpointNotFound,
        ConfigError,
        DataError,
        InternalError,
        MediaError,
        MessageError,
        MissingExtra,
        SpecMismatch,
        UserError,
    )
    from cascadevl.core.generation import Generation, Sampling
    from cascadevl.core.messages import Conversation
    from cascadevl.engine.config import EngineConfig
    from cascadevl.engine.engine import Engine

__version__ = "0.1.0"

__all__ = [
    "Bundle",
    "CascadeError",
    "CheckpointError",
    "CheckpointNotFound",
    "ConfigError",
    "Conversation",
    "DataError",
    "Engine",
    "EngineConfig",
    "Generation",
    "InternalError",
    "MediaError",
    "MessageError",
    "MissingExtra",
    "Sampling",
    "SpecMismatch",
    "UserError",
    "load",
]

_HOMES = {
    "Bundle": "cascadevl.api",
    "load": "cascadevl.api",
    "Generation": "cascadevl.core.generation",
    "Sampling": "cascadevl.core.generation",
    "Conversation": "cascadevl.core.messages",
    "Engine": "cascadevl.engine.engine",
    "EngineConfig": "cascadevl.engine.config",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_HOMES.get(name, "cascadevl.core.errors")), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
