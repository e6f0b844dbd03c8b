"""Run by test_ddp.py in every rank: three steps over packs of all modalities, weights and losses written to a file."""

import sys

import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.distributed.mesh import joined
from cascadevl.training.config import OptimConfig
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.step import Step
from cascadevl.training.trainable import choose, make_optimizer
from tests.training.samples import batch_of

torch.set_num_threads(1)
parts = tiny_parts("qwen3", std=0.2)
pictures = batch_of(parts, "seven", "total")
text = batch_of(parts, "grandfather", pictures=False)
other = batch_of(parts, "a", pictures=False)
MIXES = [([text], [pictures]), ([text], [other]), ([other, pictures], [text])]
"""Of each step: what rank 0 and what rank 1 learn from; not even as many packs."""

with joined("cpu") as world:
    named = choose(parts.model, ("vit", "mlp", "llm"))
    optimizer = make_optimizer(named, OptimConfig(lr=1e-2), num_blocks=2)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    objective = NextToken()
    learn = Step(weigh=objective.weight, world=world)
    parts.model.train()
    losses = []
    for number, mix in enumerate(MIXES):
        mine = mix[world.rank] if world.size == 2 else [*mix[0], *mix[1]]
        losses.append(learn(parts.model, objective, optimizer, mine, number))
    result = {
        "losses": [(loss.total.item(), loss.num_tokens, norm, loss.terms) for loss, norm in losses],
        "weights": {name: parameter.detach() for name, parameter in named},
    }
    torch.save(result, f"{sys.argv[1]}-{world.rank}.pt")
