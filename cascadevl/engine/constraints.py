"""Constrained output: at each step, the tokens after which the answer can still become what it must be.

The grammar work is llguidance's (https://github.com/guidance-ai/llguidance), an Earley parser over bytes with
derivatives of regular expressions. Ours is to tell it what bytes our tokens stand for, and to bound what a request
may ask of it. Tokens are never forced ahead of the model: only those that lead astray are banned.
"""

import functools
import json
import string
from typing import Any

import torch
from torch import Tensor

from cascadevl.core.errors import ConfigError, MissingExtra
from cascadevl.core.generation import Constraint
from cascadevl.preprocessing.parse import CHANNEL, MESSAGE, TOOL_CALL_END, TOOL_CALL_START
from cascadevl.preprocessing.tokenizer import TextTokenizer
from cascadevl.preprocessing.tokenizer_pieces import SPACE, PieceStream

MOST_CHARACTERS = 65536
"""Of a constraint; a schema of that length compiles in under a second."""

FUEL = 100_000
"""What llguidance may spend on the first mask. Schemas of hundreds of patterns take less; an expression that repeats
what it repeats, such as (a{1000}){1000}, would hold up every other request for three seconds with its own million."""

MOST_CALLS = 16
"""Of tools, in one answer that must call some."""

WHITE_SPACE = r"[ \n\t]{0,16}"
"""Between the parts of JSON. Weak models otherwise say white space until the budget ends."""


ONE_SPACE = " ?"
"""Between the parts of a call, as models are shown calls."""


class Guide:
    """Follows one answer: `mask` before each token is chosen, `push` after."""

    def __init__(self, constraint: Constraint, tokenizer: TextTokenizer, stop_ids: tuple[int, ...]) -> None:
        """Raises ConfigError for a constraint that means nothing, that nothing satisfies, or that is too large."""
        llguidance = _library()
        if not stop_ids:
            raise ConfigError("The model has no token that ends an answer: no constraint could be met and left.")
        length = len(constraint.value if isinstance(constraint.value, str) else "".join(constraint.value))
        if length > MOST_CHARACTERS:
            raise ConfigError(f"The {constraint.kind} has {length} characters; at most {MOST_CHARACTERS} are compiled.")
        self._name = constraint.kind
        grammar = llguidance.LLMatcher.grammar_from_lark(_grammar(constraint, tokenizer))
        limits = llguidance.LLParserLimits(verbose_errors=False, initial_lexer_fuel=FUEL)
        self._matcher = llguidance.LLMatcher(_vocabulary(tokenizer, stop_ids), grammar, log_level=0, limits=limits)
        self._check("cannot be used")
        self._allowed("admits no answer at all")

    @property
    def finished(self) -> bool:
        """The text is complete, and nothing may follow."""
        return self._matcher.is_stopped() and not self._matcher.is_error()

    def mask(self, logits_V: Tensor) -> None:
        """Set the logits of tokens that may not come next to -inf, in place.

        Raises ConfigError where it cannot be told within the limits, or no token of this vocabulary goes on.
        """
        allowed_V = self._allowed("cannot be followed any further")
        logits_V[len(allowed_V) :] = float("-inf")
        logits_V[: len(allowed_V)].masked_fill_(~allowed_V[: len(logits_V)].to(logits_V.device), float("-inf"))

    def push(self, token_id: int) -> None:
        """A token was chosen among those that `mask` left. Where limits end behind it, the next `mask` says so."""
        self._matcher.consume_token(token_id)

    def _allowed(self, unless: str) -> Tensor:
        """(V,): the tokens that may come next."""
        allowed_V = torch.frombuffer(bytearray(self._matcher.compute_logit_bias()), dtype=torch.uint8).bool()
        self._check(unless)
        if not allowed_V.any():
            raise ConfigError(f"The constraint ({self._name}) {unless}: no token of the model's vocabulary fits.")
        return allowed_V

    def _check(self, what: str) -> None:
        if self._matcher.is_error():
            reason = " ".join(self._matcher.get_error().replace("<non-verbose/>", "").split())
            reason = reason.partition(" 1 | start")[0]  # what follows is our grammar, not the user's
            raise ConfigError(f"The constraint ({self._name}) {what}: {reason:.300}")


def _grammar(constraint: Constraint, tokenizer: TextTokenizer) -> str:
    """What may be said, in the Lark dialect of llguidance (its docs/syntax.md)."""
    import llguidance

    value, start = constraint.value, "answer"
    if constraint.kind == "json_schema":
        body = f"answer: %json {json.dumps(_schema(str(value)))}"
    elif constraint.kind == "regex":
        # The group makes what ends in the middle of something, such as \, an error instead of part of our syntax.
        body = f"answer: /{llguidance.regex_to_lark(f'(?:{value})', 'd')}/"
    elif constraint.kind in ("tool_call", "tool_calls"):
        more = f' ("\\n" call){{0,{MOST_CALLS - 1}}}' if constraint.kind == "tool_calls" else ""
        start_tag, end_tag = (
            tag if tag in tokenizer.controls else json.dumps(tag) for tag in (TOOL_CALL_START, TOOL_CALL_END)
        )
        body = (
            f'answer: call{more}\ncall: {start_tag} "\\n" object "\\n" {end_tag}\n'
            f"object: %json {json.dumps(_schema(str(value), ONE_SPACE))}"
        )
    else:
        # A terminal, by its capitals: the parser would follow at most 2,000 rules that begin side by side.
        body = "answer: CHOICE\nCHOICE: " + " | ".join(json.dumps(choice) for choice in value)
    if {CHANNEL, MESSAGE} <= tokenizer.controls.keys():
        start = f'{CHANNEL} "final" {MESSAGE} answer'
    elif _drops_first(tokenizer):
        start = '" " answer'
    return f"start: {start}\n{body}"


def _schema(text: str, white_space: str = WHITE_SPACE) -> dict[str, Any]:
    try:
        schema = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"The constraint (json_schema) cannot be read as JSON: {error}.") from error
    if not isinstance(schema, dict):
        raise ConfigError(f"The constraint (json_schema) must be a JSON object, got {text!r:.80}.")
    # Under this key, llguidance takes options, which are not for whoever sends a request.
    return {**schema, "x-guidance": {"whitespace_pattern": white_space}}


@functools.lru_cache(maxsize=4)
def _vocabulary(tokenizer: TextTokenizer, stop_ids: tuple[int, ...]) -> Any:
    """A tokenizer as llguidance knows it; a second of work for a large one, hence kept."""
    llguidance = _library()
    return llguidance.LLTokenizer(
        llguidance.TokenizerWrapper(_Entries(tokenizer, stop_ids)), eos_token=list(stop_ids), slices=[]
    )


class _Entries:
    """What llguidance asks of a tokenizer."""

    bos_token_id = None

    def __init__(self, tokenizer: TextTokenizer, stop_ids: tuple[int, ...]) -> None:
        self._tokenizer = tokenizer
        self.tokens = token_bytes(tokenizer)
        self.special_token_ids = sorted({*tokenizer.controls.values(), *stop_ids})
        self.eos_token_id = stop_ids[0]

    def __call__(self, text: str) -> list[int]:
        return self._tokenizer.encode(text, inside=True)


def token_bytes(tokenizer: TextTokenizer) -> list[bytes]:
    """The bytes of the text that each token stands for; control tokens by their names, unused ones empty."""
    backend: Any = tokenizer.backend
    names = {token_id: token for token, token_id in tokenizer.controls.items()}
    names |= backend.added  # written as they are
    in_pieces = isinstance(backend.stream(), PieceStream)
    letters = byte_letters()
    found = []
    for token_id in range(len(tokenizer)):
        piece = backend.piece(token_id)
        if token_id in names:
            found.append(names[token_id].encode())
        elif not in_pieces:
            known = all(letter in letters for letter in piece)
            found.append(bytes(letters[letter] for letter in piece) if known else b"")
        elif (byte := backend.byte(token_id)) is not None:
            # A space as a byte is kept where ▁ is dropped: one way to say it is enough.
            found.append(b"" if bytes([byte]) == b" " else bytes([byte]))
        else:
            found.append(piece.replace(SPACE, " ").encode())
    return found


def byte_letters() -> dict[str, int]:
    """The letters that stand for bytes in byte-level BPE (GPT-2): those one can see for themselves, others in turn."""
    seen = [
        *map(ord, string.punctuation + string.digits + string.ascii_letters),
        *range(0xA1, 0xAD),
        *range(0xAE, 0x100),
    ]
    unseen = [byte for byte in range(256) if byte not in seen]
    return {chr(byte): byte for byte in seen} | {chr(256 + n): byte for n, byte in enumerate(unseen)}


def _drops_first(tokenizer: TextTokenizer) -> bool:
    """Whether a ▁ that begins an answer is not part of its text: then there must be one."""
    backend: Any = tokenizer.backend
    return isinstance(backend.stream(), PieceStream) and backend.drops_first


def _library() -> Any:
    try:
        import llguidance
    except ImportError as error:
        raise MissingExtra("Constrained output needs llguidance: pip install 'cascadevl[constraints]'") from error
    return llguidance
