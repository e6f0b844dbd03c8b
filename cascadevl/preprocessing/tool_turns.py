"""Tools in a prompt: by the checkpoint's own template where it knows them, else in the words of Qwen2.5 and Qwen3.

Most language models in question were trained on those words (chat_template of the Qwen releases). In either form,
what people wrote goes through `say`, so that no name, description, argument or result becomes a control token.
"""

import functools
import json
from collections.abc import Callable
from typing import Any

from cascadevl.core.errors import MessageError
from cascadevl.core.messages import Conversation, Text, ToolCall, ToolResult, Tools, Turn
from cascadevl.preprocessing.parse import TOOL_CALL_END, TOOL_CALL_START

Say = Callable[[str], str]

TOOLS = (
    "# Tools\n\n"
    "You may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n"
    "<tools>\n{tools}\n</tools>\n\n"
    "For each function call, return a json object with function name and arguments within "
    f"{TOOL_CALL_START}{TOOL_CALL_END} XML tags:\n"
    f'{TOOL_CALL_START}\n{{{{"name": <function-name>, "arguments": <args-json-object>}}}}\n{TOOL_CALL_END}'
)


def worded(part: Text, say: Say, behind: str) -> str:
    """A text, or what has to do with tools as plain words, behind what the turn has said already."""
    if isinstance(part, Tools):
        lines = [say(json.dumps(tool, ensure_ascii=False)) for tool in json.loads(part.text)]
        return "\n\n" * bool(behind) + TOOLS.format(tools="\n".join(lines))
    if isinstance(part, ToolCall):
        return "\n" * bool(behind) + f"{TOOL_CALL_START}\n{say(part.text)}\n{TOOL_CALL_END}"
    if isinstance(part, ToolResult):
        return "\n" * bool(behind) + f"<tool_response>\n{say(part.text)}\n</tool_response>"
    return say(part.text)


def with_results_together(conversation: Conversation) -> Conversation:
    """Results of calls made at once become one turn, which a template that knows no tools shows as the user's."""
    turns: list[Turn] = []
    for turn in conversation.turns:
        if turns and turn.role == turns[-1].role == "tool":
            turns[-1] = Turn("tool", (*turns[-1].parts, *turn.parts))
        else:
            turns.append(turn)
    return Conversation(tuple(turns))


@functools.lru_cache(maxsize=32)
def knows_tools(jinja: str) -> bool:
    """Whether a template asks for tools."""
    from jinja2 import Environment, TemplateSyntaxError, meta

    try:
        tree = Environment(extensions=["jinja2.ext.loopcontrols"]).parse(jinja)
    except TemplateSyntaxError:  # whoever renders it says so
        return False
    return "tools" in meta.find_undeclared_variables(tree)


def without_tools(conversation: Conversation) -> tuple[Turn, ...]:
    """For a template that is told them beside the turns."""
    first, *rest = conversation.turns
    parts = tuple(part for part in first.parts if not isinstance(part, Tools))
    return (
        conversation.turns if len(parts) == len(first.parts) else (*([Turn("system", parts)] if parts else []), *rest)
    )


def called(turn: Turn, say: Say) -> list[dict[str, Any]]:
    """The calls of a turn as templates expect them: arguments as an object."""
    calls = [(part.id, json.loads(part.text)) for part in turn.parts if isinstance(part, ToolCall)]
    return [{"type": "function", "id": call_id, "function": disarmed(call, say)} for call_id, call in calls]


def disarmed(value: Any, say: Say) -> Any:
    """The same JSON, every text in it said. Raises MessageError for what is nested too deeply."""
    try:
        return _disarmed(value, say)
    except RecursionError:
        raise MessageError("A tool or a call of one is nested too deeply to be shown to the model.") from None


def _disarmed(value: Any, say: Say) -> Any:
    if isinstance(value, str):
        return say(value)
    if isinstance(value, list):
        return [_disarmed(each, say) for each in value]
    if isinstance(value, dict):
        return {say(key): _disarmed(each, say) for key, each in value.items()}
    return value
