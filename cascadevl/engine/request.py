"""A request's life: waiting, running, finished; and back to waiting when its pages are needed for others."""

import enum
import itertools
from dataclasses import dataclass, field

import numpy as np

from cascadevl.engine.pages import page_contents


class State(enum.Enum):
    WAITING = "waiting"
    RUNNING = "running"
    FINISHED = "finished"


_arrivals = itertools.count()


@dataclass(eq=False, slots=True)
class Request:
    """What the scheduler knows of a request: counts and pages, no tensors.

    Its tokens are the prompt's and those said so far. `num_computed` of them have keys and values in `pages`; a
    request that has computed all but the last one decodes, any other is being read.
    """

    prompt_keys: np.ndarray
    """(T,), int64: see `page_contents`."""
    max_new_tokens: int
    priority: int = 0
    """Greater goes first."""
    client: str = ""
    """Clients share the machine evenly, however many requests each has."""
    start: bytes = b""
    """What else keys and values depend on; no page is shared over its border."""
    max_cached: int | None = None
    """So many tokens at most may be taken from pages of others; the logits of the rest are wanted."""
    said: list[int] = field(default_factory=list)
    state: State = State.WAITING
    ready: bool = False
    """Its pictures are encoded."""
    after: "Request | None" = None
    """A twin with the same prompt, whose pages are worth waiting for."""
    pages: list[int] = field(default_factory=list)
    num_computed: int = 0
    num_cached: int = 0
    """Tokens whose pages were found when it was last admitted."""
    num_preempted: int = 0
    arrival: int = field(default_factory=lambda: next(_arrivals))
    _contents: list[bytes] = field(default_factory=list)

    @property
    def num_prompt(self) -> int:
        return len(self.prompt_keys)

    @property
    def num_tokens(self) -> int:
        return len(self.prompt_keys) + len(self.said)

    @property
    def decodes(self) -> bool:
        """One token is left to compute, and it was said last."""
        return bool(self.said) and self.num_computed == self.num_tokens - 1

    def contents(self, page_size: int) -> list[bytes]:
        """Names of its full pages so far."""
        if len(self._contents) < self.num_tokens // page_size:
            keys = np.concatenate([self.prompt_keys, np.asarray(self.said, np.int64)])
            self._contents = page_contents(keys, page_size, self.start, self._contents)
        return self._contents
