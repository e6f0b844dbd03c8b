"""Muon against its formulas, and AdamW against torch's."""

import pytest
import torch
from torch import Tensor, nn

from cascadevl.training.muon import Muon, muon, orthogonalise


def _normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def test_singular_values_end_near_one_and_singular_vectors_stay() -> None:
    matrices = _normal(3, 16, 24)
    result = orthogonalise(matrices)
    for matrix, orthogonal in zip(matrices, result, strict=True):
        u, _, vh = torch.linalg.svd(matrix, full_matrices=False)
        inside = u.T @ orthogonal @ vh.T
        assert bool(((inside.diagonal() > 0.6) & (inside.diagonal() < 1.3)).all())
        torch.testing.assert_close(inside, torch.diag(inside.diagonal()), atol=1e-4, rtol=0)


def test_a_zero_gradient_moves_nothing_but_the_decay() -> None:
    p = nn.Parameter(_normal(4, 6))
    before = p.detach().clone()
    optimizer = muon([("w", p)], lr=0.1, weight_decay=0.5)
    optimizer.param_groups[0]["lr"] = 0.1
    p.grad = torch.zeros_like(p)
    optimizer.step()
    torch.testing.assert_close(p.detach(), before * (1 - 0.1 * 0.5))


@pytest.mark.parametrize("shape", [(4, 6), (6, 4)])
def test_two_steps_by_hand(shape: tuple[int, int]) -> None:
    """Momentum, Nesterov, orthogonal rows of the short side, Moonlight's scale 0.2·√(long side)."""
    p, lr, decay = nn.Parameter(_normal(*shape)), 0.01, 0.1
    optimizer = muon([("w", p)], lr=lr, weight_decay=decay)
    optimizer.param_groups[0]["lr"] = lr
    expected, momentum = p.detach().clone(), torch.zeros(shape)
    for seed in (1, 2):
        gradient = _normal(*shape, seed=seed)
        p.grad = gradient.clone()
        optimizer.step()
        momentum = 0.95 * momentum + 0.05 * gradient
        ahead = 0.05 * gradient + 0.95 * momentum
        wide = ahead if shape[0] <= shape[1] else ahead.T
        update = orthogonalise(wide[None])[0]
        update = update if shape[0] <= shape[1] else update.T
        expected = expected * (1 - lr * decay) - lr * 0.2 * 6**0.5 * update
        assert torch.equal(p.grad, gradient), "the gradient is not the optimizer's to change"
    torch.testing.assert_close(p.detach(), expected)


def test_a_fused_qkv_matrix_is_three_matrices() -> None:
    whole = nn.Parameter(_normal(12, 4))
    thirds = [nn.Parameter(third.detach().clone()) for third in whole.chunk(3)]
    gradient = _normal(12, 4, seed=1)
    whole.grad = gradient.clone()
    for third, part in zip(thirds, gradient.chunk(3), strict=True):
        third.grad = part.clone()
    for parameters in ([("qkv", whole)], [(f"{i}", third) for i, third in enumerate(thirds)]):
        muon(parameters, lr=0.01, weight_decay=0.1).step()  # type: ignore[arg-type]
    torch.testing.assert_close(whole.detach(), torch.cat([third.detach() for third in thirds]))


def test_the_rest_is_stepped_as_adamw_does() -> None:
    ours, theirs = nn.Parameter(_normal(5)), nn.Parameter(_normal(5))
    mine = Muon([{"params": [ours], "lr": 0.02, "weight_decay": 0.1}])
    reference = torch.optim.AdamW([theirs], lr=0.02, weight_decay=0.1, betas=(0.9, 0.98), eps=1e-8)
    for seed in range(1, 6):
        for p, optimizer in ((ours, mine), (theirs, reference)):
            p.grad = _normal(5, seed=seed)
            optimizer.step()
    torch.testing.assert_close(ours.detach(), theirs.detach())


def test_matrices_inside_go_to_muon_and_everything_else_to_adamw() -> None:
    names = {
        "vision_model.encoder.layers.0.attn.qkv.weight": ((96, 32), True),
        "language_model.model.layers.0.mlp.up_proj.weight": ((48, 32), True),
        "mlp1.1.weight": ((32, 128), True),
        "vision_model.embeddings.patch_embedding.weight": ((32, 3, 14, 14), False),
        "vision_model.embeddings.position_embedding": ((1, 17, 32), False),
        "language_model.model.embed_tokens.weight": ((272, 32), False),
        "language_model.lm_head.weight": ((272, 32), False),
        "out.weight": ((380, 32), False),
        "mlp1.0.weight": ((128,), False),
    }
    named = {name: nn.Parameter(torch.zeros(shape)) for name, (shape, _) in names.items()}
    optimizer = muon(named.items(), lr=0.01, weight_decay=0.1)
    for group in optimizer.param_groups:
        for p in group["params"]:
            name = next(name for name, other in named.items() if other is p)
            assert group["muon"] == names[name][1], name
        assert group["weight_decay"] == (0.1 if group["muon"] else 0.0)
