"""Load balancing beside any objective: the routers of a mixture of experts are kept from using a few alone.

The released training code adds the router loss times a coefficient where its language model has one (InternVL3.5,
arXiv 2508.18265; the loss is Switch Transformer's, ops/experts.py).
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from cascadevl.data.batch import Batch
from cascadevl.models.experts import SparseMLP
from cascadevl.models.gpt_oss import GptOssMLP
from cascadevl.models.internvl import InternVL
from cascadevl.ops.experts import balance_loss
from cascadevl.training.objectives import Loss, Objective


@dataclass(frozen=True, kw_only=True, slots=True)
class Balanced:
    """`objective` plus `coefficient` times the balance loss of all layers' routers together.

    Packs of one step are weighed as `weigh` weighs them in the objective; each is balanced by itself.
    """

    objective: Objective
    coefficient: float
    weigh: Callable[[Batch], float] | None = None

    def __call__(self, model: InternVL, batch: Batch) -> Loss:
        logits: list[Tensor] = []

        def keep(router: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
            logits.append(output)

        hooks = [router.register_forward_hook(keep) for router in routers(model)]
        try:
            loss = self.objective(model, batch)
        finally:
            for hook in hooks:
                hook.remove()
        experts = model.config.decoder.experts
        if experts is None or not logits:  # the objective did not run the decoder
            return loss
        uneven = balance_loss(torch.cat(logits), experts.num_per_token)
        share = self.weigh(batch) / batch.denominator if self.weigh and batch.denominator else 1.0
        terms = {**loss.terms, "balance": uneven.item()}
        return Loss(loss.total + self.coefficient * share * uneven, terms, loss.num_tokens)


def routers(model: nn.Module) -> list[nn.Module]:
    """Those of a decoder's layers, in order."""
    found = [module for module in model.modules() if isinstance(module, SparseMLP | GptOssMLP)]
    return [module.gate if isinstance(module, SparseMLP) else module.router for module in found]
