"""The central idea stands on this: `attend` is an argument, and nothing that trains or compiles minds.

Autograd, torch.compile (one graph, no recompilation while shapes stay) and FSDP2 around every block.
"""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import PIL.Image
import pytest
import torch
import torch._dynamo.testing
import torch.distributed as dist
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import Batch, collate
from cascadevl.models.decoder import Decoder
from cascadevl.ops.attention import Attend, Layer, dense, packed
from cascadevl.preprocessing.processor import Processor
from cascadevl.training.objectives.next_token import NextToken


def _decoder() -> Decoder:
    return tiny_parts("qwen3", std=0.2).model.language_model.requires_grad_(True)


def _inputs(lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    embed_TD = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(seed))
    return embed_TD, torch.cat([torch.arange(n, dtype=torch.float32) for n in lengths])


def test_any_callable_attends_and_gradients_flow_through_it() -> None:
    """A closure that notes who asks and scales by a learned number is otherwise dense."""
    gain, asked = torch.tensor(1.0, requires_grad=True), []
    decoder, (embed_TD, positions_T) = _decoder(), _inputs((6,))
    direction_TD = torch.randn(6, 32, generator=torch.Generator().manual_seed(1))

    def scaled(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        asked.append(layer)
        return gain * dense(layer, q_TNH, k_TKH, v_TKH)

    def loss() -> Tensor:
        return (decoder(embed_TD, positions_T, scaled) * direction_TD).sum()

    loss().backward()
    assert asked == [Layer(index=0, scale=16**-0.5), Layer(index=1, scale=16**-0.5)]
    with torch.no_grad():
        values = []
        for value in (1.01, 0.99):
            gain.fill_(value)
            values.append(float(loss()))
    assert gain.grad is not None
    assert float(gain.grad) == pytest.approx((values[0] - values[1]) / 0.02, rel=1e-2)


def _compiled(decoder: Decoder, backend: str) -> tuple[Callable[..., Tensor], Callable[[], int]]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(decoder, fullgraph=True, backend=counter), lambda: counter.frame_count


@pytest.mark.parametrize(
    "make", [lambda: dense, lambda: packed((5, 7)), lambda: packed((6, 6))], ids=["dense", "packed", "equal lengths"]
)
def test_compiled_is_one_graph_and_is_not_compiled_again(make: Callable[[], Attend]) -> None:
    """Nor for a new closure of the same shapes, as every batch brings one."""
    decoder = _decoder()
    compiled, num_compilations = _compiled(decoder, "eager")
    for seed in range(3):
        inputs = _inputs((5, 7), seed)
        torch.testing.assert_close(compiled(*inputs, make()), decoder(*inputs, make()), atol=1e-5, rtol=1e-5)
    assert num_compilations() == 1


def test_compiled_follows_other_lengths() -> None:
    """The second shape is compiled with symbolic sizes; further ones find it ready."""
    decoder = _decoder()
    compiled, num_compilations = _compiled(decoder, "eager")
    for lengths in ((5, 7), (4, 9), (3, 8), (11, 2)):
        inputs, attend = _inputs(lengths), packed(lengths)
        torch.testing.assert_close(compiled(*inputs, attend), decoder(*inputs, attend), atol=1e-5, rtol=1e-5)
    assert num_compilations() <= 3


def test_compiled_has_the_gradients_of_eager() -> None:
    eager, decoder = _decoder(), _decoder()
    compiled, _ = _compiled(decoder, "aot_eager")
    inputs = _inputs((5, 7))
    for model in (eager, compiled):
        (model(*inputs, packed((5, 7))) * inputs[0]).sum().backward()
    for (name, one), other in zip(eager.named_parameters(), decoder.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
def test_the_kernels_of_inductor_agree() -> None:
    decoder = _decoder().requires_grad_(False)
    compiled, num_compilations = _compiled(decoder, "inductor")
    for seed in range(2):
        inputs, attend = _inputs((5, 7), seed), packed((5, 7))
        torch.testing.assert_close(compiled(*inputs, attend), decoder(*inputs, attend), atol=1e-5, rtol=1e-5)
    assert num_compilations() == 1


def _batch(processor: Processor, rank: int) -> Batch:
    """Another picture, question and answer on every rank, beside a sample without a picture."""
    picture = PIL.Image.radial_gradient("L").resize((60 + 40 * rank, 70)).convert("RGB")
    question = [{"type": "image", "image": picture}, {"type": "text", "text": "what?" * (rank + 1)}]
    answer = {"role": "assistant", "content": "yes " * (2 + rank)}
    return collate(
        [
            processor([{"role": "user", "content": question}, answer]),
            processor([{"role": "user", "content": "hi"}, answer]),
        ]
    )


def _compare_shards(rank: int, num_ranks: int, store: str) -> None:
    """Gradients of sharded models are those of the mean of all ranks' losses."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
    mesh = init_device_mesh("cpu", (num_ranks,))
    objective, whole = NextToken(), tiny_parts("qwen3", std=0.2)
    whole.model.requires_grad_(True)
    losses = [objective(whole.model, _batch(whole.processor, each)).total for each in range(num_ranks)]
    torch.stack(losses).mean().backward()
    for shard_the_rest in (False, True):
        model = tiny_parts("qwen3", std=0.2).model.requires_grad_(True)
        for block in (*model.vision_model.encoder.layers, *model.language_model.model.layers):
            fully_shard(block, mesh=mesh)
        if shard_the_rest:  # objectives call `embed` and `logits` beside `forward`
            fully_shard(model.language_model, mesh=mesh)
            for method in ("embed", "logits"):
                register_fsdp_forward_method(model.language_model, method)
        objective(model, _batch(whole.processor, rank)).total.backward()
        for (name, p), q in zip(whole.model.named_parameters(), model.parameters(), strict=True):
            gradient = q.grad
            assert gradient is not None and p.grad is not None
            if isinstance(gradient, DTensor):
                gradient = gradient.full_tensor()
            else:
                dist.all_reduce(gradient)
                gradient = gradient / num_ranks
            assert float((gradient - p.grad).abs().max()) <= 1e-5 * max(1.0, float(p.grad.abs().max())), name
    dist.destroy_process_group()


def test_fsdp_in_one_process_gives_the_gradients_of_the_whole(tmp_path: Path) -> None:
    _compare_shards(0, 1, str(tmp_path / "store"))


@pytest.mark.slow
def test_fsdp_in_two_processes_gives_the_gradients_of_the_whole(tmp_path: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])}
    ranks = [
        subprocess.Popen(
            [sys.executable, __file__, str(rank), "2", str(tmp_path / "store")],
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(2)
    ]
    for process in ranks:
        _, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors


if __name__ == "__main__":
    torch.set_num_threads(1)
    _compare_shards(int(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
