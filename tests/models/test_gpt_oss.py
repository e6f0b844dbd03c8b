"""GPT-OSS's block beside transformers', beside a plain loop, and its activation by hand."""

import math

import pytest
import torch
from torch import Tensor
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssMLP as Peer

from cascadevl.models.config import ExpertsConfig
from cascadevl.models.gpt_oss import GptOssMLP, clamped_swiglu
from cascadevl.ops.experts import route

WIDTH, NUM_EXPERTS, NUM_PER_TOKEN, MLP_SIZE, LIMIT = 20, 6, 3, 14, 0.8


def make() -> GptOssMLP:
    """The limit is small enough that many activations meet it."""
    sizes = {"num_experts": NUM_EXPERTS, "num_per_token": NUM_PER_TOKEN, "mlp_size": MLP_SIZE}
    model = GptOssMLP(WIDTH, ExpertsConfig(**sizes, normalise=True), LIMIT)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0, 0.3, generator=generator)
    return model


def peer_of(model: GptOssMLP) -> Peer:
    """transformers' block; loading the weights by name, strictly, compares names and shapes too."""
    config = GptOssConfig(
        hidden_size=WIDTH,
        num_local_experts=NUM_EXPERTS,
        num_experts_per_tok=NUM_PER_TOKEN,
        intermediate_size=MLP_SIZE,
        swiglu_limit=LIMIT,
    )
    config._experts_implementation = "eager"
    peer = Peer(config)
    peer.load_state_dict(model.state_dict())
    return peer


def naive(model: GptOssMLP, hidden_TD: Tensor) -> Tensor:
    experts, rows = model.experts, []
    for row_D in hidden_TD:
        chosen_k, experts_k = model.router(row_D).topk(NUM_PER_TOKEN)
        gate_up_kF = row_D @ experts.gate_up_proj[experts_k] + experts.gate_up_proj_bias[experts_k]
        gate_kF, up_kF = gate_up_kF[:, ::2].clamp(max=LIMIT), gate_up_kF[:, 1::2].clamp(-LIMIT, LIMIT)
        act_kF = gate_kF / (1 + torch.exp(-1.702 * gate_kF)) * (up_kF + 1)
        out_kD = torch.einsum("kf,kfd->kd", act_kF, experts.down_proj[experts_k]) + experts.down_proj_bias[experts_k]
        rows.append(chosen_k.softmax(-1) @ out_kD)
    return torch.stack(rows)


def tokens(num: int) -> Tensor:
    return torch.randn(num, WIDTH, generator=torch.Generator().manual_seed(num))


def test_the_activation_by_hand() -> None:
    def by_hand(gate: float, up: float) -> float:
        return gate / (1 + math.exp(-1.702 * gate)) * (up + 1)

    pairs = torch.tensor([[2.0, 0.5, -9.0, -9.0], [9.0, 9.0, 0.0, 5.0]])
    # Only the gate may be far below zero.
    expected = [[by_hand(2, 0.5), by_hand(-9, -7)], [by_hand(7, 7), 0.0]]
    torch.testing.assert_close(clamped_swiglu(pairs, 7.0), torch.tensor(expected))


def test_weights_are_those_of_a_normalised_softmax_over_all_experts() -> None:
    logits_TE = tokens(30)
    weights_Tk, experts_Tk = route(logits_TE, 4, normalise=True)
    chosen_Tk, same_Tk = logits_TE.topk(4)
    assert torch.equal(experts_Tk, same_Tk)
    torch.testing.assert_close(weights_Tk, chosen_Tk.softmax(-1))


@pytest.mark.parametrize("num_tokens", [0, 1, 4, 300])
def test_outputs_are_those_of_transformers(num_tokens: int) -> None:
    model, hidden_TD = make(), tokens(num_tokens)
    peer = peer_of(model)
    with torch.inference_mode():
        theirs_TD = peer(hidden_TD[None])[0][0]
        assert num_tokens == 0 or theirs_TD.abs().max() > 0.5
        torch.testing.assert_close(model(hidden_TD), theirs_TD, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(model(hidden_TD), theirs_TD.clone(), atol=1e-6, rtol=1e-6)


def test_the_limit_is_met_by_these_weights() -> None:
    model, hidden_TD = make(), tokens(50)
    with torch.inference_mode():
        clamped_TD = model(hidden_TD)
        model.experts.limit = 7.0
        assert (model(hidden_TD) - clamped_TD).abs().max() > 0.1


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


def test_without_weights_it_takes_no_memory() -> None:
    config = ExpertsConfig(num_experts=32, num_per_token=4, mlp_size=2880, normalise=True)
    with torch.device("meta"):
        shapes = {name: tuple(p.shape) for name, p in GptOssMLP(2880, config).named_parameters()}
    assert shapes == {
        "router.weight": (32, 2880),
        "router.bias": (32,),
        "experts.gate_up_proj": (32, 2880, 5760),
        "experts.gate_up_proj_bias": (32, 5760),
        "experts.down_proj": (32, 2880, 2880),
        "experts.down_proj_bias": (32, 2880),
    }
