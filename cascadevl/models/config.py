"""Sizes of every part. None has a default: a model says what it is."""

from dataclasses import dataclass
from typing import Literal

from cascadevl.core.errors import ConfigError
from cascadevl.core.shapes import visual_tokens_per_tile
from cascadevl.ops.rope import Rope


@dataclass(frozen=True, kw_only=True, slots=True)
class VisionConfig:
    """InternViT: 300M (layer norm, biased qkv) and 6B (RMS norm, joint QK norm)."""

    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    tile_px: int
    patch_px: int
    qkv_bias: bool
    qk_norm: bool
    norm: Literal["layer_norm", "rms_norm"]
    norm_eps: float
    drop_path: float
    """Share of residual branches skipped in training, growing linearly over depth to this."""
    pixel_mean: tuple[float, float, float]
    pixel_std: tuple[float, float, float]

    def __post_init__(self) -> None:
        if self.hidden_size % self.num_heads:
            raise ConfigError(f"Vision hidden_size {self.hidden_size} is no multiple of {self.num_heads} heads.")
        if self.tile_px % self.patch_px:
            raise ConfigError(f"tile_px {self.tile_px} is no multiple of patch_px {self.patch_px}.")


@dataclass(frozen=True, kw_only=True, slots=True)
class ExpertsConfig:
    """A mixture of experts in the place of each MLP."""

    num_experts: int
    num_per_token: int
    """Experts that each token is sent to: the best by the router's score."""
    mlp_size: int
    """Width of one expert."""
    normalise: bool
    """The weights of the chosen experts are scaled to sum to one (`norm_topk_prob`)."""
    clamp: float | None = None
    """Experts of GPT-OSS, biased, with this limit in their SwiGLU."""

    def __post_init__(self) -> None:
        if not 1 <= self.num_per_token <= self.num_experts:
            raise ConfigError(f"{self.num_per_token} of {self.num_experts} experts per token cannot be.")


@dataclass(frozen=True, kw_only=True, slots=True)
class DecoderConfig:
    """The language model. A family is a way to fill this in: `families.py`."""

    family: str
    hidden_size: int
    mlp_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_size: int
    vocab_size: int
    rope: Rope
    norm_eps: float
    qkv_bias: bool
    qk_norm: bool
    """RMS norm of each query and key head before rotation (Qwen3)."""
    tied: bool
    """The output matrix is the embedding matrix."""
    out_bias: bool = False
    """Bias behind the attention heads (GPT-OSS)."""
    window: int | None = None
    """Keys that a query sees, itself included; None sees all."""
    full_every: int = 0
    """With a window: every so many layers one sees all; 2 is the second, the fourth, …; 0 is none."""
    sinks: bool = False
    """A learned score per head joins the softmax and is dropped again (GPT-OSS)."""
    experts: ExpertsConfig | None = None
    """A mixture of experts in the place of each MLP, whose width is then the experts' own."""

    def __post_init__(self) -> None:
        if self.num_heads % self.num_kv_heads:
            raise ConfigError(f"{self.num_heads} query heads cannot share {self.num_kv_heads} key heads.")

    def layer_window(self, index: int) -> int | None:
        """Of layer `index`, counted from 0."""
        return None if self.full_every and (index + 1) % self.full_every == 0 else self.window


@dataclass(frozen=True, kw_only=True, slots=True)
class FlashConfig:
    """When the resolution router (ViR) sends a tile through the short path, InternVL3.5 §2.3."""

    enabled: bool
    """Generation asks the router; otherwise its weights are only carried along."""
    relative_threshold: float | None
    """Share of a request's tiles that stay as they are: those up to this quantile of the router's probability."""
    absolute_threshold: float | None
    """Least probability of a tile that is compressed."""

    def __post_init__(self) -> None:
        for name in ("relative_threshold", "absolute_threshold"):
            value = getattr(self, name)
            if value is None and self.enabled:
                raise ConfigError(f"Flash routing needs {name}: none is known that would suit every router.")
            if value is not None and not 0 <= value <= 1:
                raise ConfigError(f"Flash {name} {value} is no probability: expected 0 to 1.")


@dataclass(frozen=True, kw_only=True, slots=True)
class InternVLConfig:
    """Tower, projector and decoder together."""

    vision: VisionConfig
    decoder: DecoderConfig
    downsample_ratio: float
    """Side of the token grid after pixel shuffle over before: 0.5 makes 1024 patches 256 tokens."""
    pixel_shuffle: Literal["v1", "v2"]
    select_layer: int
    """Which hidden state of the tower is used: -1 is the last, -2 the one before."""
    image_token_id: int
    """Id of `<IMG_CONTEXT>`; embeddings at these places are replaced by visual tokens."""
    flash: FlashConfig | None = None
    """The resolution router of InternVL3.5-Flash; None is a model without one."""

    def __post_init__(self) -> None:
        if self.pixel_shuffle not in ("v1", "v2"):
            raise ConfigError(f"There is no pixel shuffle {self.pixel_shuffle!r}: expected v1 or v2.")
        side = self.vision.tile_px // self.vision.patch_px
        if (side * self.downsample_ratio) % 1:
            raise ConfigError(f"A grid of {side}×{side} patches cannot be shrunk by {self.downsample_ratio}.")
        if self.flash is not None and (side * self.downsample_ratio**2) % 1:
            raise ConfigError(
                f"A grid of {side}×{side} patches cannot be shrunk twice by {self.downsample_ratio}, as Flash needs."
            )
        if not -self.vision.num_layers - 1 <= self.select_layer <= self.vision.num_layers:
            raise ConfigError(
                f"select_layer {self.select_layer} does not exist in a tower of {self.vision.num_layers} layers."
            )

    @property
    def visual_tokens_per_tile(self) -> int:
        return visual_tokens_per_tile(self.vision.tile_px, self.vision.patch_px, self.downsample_ratio)
