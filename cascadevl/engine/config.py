"""How much an engine may use."""

from dataclasses import dataclass
from typing import Literal

from cascadevl.core.errors import ConfigError
from cascadevl.core.precision import KV_FORMATS, KVFormat


@dataclass(frozen=True, kw_only=True, slots=True)
class EngineConfig:
    """Budgets. The defaults suit a laptop."""

    page_size: int = 16
    """Tokens of a page."""
    cache_bytes: int = 1_000_000_000
    """Memory for keys and values."""
    kv_format: KVFormat | Literal["auto"] = "auto"
    """How they are kept: of 8 or 4 bits, more fit; "auto" keeps what the model computes."""
    max_running: int = 64
    """Requests computed together."""
    max_step_tokens: int = 1024
    """Tokens computed in a step: one for each request that answers, the rest for reading prompts."""
    max_step_tiles: int = 16
    """Tiles encoded in a step, those of one request at least."""
    vision_bytes: int = 256_000_000
    """Memory for the visual tokens of tiles seen before."""
    prefix_cache: bool = True
    """Keep the keys and values of prompts, for others that begin the same."""
    batch_invariant: bool = False
    """A request gives bit-identical logits alone or in any batch; slower."""
    graphs: bool = True
    """On a GPU, record the launches of steps of few tokens and play them back: engine/graphs.py."""

    def __post_init__(self) -> None:
        if self.kv_format not in ("auto", *KV_FORMATS):
            known = ", ".join(("auto", *KV_FORMATS))
            raise ConfigError(f"EngineConfig: kv_format is {self.kv_format!r}, expected one of {known}.")
        for name in ("page_size", "max_running", "max_step_tokens", "max_step_tiles"):
            if getattr(self, name) < 1:
                raise ConfigError(f"EngineConfig: {name} must be at least 1, got {getattr(self, name)}.")
        # Of a model this knows nothing; the engine asks again. It is what a number of gigabytes runs into.
        if self.cache_bytes < 4 * self.page_size:
            raise ConfigError(
                f"EngineConfig: cache_bytes is {self.cache_bytes}, too little for {2 * self.page_size} tokens: "
                "expected bytes, such as 1000000000."
            )
        if self.vision_bytes < 0:
            raise ConfigError(f"EngineConfig: vision_bytes is {self.vision_bytes}; 0 keeps no visual tokens.")
        if self.max_step_tokens < self.max_running:
            raise ConfigError(
                f"EngineConfig: {self.max_running} requests that answer need as many tokens a step; "
                f"max_step_tokens is {self.max_step_tokens}."
            )
