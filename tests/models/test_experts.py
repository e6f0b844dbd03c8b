"""Qwen3-MoE's block beside transformers' and beside a plain loop."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from transformers.models.qwen3_moe.modeling_qwen3_moe import Qwen3MoeConfig, Qwen3MoeSparseMoeBlock

from cascadevl.models.config import ExpertsConfig
from cascadevl.models.experts import SparseMLP

WIDTH, NUM_EXPERTS, NUM_PER_TOKEN, MLP_SIZE = 24, 6, 3, 10


def make(normalise: bool = True) -> SparseMLP:
    sizes = {"num_experts": NUM_EXPERTS, "num_per_token": NUM_PER_TOKEN, "mlp_size": MLP_SIZE}
    model = SparseMLP(WIDTH, ExpertsConfig(**sizes, normalise=normalise))
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def peer_of(model: SparseMLP) -> Qwen3MoeSparseMoeBlock:
    """transformers' block; loading the weights by name, strictly, compares names and shapes too."""
    config = Qwen3MoeConfig(
        hidden_size=WIDTH,
        num_experts=NUM_EXPERTS,
        num_experts_per_tok=NUM_PER_TOKEN,
        moe_intermediate_size=MLP_SIZE,
        norm_topk_prob=model.config.normalise,
    )
    config._experts_implementation = "eager"
    peer = Qwen3MoeSparseMoeBlock(config)
    peer.load_state_dict(model.state_dict())
    return peer


def naive(model: SparseMLP, hidden_TD: Tensor) -> Tensor:
    rows = []
    for row_D in hidden_TD:
        weights_k, experts_k = model.gate(row_D).softmax(-1).topk(NUM_PER_TOKEN)
        gate_up_kF, down_kDF = model.experts.gate_up_proj[experts_k] @ row_D, model.experts.down_proj[experts_k]
        act_kF = F.silu(gate_up_kF[:, :MLP_SIZE]) * gate_up_kF[:, MLP_SIZE:]
        rows.append(torch.einsum("k,kdf,kf->d", weights_k / weights_k.sum(), down_kDF, act_kF))
    return torch.stack(rows)


def tokens(num: int) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(num))


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize("num_tokens", [0, 1, 4, 300])
def test_outputs_are_those_of_transformers(num_tokens: int, normalise: bool) -> None:
    model, hidden_TD = make(normalise), tokens(num_tokens)
    peer = peer_of(model)
    with torch.inference_mode():
        theirs_TD = peer(hidden_TD[None])[0]
        assert num_tokens == 0 or theirs_TD.abs().max() > 0.5
        torch.testing.assert_close(model(hidden_TD), theirs_TD, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(hidden_TD), theirs_TD.clone(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("num_tokens", [1, 2, 50])
def test_gradients_are_those_of_a_plain_loop(num_tokens: int) -> None:
    model, hidden_TD = make(), tokens(num_tokens).requires_grad_()
    down_TD = tokens(num_tokens + 1)[1:]
    leaves = [hidden_TD, *model.parameters()]
    got = torch.autograd.grad((model(hidden_TD) * down_TD).sum(), leaves)
    expected = torch.autograd.grad((naive(model, hidden_TD) * down_TD).sum(), leaves)
    for ours, theirs in zip(got, expected, strict=True):
        assert theirs.abs().max() > 1e-2
        torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


def test_bf16_stays_within_its_own_precision() -> None:
    hidden_TD = tokens(40).bfloat16()
    model = make().bfloat16()
    with torch.inference_mode():
        rounded_TD = model(hidden_TD)
        exact_TD = model.float()(hidden_TD.float())
    assert rounded_TD.dtype == torch.bfloat16
    # Where two experts are nearly as good, rounding may choose the other one: most tokens, not all.
    error_T = (rounded_TD - exact_TD).abs().amax(-1) / exact_TD.abs().max()
    assert error_T.quantile(0.9) < 0.03


def test_without_weights_it_takes_no_memory_and_with_none_loaded_its_experts_are_silent() -> None:
    config = ExpertsConfig(num_experts=128, num_per_token=8, mlp_size=768, normalise=True)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in SparseMLP(2048, config).named_parameters()}
    assert shapes == {
        "gate.weight": (128, 2048),
        "experts.gate_up_proj": (128, 2 * 768, 2048),
        "experts.down_proj": (128, 2048, 768),
    }
    fresh = SparseMLP(WIDTH, ExpertsConfig(num_experts=3, num_per_token=2, mlp_size=5, normalise=True))
    assert not fresh(tokens(4)).any()
