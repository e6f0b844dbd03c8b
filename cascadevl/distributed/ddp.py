"""Data parallelism: every rank has the whole model, and gradients are summed over the ranks.

Not torch's DistributedDataParallel: that reduces while the gradient is computed, and waits for ever where a rank's
batch leaves a part of the model out, such as the tower where no sample has a picture. Here every rank adds up its
micro-batches first, as many as it has, and says which gradients exist; then all are summed in buckets. Nothing of a
batch decides who waits for whom. The price is that sending does not overlap with computing.
"""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor, nn

from cascadevl.distributed.mesh import World

BUCKET_NUMBERS = 16_000_000
"""Numbers that are sent at once: 64 MB of fp32."""


@torch.no_grad()
def sum_gradients(parameters: Sequence[nn.Parameter], world: World) -> None:
    """Sum over ranks, in place. A gradient that no rank has stays None, so that its moments rest too."""
    if world.size == 1:
        return
    present = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=world.device)
    dist.all_reduce(present)
    wanted = [p for p, count in zip(parameters, present.tolist(), strict=True) if count]
    for bucket in _buckets(wanted):
        gradients = [torch.zeros_like(p) if p.grad is None else p.grad for p in bucket]
        flat = torch.cat([gradient.flatten() for gradient in gradients])
        dist.all_reduce(flat)
        for parameter, part in zip(bucket, flat.split([g.numel() for g in gradients]), strict=True):
            parameter.grad = part.view_as(parameter)


@torch.no_grad()
def broadcast(tensors: Sequence[Tensor], world: World) -> None:
    """Everybody begins with the first rank's."""
    if world.size > 1:
        for tensor in tensors:
            dist.broadcast(tensor, src=0)


def _buckets(parameters: Sequence[nn.Parameter]) -> list[list[nn.Parameter]]:
    """Neighbours of one type, up to BUCKET_NUMBERS together; a larger one goes alone."""
    found: list[list[nn.Parameter]] = []
    size = 0
    for parameter in parameters:
        fits = found and size + parameter.numel() <= BUCKET_NUMBERS and found[-1][0].dtype == parameter.dtype
        if not fits:
            found.append([])
            size = 0
        found[-1].append(parameter)
        size += parameter.numel()
    return found
