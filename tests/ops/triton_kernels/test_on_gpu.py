"""The cases of the kernels again, compiled, and recordings that are some."""

import pytest
import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.generation import Sampling
from cascadevl.engine.config import EngineConfig
from cascadevl.engine.engine import Engine
from cascadevl.engine.graphs import Graphs
from cascadevl.ops.triton import available
from tests.engine.pictures import ask
from tests.ops.triton_kernels.cases import CASES, run

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not available(), reason="Triton is not installed: pip install triton"),
]


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_are_what_torch_computes(name: str) -> None:
    run(name, torch.device("cuda"))


def test_an_engine_answers_alike_with_recordings_and_without() -> None:
    parts = tiny_parts("qwen3", std=0.3)
    parts.model.to("cuda")
    questions = [ask("How " * n) for n in range(1, 6)]
    sampling = Sampling(max_new_tokens=12, loop_guard=False)
    recorded, plain = (Engine(parts, EngineConfig(graphs=graphs)) for graphs in (True, False))
    assert isinstance(recorded.runner.fused, Graphs) and not isinstance(plain.runner.fused, Graphs)
    texts = [[g.token_ids for g in engine.generate(questions, sampling)] for engine in (recorded, plain)]
    assert texts[0] == texts[1]
