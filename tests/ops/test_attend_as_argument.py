"""The central idea stands on this: `attend` is an argument, and nothing that trains or compiles minds.

Autograd, torch.compile (one graph, no recompilation while shapes stay) and FSDP2 around every block.
"""

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch._dynamo.testing
from torch import Tensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.models.decoder import Decoder
from cascadevl.ops.attention import Attend, Layer, dense, packed


def _decoder() -> Decoder:
    return tiny_parts("qwen3", std=0.2).model.language_model.requires_grad_(True)


def _inputs(lengths: tuple[int, ...], seed: int = 0) -> tuple[Tensor, Tensor]:
    embed_TD = torch.randn(sum(lengths), 32, generator=torch.Generator().manual_seed(seed))
    return embed_TD, torch.cat([torch.arange(n, dtype=torch.float32) for n in lengths])


def test_any_callable_attends_and_gradients_flow_through_it() -> None:
    """A closure that counts, scales its output by a learned number, and is otherwise dense."""
    gain, asked = torch.tensor(1.0, requires_grad=True), []

    def counting(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        asked.append(layer.index)
        return gain * dense(layer, q_TNH, k_TKH, v_TKH)

    decoder, (embed_TD, positions_T) = _decoder(), _inputs((6,))
    hidden_TD = decoder(embed_TD, positions_T, counting)
    assert torch.equal(hidden_TD, decoder(embed_TD, positions_T, dense))
    hidden_TD.square().sum().backward()
    assert asked == [0, 1]
    step = 1e-3
    with torch.no_grad():
        values = []
        for value in (1 + step, 1 - step):
            gain.fill_(value)
            values.append(decoder.double()(embed_TD.double(), positions_T, counting).square().sum())
    slope = float(values[0] - values[1]) / (2 * step)
    assert gain.grad is not None
    assert float(gain.grad) == pytest.approx(slope, rel=1e-3)


def test_each_layer_asks_with_its_own_record() -> None:
    layers: list[Layer] = []

    def noting(layer: Layer, q_TNH: Tensor, k_TKH: Tensor, v_TKH: Tensor) -> Tensor:
        layers.append(layer)
        return dense(layer, q_TNH, k_TKH, v_TKH)

    _decoder()(*_inputs((3,)), noting)
    assert layers == [Layer(index=0, scale=16**-0.5), Layer(index=1, scale=16**-0.5)]


def _compiled(decoder: Decoder, backend: str) -> tuple[Callable[..., Tensor], Callable[[], int]]:
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounterWithBackend(backend)
    return torch.compile(decoder, fullgraph=True, backend=counter), lambda: counter.frame_count


@pytest.mark.parametrize("make", [lambda: dense, lambda: packed((5, 7)), lambda: packed((6, 6))])
def test_compiled_is_one_graph_and_is_not_compiled_again(make: Callable[[], Attend]) -> None:
    """Nor for a new closure of the same shapes, as every batch brings one."""
    decoder = _decoder()
    compiled, num_compilations = _compiled(decoder, "aot_eager")
    for seed in range(3):
        embed_TD, positions_T = _inputs((5, 7), seed)
        torch.testing.assert_close(
            compiled(embed_TD, positions_T, make()), decoder(embed_TD, positions_T, make()), atol=1e-5, rtol=1e-5
        )
    assert num_compilations() == 1


def test_compiled_follows_other_shapes_and_another_attend() -> None:
    decoder = _decoder()
    compiled, num_compilations = _compiled(decoder, "aot_eager")
    for lengths in ((5, 7), (4, 8), (3, 6, 9), (2, 2), (9, 1, 1, 4)):
        inputs = _inputs(lengths)
        for attend in (packed(lengths), dense):
            torch.testing.assert_close(
                compiled(*inputs, attend), decoder(*inputs, attend), atol=1e-5, rtol=1e-5
            )
    assert num_compilations() <= 8


def test_compiled_has_the_gradients_of_eager() -> None:
    eager, decoder = _decoder(), _decoder()
    compiled, _ = _compiled(decoder, "aot_eager")
    inputs = _inputs((5, 7))
    for model in (eager, compiled):
        model(*inputs, packed((5, 7))).square().sum().backward()
    for (name, one), other in zip(eager.named_parameters(), decoder.parameters(), strict=True):
        if one.grad is not None:
            torch.testing.assert_close(other.grad, one.grad, atol=1e-4, rtol=1e-4, msg=name)


@pytest.mark.slow
@pytest.mark.filterwarnings("default")
@pytest.mark.skipif(not shutil.which("g++") and not shutil.which("clang++"), reason="inductor needs a C++ compiler")
def test_the_kernels_of_inductor_agree() -> None:
    decoder = _decoder().requires_grad_(False)
    compiled, num_compilations = _compiled(decoder, "inductor")
    for seed in range(2):
        inputs = _inputs((5, 7), seed)
        torch.testing.assert_close(
            compiled(*inputs, packed((5, 7))), decoder(*inputs, packed((5, 7))), atol=1e-5, rtol=1e-5
        )
    assert num_compilations() == 1


SHARDED = """
import sys

import PIL.Image
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard, register_fsdp_forward_method

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.data.batch import collate
from cascadevl.training.objectives.next_token import NextToken

torch.set_num_threads(1)
rank, num_ranks, store = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=num_ranks)
mesh = init_device_mesh("cpu", (num_ranks,))
objective = NextToken()


def parts():
    made = tiny_parts("qwen3", std=0.2)
    made.model.requires_grad_(True)
    return made


def batch(processor, rank):
    picture = PIL.Image.radial_gradient("L").resize((60 + 40 * rank, 70)).convert("RGB")
    question = [{"type": "image", "image": picture}, {"type": "text", "text": "what?" * (rank + 1)}]
    answers = [{"role": "user", "content": question}, {"role": "assistant", "content": "yes " * (2 + rank)}]
    return collate([processor(answers), processor([{"role": "user", "content": "hi"}, *answers[1:]])])


whole = parts()
mean = sum(objective(whole.model, batch(whole.processor, r)).total for r in range(num_ranks)) / num_ranks
mean.backward()

for shard_decoder in (False, True):
    sharded = parts()
    for block in (*sharded.model.vision_model.encoder.layers, *sharded.model.language_model.model.layers):
        fully_shard(block, mesh=mesh)
    if shard_decoder:  # objectives call `embed` and `logits` besides `forward`
        fully_shard(sharded.model.language_model, mesh=mesh)
        for method in ("embed", "logits"):
            register_fsdp_forward_method(sharded.model.language_model, method)
    objective(sharded.model, batch(sharded.processor, rank)).total.backward()
    for (name, p), q in zip(whole.model.named_parameters(), sharded.model.parameters(), strict=True):
        gradient = q.grad
        if hasattr(gradient, "full_tensor"):
            gradient = gradient.full_tensor()
        else:
            dist.all_reduce(gradient)
            gradient = gradient / num_ranks
        worst = float((gradient - p.grad).abs().max())
        assert worst <= 1e-5 * max(1.0, float(p.grad.abs().max())), (name, worst, shard_decoder)
dist.destroy_process_group()
print("equal")
"""


@pytest.mark.slow
@pytest.mark.parametrize("num_ranks", [1, 2])
def test_fsdp_around_every_block_gives_the_gradients_of_the_whole(num_ranks: int, tmp_path: Path) -> None:
    """Each rank has a pack of its own; the gradient is that of the mean of their losses."""
    command = [sys.executable, "-c", SHARDED]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(num_ranks), str(tmp_path / "store")],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(num_ranks)
    ]
    for process in ranks:
        out, errors = process.communicate(timeout=120)
        assert process.returncode == 0, errors
        assert out.strip() == "equal"
