"""Frozen dataclasses to and from plain dictionaries, with strict keys."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from cascadevl.core.errors import ConfigError

T = TypeVar("T")


def to_dict(config: Any) -> dict[str, Any]:
    """A dataclass as JSON-ready data; tuples become lists."""
    return {field.name: _plain(getattr(config, field.name)) for field in dataclasses.fields(config)}


def from_dict(cls: type[T], data: Mapping[str, Any], *, where: str = "") -> T:
    """Build `cls` from `data`.

    Raises ConfigError for a key that `cls` does not have (naming the nearest one that it
    has), for a missing required key, for a value of another type, and for whatever
    `cls.__post_init__` refuses.
    """
    where = where or cls.__name__
    if not isinstance(data, Mapping):
        raise ConfigError(f"{where}: expected a mapping of settings, got {type(data).__name__}.")
    hints = typing.get_type_hints(cls)
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    for key in data:
        if key not in fields:
            raise ConfigError(f"{where}: unknown setting {key!r}.{_nearest(key, fields)}")
    missing = [
        name
        for name, field in fields.items()
        if name not in data and field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
    ]
    if missing:
        raise ConfigError(f"{where}: missing {', '.join(map(repr, missing))}.")
    return cls(**{key: _typed(hints[key], value, f"{where}.{key}") for key, value in data.items()})


def evolve(config: T, **changes: Any) -> T:
    """A copy with some settings changed; a dictionary changes a nested config in part."""
    values: dict[str, Any] = {}
    names = [field.name for field in dataclasses.fields(config)]  # type: ignore[arg-type]
    for key, change in changes.items():
        if key not in names:
            raise ConfigError(f"{type(config).__name__}: unknown setting {key!r}.{_nearest(key, names)}")
        current = getattr(config, key)
        nested = dataclasses.is_dataclass(current) and isinstance(change, Mapping)
        values[key] = evolve(current, **change) if nested else change
    return dataclasses.replace(config, **values)  # type: ignore[type-var]


def _nearest(key: str, known: typing.Iterable[str]) -> str:
    close = difflib.get_close_matches(key, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else f" Known: {', '.join(sorted(known))}."


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    if isinstance(value, Mapping):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, tuple | list):
        return [_plain(item) for item in value]
    return value


def _typed(hint: Any, value: Any, where: str) -> Any:
    """Nested dataclasses and tuples, which JSON cannot tell from dictionaries and lists; the rest as it is."""
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        options = [option for option in typing.get_args(hint) if option is not type(None)]
        if len(options) > 1 or (value is None and type(None) in typing.get_args(hint)):
            return value
        hint = options[0]
    if dataclasses.is_dataclass(hint) and isinstance(hint, type) and isinstance(value, Mapping):
        return from_dict(hint, value, where=where)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        inner = typing.get_args(hint)
        inner = inner[:1] * len(value) if inner[-1] is Ellipsis else inner
        if len(inner) != len(value):
            raise ConfigError(f"{where}: expected {len(inner)} values, got {value!r:.80}.")
        return tuple(_typed(each, item, where) for each, item in zip(inner, value, strict=True))
    if not fits(hint, value):
        choices = " or ".join(map(repr, typing.get_args(hint))) if typing.get_origin(hint) is typing.Literal else ""
        raise ConfigError(f"{where}: expected {choices or getattr(hint, '__name__', hint)}, got {value!r:.80}.")
    return float(typing.cast(Any, value)) if hint is float else value


def fits(hint: Any, value: Any) -> bool:
    """Whether a value has a simple type; types that cannot be asked are taken on trust."""
    if typing.get_origin(hint) is typing.Literal:
        return value in typing.get_args(hint)
    if hint in (int, float):
        kinds: Any = (int, float) if hint is float else int
        return isinstance(value, kinds) and not isinstance(value, bool)
    kind: Any = typing.get_origin(hint) or hint
    asked = isinstance(kind, type) and kind is not Any and not getattr(kind, "_is_protocol", False)
    return not asked or isinstance(value, typing.cast(type, kind))
