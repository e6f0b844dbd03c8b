"""What bodies look like; strict, and closed to fields that nobody knows.

OpenAI's fields: https://platform.openai.com/docs/api-reference. Ours beside them: `top_k`, `min_p`,
`repetition_penalty`, `min_tokens`, `ignore_eos`, `loop_guard`, `max_tiles`, `deadline_s`. Where a field is left out,
the answer is greedy, as everywhere in this program.
"""

from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from cascadevl.core.generation import Sampling

Stop = Annotated[str, Field(min_length=1, max_length=256)]
TokenId = Annotated[str, Field(pattern=r"^[0-9]{1,9}$")]
Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]
# One thing that is wrong is told, hence one is enough of what may be many.
Texts = Annotated[list[str], Field(fail_fast=True)]
Tokens = Annotated[list[int], Field(fail_fast=True)]
Items = Annotated[list[dict[str, Any]], Field(fail_fast=True)]

MOST_TOOLS = 128
MOST_BIASES = 1024


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class StreamOptions(Strict):
    include_usage: bool | None = None
    include_obfuscation: Literal[False] | None = None


class JsonSchema(Strict):
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] = Field(alias="schema")
    strict: bool | None = None


class ResponseFormat(Strict):
    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class Function(Strict):
    """A tool. `strict` is kept where a call is forced; a model that may choose is taken at its word."""

    name: str = Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class ChatTool(Strict):
    type: Literal["function"]
    function: Function


class Wishes(Strict):
    """What every question can say about its answer."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=0)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, gt=0, le=10)
    presence_penalty: Penalty | None = None
    frequency_penalty: Penalty | None = None
    logit_bias: Annotated[dict[TokenId, Bias], Field(max_length=MOST_BIASES)] | None = None
    seed: int | None = Field(None, gt=-(2**62), lt=2**62)
    stop: Stop | Annotated[list[Stop], Field(max_length=16)] | None = None
    min_tokens: int | None = Field(None, ge=0)
    ignore_eos: bool | None = None
    loop_guard: bool | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    deadline_s: float | None = Field(None, gt=0)

    def sampling(self, **more: Any) -> Sampling:
        same = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty", "seed", "loop_guard", "ignore_eos")
        values: dict[str, Any] = {
            **{name: getattr(self, name) for name in (*same, "presence_penalty", "frequency_penalty")},
            "logit_bias": {int(token_id): bias for token_id, bias in (self.logit_bias or {}).items()},
            "min_new_tokens": self.min_tokens,
            "stop": tuple(self.stop) if isinstance(self.stop, list) else self.stop,
            **more,
        }
        if values["loop_guard"] is None and (self.ignore_eos or self.min_tokens):
            values["loop_guard"] = False  # who wants so many tokens wants them even if they repeat themselves
        return Sampling(**{name: value for name, value in values.items() if value is not None})


class ToolWishes(Strict):
    """How tools are to be used."""

    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None


class Body(Wishes):
    """What chats and completions have in common."""

    n: int = Field(1, ge=1)
    max_tokens: int | None = Field(None, ge=1)


class ChatBody(Body, ToolWishes):
    """POST /v1/chat/completions"""

    messages: Items = Field(min_length=1)
    max_completion_tokens: int | None = Field(None, ge=1)
    max_tiles: int | None = Field(None, ge=1)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    response_format: ResponseFormat | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MOST_TOOLS)] | None = None


class CompletionBody(Body):
    """POST /v1/completions"""

    prompt: str | Texts | Tokens | Annotated[list[Tokens], Field(fail_fast=True)]
    logprobs: int | None = Field(None, ge=0, le=20)


class TokenizeBody(Strict):
    """POST /tokenize"""

    model: str | None = None
    prompt: str | None = None
    messages: Items | None = None
    tools: Annotated[list[ChatTool], Field(max_length=MOST_TOOLS)] | None = None
    max_tiles: int | None = Field(None, ge=1)


class TextFormat(Strict):
    type: Literal["text", "json_object", "json_schema"] = "text"
    name: str = ""
    description: str | None = None
    schema_: dict[str, Any] | None = Field(None, alias="schema")
    strict: bool | None = None


class TextWishes(Strict):
    format: TextFormat | None = None
    verbosity: Literal["medium"] | None = None


class ResponseTool(Function):
    type: Literal["function"]


class ResponseBody(Wishes, ToolWishes):
    """POST /v1/responses"""

    input: str | Items
    instructions: str | None = None
    max_output_tokens: int | None = Field(None, ge=1)
    max_tiles: int | None = Field(None, ge=1)
    include: list[Literal["message.output_text.logprobs"]] | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)
    text: TextWishes | None = None
    tools: Annotated[list[ResponseTool], Field(max_length=MOST_TOOLS)] | None = None
