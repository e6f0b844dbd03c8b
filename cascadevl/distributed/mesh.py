"""World: who I am among the processes of a run, and what all of them say together.

`torchrun --nproc-per-node 8 -m cascadevl train RECIPE --out OUT` starts the processes. Without it there is one, and
everything here is the identity.
"""

import contextlib
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist

from cascadevl.core.errors import ConfigError


@dataclass(frozen=True, slots=True)
class World:
    """This process among all of them. Every method but `is_first` must be called by all alike."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")  # noqa: RUF009  (immutable)

    @property
    def is_first(self) -> bool:
        """Whether this process writes files and talks."""
        return self.rank == 0

    def sum(self, values: Sequence[float]) -> list[float]:
        """Of every place over all ranks, in fp64."""
        if self.size == 1:
            return list(values)
        # No fp64 on some accelerators, and a handful of numbers: they go through gather.
        return [sum(column) for column in zip(*self.gather(list(values)), strict=True)]

    def all(self, mine: bool) -> bool:
        """Whether every rank says yes."""
        return mine if self.size == 1 else all(self.gather(mine))

    def gather(self, mine: Any) -> list[Any]:
        """What every rank has, in their order; any small thing."""
        if self.size == 1:
            return [mine]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, mine)
        return found

    def wait(self) -> None:
        if self.size > 1:
            dist.barrier()


@contextlib.contextmanager
def joined(device: str = "auto") -> Iterator[World]:
    """The world that torchrun describes; alone, that of one process. Left in order, whatever happens."""
    size, rank, local = (int(os.environ.get(name, default)) for name, default in _ENVIRONMENT)
    mine = _device(device, local)
    if size == 1:
        yield World(device=mine)
        return
    if mine.type == "cuda":
        torch.cuda.set_device(mine)
    # gloo beside nccl: counts and states are gathered on the CPU.
    dist.init_process_group("cpu:gloo,cuda:nccl" if mine.type == "cuda" else "gloo", rank=rank, world_size=size)
    try:
        yield World(rank, size, mine)
    finally:
        dist.destroy_process_group()


_ENVIRONMENT = (("WORLD_SIZE", "1"), ("RANK", "0"), ("LOCAL_RANK", "0"))


def _device(wanted: str, local: int) -> torch.device:
    """Each process of a machine has a GPU of its own."""
    if wanted not in ("auto", "cpu", "cuda"):
        raise ConfigError(f"Unknown device {wanted!r}: expected auto, cpu or cuda.")
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("The device 'cuda' was asked for, but torch sees no GPU here. Use auto or cpu.")
    on_gpu = wanted == "cuda" or (wanted == "auto" and torch.cuda.is_available())
    return torch.device("cuda", local) if on_gpu else torch.device("cpu")
