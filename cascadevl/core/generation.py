"""What is asked of a generator and what it gives back."""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

from cascadevl.core.config import fits
from cascadevl.core.errors import ConfigError
from cascadevl.core.messages import Conversation
from cascadevl.core.shapes import Grid

FinishReason = Literal["stop", "length", "repetition", "abort", "error"]


@dataclass(frozen=True, slots=True)
class Constraint:
    """What the text of an answer must be."""

    kind: Literal["json_schema", "regex", "choices", "tool_call", "tool_calls"]
    value: str | Sequence[str] | Mapping[str, Any]
    """A schema (a mapping, kept as JSON), a regular expression for the whole text, or the texts allowed.

    For one call of a tool, or several, the schema of a call, which then stands in the tags of calls.
    """

    def __post_init__(self) -> None:
        value: Any = self.value
        schema = "a mapping or JSON text"
        expected = {
            "json_schema": schema,
            "regex": "a text",
            "choices": "a list of texts, none empty",
            "tool_call": schema,
            "tool_calls": schema,
        }
        if self.kind not in expected:
            raise ConfigError(f"Constraint: kind must be one of {', '.join(expected)}, got {self.kind!r}.")
        if expected[self.kind] == schema and isinstance(value, Mapping):
            try:
                value = json.dumps(value)
            except (TypeError, ValueError, RecursionError) as error:
                raise ConfigError(f"Constraint: a schema must be JSON: {error}.") from error
        if self.kind == "choices":
            value = tuple(value) if isinstance(value, list) else value
            good = isinstance(value, tuple) and bool(value) and all(isinstance(text, str) and text for text in value)
        else:
            good = isinstance(value, str) and bool(value)
        if not good:
            raise ConfigError(f"Constraint: {self.kind} takes {expected[self.kind]}, got {value!r:.80}.")
        object.__setattr__(self, "value", value)


@dataclass(frozen=True, kw_only=True, slots=True)
class Sampling:
    """How tokens are chosen; the defaults are greedy."""

    max_new_tokens: int = 512
    """The answer is cut after so many tokens, with finish_reason "length"."""
    temperature: float = 0.0
    """0 takes the likeliest token; the fields down to min_p then have no effect."""
    top_k: int = 0
    """Keep the k likeliest tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the likeliest tokens that together reach this probability (nucleus)."""
    min_p: float = 0.0
    """Keep tokens with at least this share of the likeliest one's probability."""
    repetition_penalty: float = 1.0
    """Divide positive, multiply negative logits of tokens already seen (CTRL, §4.1)."""
    presence_penalty: float = 0.0
    """Taken once from the logit of every token that the answer has."""
    frequency_penalty: float = 0.0
    """Taken from the logit of a token as often as the answer has it."""
    logit_bias: tuple[tuple[int, float], ...] = ()
    """(token, what is added to its logit); a mapping is taken too. No bias brings back a token that is banned."""
    min_new_tokens: int = 0
    """Before so many, no token that ends the answer is chosen; stop texts and the loop guard still end it."""
    ignore_eos: bool = False
    """Never choose a token that ends the answer."""
    seed: int | None = None
    """Same seed, same answer; None draws a fresh one."""
    stop: tuple[str, ...] = ()
    """Texts that end the answer; they are not part of it."""
    logprobs: int | None = None
    """None: none; 0: of the chosen tokens; k: of the k likeliest as well."""
    loop_guard: bool = True
    """End with finish_reason "repetition" when the answer only repeats itself."""
    constraint: Constraint | None = None
    """What the text must be, unless it is cut off; tokens that lead elsewhere are banned."""

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        if not isinstance(self.stop, Sequence) or not all(isinstance(text, str) for text in self.stop):
            raise ConfigError(f"Sampling: stop must be a text or several, got {self.stop!r:.80}.")
        object.__setattr__(self, "stop", tuple(self.stop))
        object.__setattr__(self, "logit_bias", _pairs(self.logit_bias))
        for name in ("max_new_tokens", "min_new_tokens", "top_k", "seed", "logprobs"):
            value = getattr(self, name)
            unset = value is None and name in ("seed", "logprobs")
            if not unset and not fits(int, value):
                raise ConfigError(f"Sampling: {name} must be a whole number, got {value!r}.")
        for name in ("temperature", "top_p", "min_p", "repetition_penalty", "presence_penalty", "frequency_penalty"):
            value = getattr(self, name)
            if not fits(float, value) or not math.isfinite(value):
                raise ConfigError(f"Sampling: {name} must be a finite number, got {value!r}.")
        checks = [
            (self.max_new_tokens >= 1, "max_new_tokens must be at least 1", self.max_new_tokens),
            (
                0 <= self.min_new_tokens <= self.max_new_tokens,
                "min_new_tokens must lie in 0…max_new_tokens",
                self.min_new_tokens,
            ),
            (self.temperature >= 0, "temperature must not be negative", self.temperature),
            (self.top_k >= 0, "top_k must not be negative (0 keeps all)", self.top_k),
            (0 < self.top_p <= 1, "top_p must lie in (0, 1]", self.top_p),
            (0 <= self.min_p <= 1, "min_p must lie in [0, 1]", self.min_p),
            (self.repetition_penalty > 0, "repetition_penalty must be positive", self.repetition_penalty),
            (self.logprobs is None or 0 <= self.logprobs <= 20, "logprobs must lie in 0…20", self.logprobs),
            (self.seed is None or abs(self.seed) < 2**63, "seed must fit 64 bits", self.seed),
            (all(self.stop), "a stop text must not be empty", self.stop),
            (
                self.constraint is None or isinstance(self.constraint, Constraint),
                "constraint must be a Constraint",
                self.constraint,
            ),
            (
                self.constraint is None or not (self.ignore_eos or self.min_new_tokens),
                "a constraint says when the answer is complete: ignore_eos and min_new_tokens contradict it",
                (self.ignore_eos, self.min_new_tokens),
            ),
        ]
        for good, rule, value in checks:
            if not good:
                raise ConfigError(f"Sampling: {rule}, got {value!r}.")


def _pairs(bias: Any) -> tuple[tuple[int, float], ...]:
    """A bias in one form and order, so that equal ones are equal."""
    try:
        pairs = [(token_id, value) for token_id, value in (bias.items() if isinstance(bias, Mapping) else bias)]
    except (TypeError, ValueError):
        raise ConfigError(f"Sampling: logit_bias must map tokens to numbers, got {bias!r:.80}.") from None
    for token_id, value in pairs:
        if not (fits(int, token_id) and token_id >= 0 and fits(float, value) and math.isfinite(value)):
            raise ConfigError(f"Sampling: logit_bias must map tokens to finite numbers, got {token_id!r}: {value!r}.")
    if len(dict(pairs)) < len(pairs):
        raise ConfigError("Sampling: logit_bias names a token twice.")
    return tuple(sorted((token_id, float(value)) for token_id, value in pairs))


@dataclass(frozen=True, kw_only=True, slots=True)
class Usage:
    """Tokens of one request."""

    prompt_tokens: int = 0
    visual_tokens: int = 0
    """Those of the prompt that stand for tiles."""
    completion_tokens: int = 0
    tiles: int = 0
    cached_tokens: int = 0
    """Those of the prompt whose keys and values were there already."""


@dataclass(frozen=True, slots=True)
class TokenLogprob:
    """Natural log-probability of a chosen token before temperature and truncation."""

    token_id: int
    logprob: float
    top: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True, kw_only=True, slots=True)
class Generation:
    """One answer. `error` is set, and `text` empty, for a request that failed."""

    text: str
    """What was said; a stop text that ended it is not part of it."""
    token_ids: tuple[int, ...] = ()
    """All that were chosen, the one that ended the answer among them."""
    logprobs: tuple[TokenLogprob, ...] | None = None
    """Of each of `token_ids`, where they were asked for."""
    finish_reason: FinishReason = "stop"
    """Why it ended: by itself or at a stop text, cut, repeating itself, given up by who asked, failed."""
    usage: Usage = field(default_factory=Usage)
    spec_hash: str = ""
    """Of the preprocessing spec by which its inputs were made."""
    grids: tuple[Grid, ...] = ()
    """(columns, rows) of the tiles of each picture."""
    timings: dict[str, float] = field(default_factory=dict)
    """Seconds: preprocess_s, prefill_s (simple) or first_token_s since submission (engine), decode_s."""
    error: Exception | None = None


class Generator(Protocol):
    """Engine, HTTP endpoint, scripted fake: answers in the order of the questions."""

    def generate(
        self, conversations: Sequence[Conversation | Sequence[dict[str, Any]]], sampling: Sampling
    ) -> list[Generation]: ...
