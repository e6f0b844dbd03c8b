"""Which parameters learn, at which rate, and which of them decay.

InternVL's stages differ in what learns: the projector alone, tower and projector, or all. Here a part is a pattern
over parameter names. The table of rates is that of the released training code: the tower's blocks may learn the slower
the deeper they lie (arXiv 2404.16821 takes it from BEiT, arXiv 2106.08254), and only matrices decay.
"""

import fnmatch
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import nn

from cascadevl.core.errors import ConfigError
from cascadevl.models.internvl import InternVL
from cascadevl.training.config import OptimConfig
from cascadevl.training.muon import muon

PRESETS = {"vit": "vision_model.*", "mlp": "mlp1.*", "llm": "language_model.*"}

Named = list[tuple[str, nn.Parameter]]


def matching(patterns: Sequence[str], names: Iterable[str], what: str = "parameter") -> list[str]:
    """Names that a preset or glob matches, in their order. Raises ConfigError for a pattern that matches none."""
    names, found = list(names), set[str]()
    for pattern in patterns:
        hits = fnmatch.filter(names, PRESETS.get(pattern, pattern))
        if not hits:
            raise ConfigError(
                f"{pattern!r} matches no {what} of this model. Presets: {', '.join(PRESETS)}; names look like "
                f"{names[0]!r} and {names[-1]!r}."
            )
        found.update(hits)
    return [name for name in names if name in found]


def choose(model: InternVL, patterns: Sequence[str]) -> Named:
    """Let exactly the parameters learn that a pattern matches and that take part in the loss; gives them by name."""
    used = [name for name, _ in model.named_parameters() if not _idle(name, model)]
    chosen = set(matching(patterns, used))
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name in chosen)
    return [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]


def _idle(name: str, model: InternVL) -> bool:
    """The router and short path of Flash models, and tower blocks behind the selected layer."""
    blocks = model.config.select_layer % (model.config.vision.num_layers + 1)
    block = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    router = name.startswith(("pooling_before_gating.", "gating.", "mlp2."))
    return router or (block is not None and int(block[1]) >= blocks)


def make_optimizer(named: Named, config: OptimConfig, *, num_blocks: int) -> torch.optim.Optimizer:
    """Groups of AdamW by rate and decay, or Muon; `num_blocks` of the tower."""
    if config.kind == "muon":
        return muon(named, lr=config.lr, weight_decay=config.weight_decay)
    groups: dict[tuple[float, float], dict[str, Any]] = {}
    for name, parameter in named:
        lr = config.lr * rate(name, num_blocks, config.vit_layer_decay)
        decay = config.weight_decay if decays(name, parameter) else 0.0
        group = groups.setdefault((lr, decay), {"params": [], "lr": lr, "peak_lr": lr, "weight_decay": decay})
        group["params"].append(parameter)
    # Fused is one pass over memory; without it a CPU goes through a dozen, parameter by parameter.
    fused = all(parameter.device.type in ("cpu", "cuda") for _, parameter in named)
    return torch.optim.AdamW(list(groups.values()), betas=config.betas, eps=config.eps, fused=fused)


def rate(name: str, num_blocks: int, layer_decay: float) -> float:
    """The last block of the tower learns at 1, each below at so much of it, the embeddings as one more below."""
    if not name.startswith("vision_model."):
        return 1.0
    block = re.match(r"vision_model\.encoder\.layers\.(\d+)\.", name)
    depth = int(block[1]) + 1 if block else 0
    return layer_decay ** (num_blocks - depth)


def decays(name: str, parameter: nn.Parameter) -> bool:
    """Matrices and patches do; vectors (norms, biases, layer scales, sinks), embeddings and stacked biases do not."""
    if parameter.ndim < 2 or name.endswith(("bias", "magnitude")):
        return False
    return not name.endswith(("embed_tokens.weight", "class_embedding", "position_embedding"))


def set_drop_path(model: InternVL, share: float) -> None:
    """Of the last block of the tower; the first drops nothing, and it grows evenly between them."""
    blocks = list(model.vision_model.encoder.layers)
    for index, block in enumerate(blocks):
        block.drop_path = share * index / max(len(blocks) - 1, 1)  # type: ignore[assignment]
