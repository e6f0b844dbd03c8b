"""Tools of a request: what the model is told of them, and what holds it to a call that it must make."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from cascadevl.core.generation import Constraint
from cascadevl.preprocessing.parse import TOOL_CALL_END
from cascadevl.serving.bodies import Function, ToolWishes
from cascadevl.serving.fields import wrong

CHOICES = ("none", "auto", "required")


@dataclass(frozen=True, slots=True)
class ToolUse:
    """The functions that may be called. Without any, an answer is text, whatever it looks like."""

    functions: tuple[Function, ...] = ()
    forced: bool = False
    """A call there must be."""
    parallel: bool = True
    """There may be more than one."""

    @property
    def names(self) -> frozenset[str]:
        return frozenset(function.name for function in self.functions)

    @property
    def definitions(self) -> list[dict[str, Any]]:
        """As chat templates expect them."""
        return [
            {"type": "function", "function": function.model_dump(exclude_none=True, exclude={"strict", "type"})}
            for function in self.functions
        ]

    @property
    def stop(self) -> tuple[str, ...]:
        """A model that may choose whether to call, but only once, is stopped behind its call."""
        return (TOOL_CALL_END,) if self.functions and not self.forced and not self.parallel else ()

    @property
    def constraint(self) -> Constraint | None:
        """Of an answer that must be a call: its thinking is left out."""
        if not self.forced:
            return None
        return Constraint("tool_calls" if self.parallel else "tool_call", call_schema(self.functions))


def tool_use(functions: Sequence[Function], wishes: ToolWishes) -> ToolUse:
    """Raises Refused for a choice that cannot be met."""
    names = [function.name for function in functions]
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise wrong("tools", f"define {twice[0]!r} twice.")
    mode, chosen = _choice(wishes.tool_choice)
    unknown = [name for name in chosen or () if name not in names]
    if unknown:
        raise wrong("tool_choice", f"names {unknown[0]!r:.100}, which is not among the tools.")
    if mode == "required" and not functions:
        raise wrong("tool_choice", "asks for a call, but there are no tools.")
    if mode == "none" or not functions:
        return ToolUse()
    allowed = tuple(function for function in functions if chosen is None or function.name in chosen)
    named_one = mode == "required" and chosen is not None and len(chosen) == 1
    parallel = wishes.parallel_tool_calls is not False and not named_one
    return ToolUse(allowed, forced=mode == "required", parallel=parallel)


def _choice(choice: Any) -> tuple[str, list[str] | None]:
    """How tools are used, and which of them; None: all. Both APIs' forms are taken, with and without "function"."""
    if choice is None or (isinstance(choice, str) and choice in CHOICES):
        return choice or "auto", None
    if isinstance(choice, Mapping) and choice.get("type") == "function":
        return "required", [_name(choice)]
    if isinstance(choice, Mapping) and choice.get("type") == "allowed_tools":
        allowed = choice.get("allowed_tools", choice)
        if isinstance(allowed, Mapping) and allowed.get("mode") in ("auto", "required"):
            tools = allowed.get("tools")
            if isinstance(tools, list) and tools:
                return allowed["mode"], list(dict.fromkeys(map(_name, tools)))
    raise wrong(
        "tool_choice",
        f"is {choice!r:.100}: expected {', '.join(map(repr, CHOICES))}, a function or a list of allowed tools.",
    )


def _name(tool: Any) -> str:
    inner = tool.get("function", tool) if isinstance(tool, Mapping) else None
    name = inner.get("name") if isinstance(inner, Mapping) else None
    if not isinstance(name, str):
        raise wrong("tool_choice", f"must name a function, got {tool!r:.100}.")
    return name


def call_schema(functions: Sequence[Function]) -> str:
    """JSON schema of a call of any of these. References inside parameters are to the parameters themselves."""
    try:
        parameters = {
            str(number): _moved(function.parameters or {"type": "object"}, f"#/$defs/{number}")
            for number, function in enumerate(functions)
        }
    except RecursionError:
        raise wrong("tools", "have parameters that are nested too deeply.") from None
    return json.dumps(
        {
            "$defs": parameters,
            "anyOf": [
                {
                    "type": "object",
                    "properties": {"name": {"const": function.name}, "arguments": {"$ref": f"#/$defs/{number}"}},
                    "required": ["name", "arguments"],
                    "additionalProperties": False,
                }
                for number, function in enumerate(functions)
            ],
        }
    )


def _moved(schema: Any, place: str) -> Any:
    """A schema that stands at `place` of another one."""
    if isinstance(schema, list):
        return [_moved(each, place) for each in schema]
    if not isinstance(schema, dict):
        return schema
    named = ("$id", "$schema")  # which would be the place that references start from
    moved = {
        key: _moved(value, place) for key, value in schema.items() if not (key in named and isinstance(value, str))
    }
    reference = schema.get("$ref")
    if isinstance(reference, str) and reference.startswith("#"):
        moved["$ref"] = place + reference[1:]
    return moved
