"""Muon for matrices, AdamW for the rest: one optimizer.

Muon (Jordan et al., 2024, https://kellerjordan.github.io/posts/muon): the momentum of a matrix is
orthogonalised before it is applied, so that every direction learns at the same speed. Steps are scaled
to the size of AdamW's (Moonlight, arXiv 2502.16982, eq. 4), so both share one learning rate. torch's
own Muon orthogonalises in bf16, which CPUs without bf16 units multiply many times slower than fp32:
here the type is asked for.
"""

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

COEFFICIENTS = (3.4445, -4.7750, 2.0315)
"""Of the quintic iteration: steepest at zero, all singular values end near one."""


@torch.no_grad()
def orthogonalise(matrices: Tensor, steps: int = 5, products: torch.dtype = torch.float32) -> Tensor:
    """(G, m, n) with m <= n -> the nearest matrices with orthonormal rows, roughly (Newton–Schulz)."""
    a, b, c = COEFFICIENTS
    x = (matrices / (matrices.norm(dim=(1, 2), keepdim=True) + 1e-7)).to(products)
    for _ in range(steps):
        gram = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(gram, gram, gram, beta=b, alpha=c), x, beta=a)
    return x.to(matrices.dtype)


class Muon(torch.optim.Optimizer):
    """Groups with "muon": True hold matrices; the others are stepped by AdamW."""

    def __init__(self, groups: Iterable[dict[str, Any]], products: torch.dtype = torch.float32) -> None:
        defaults = {"lr": 1e-3, "weight_decay": 0.0, "momentum": 0.95, "betas": (0.9, 0.98), "eps": 1e-8, "muon": False}
        super().__init__(groups, defaults)
        self.products = products

    @torch.no_grad()
    def step(self, closure: Callable[[], float] | None = None) -> None:  # type: ignore[override]
        assert closure is None, "this loop evaluates its loss itself"
        for group in self.param_groups:
            parameters = [p for p in group["params"] if p.grad is not None]
            (self._muon if group["muon"] else self._adamw)(parameters, group)

    def _muon(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        pending: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["momentum"] = torch.zeros_like(parameter)
            momentum = state["momentum"].lerp_(parameter.grad, 1 - group["momentum"])
            ahead = parameter.grad.lerp(momentum, group["momentum"])  # Nesterov
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            # A fused qkv matrix is three matrices, each with directions of its own.
            thirds = 3 if parameter.shape[0] == 3 * parameter.shape[1] else 1
            for target, update in zip(parameter.chunk(thirds), ahead.chunk(thirds), strict=True):
                if target.shape[0] > target.shape[1]:
                    target, update = target.mT, update.mT
                pending.setdefault((target.shape[0], target.shape[1]), []).append((target, update))
        for (_, columns), items in pending.items():
            updates = orthogonalise(torch.stack([update for _, update in items]), products=self.products)
            for (target, _), update in zip(items, updates, strict=True):
                target.add_(update, alpha=-group["lr"] * 0.2 * columns**0.5)

    def _adamw(self, parameters: list[nn.Parameter], group: dict[str, Any]) -> None:
        for parameter in parameters:
            assert parameter.grad is not None
            state = self.state[parameter]
            if not state:
                state["step"] = torch.zeros(())
                state["mean"], state["square"] = torch.zeros_like(parameter), torch.zeros_like(parameter)
            state["step"] += 1
            at, (beta1, beta2) = float(state["step"]), group["betas"]
            mean = state["mean"].lerp_(parameter.grad, 1 - beta1)
            square = state["square"].lerp_(parameter.grad.square(), 1 - beta2)
            parameter.mul_(1 - group["lr"] * group["weight_decay"])
            deviation = (square / (1 - beta2**at)).sqrt_().add_(group["eps"])
            parameter.addcdiv_(mean, deviation, value=-group["lr"] / (1 - beta1**at))


def muon(
    named: Iterable[tuple[str, nn.Parameter]],
    *,
    lr: float,
    weight_decay: float,
    products: torch.dtype = torch.float32,
) -> Muon:
    """Hidden matrices to Muon, orthogonalised in `products`; embeddings, outputs, norms and biases to AdamW without
    decay."""
    hidden, rest = [], []
    for name, parameter in named:
        outside = "embed" in name or "lm_head" in name or name.startswith("out.")
        (hidden if parameter.ndim == 2 and not outside else rest).append(parameter)
    return Muon(
        [
            {"params": hidden, "muon": True, "weight_decay": weight_decay, "peak_lr": lr},
            {"params": rest, "peak_lr": lr},
        ],
        products,
    )
