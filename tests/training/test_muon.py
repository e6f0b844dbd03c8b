"""Muon: what orthogonalising does, that steps follow the formula, and that a state survives a save."""

import torch

from cascadevl.training.muon import muon, orthogonalise


def test_orthogonalising_brings_all_singular_values_near_one() -> None:
    torch.manual_seed(0)
    matrices = torch.randn(3, 8, 20) * torch.tensor([1e-3, 1.0, 1e3]).view(3, 1, 1)
    values = torch.linalg.svdvals(orthogonalise(matrices))
    assert float(values.min()) > 0.6 and float(values.max()) < 1.3


def test_orthogonalising_keeps_the_directions() -> None:
    torch.manual_seed(0)
    left, _ = torch.linalg.qr(torch.randn(6, 6))
    right, _ = torch.linalg.qr(torch.randn(9, 6))
    matrix = left @ torch.diag(torch.tensor([3.0, 2.0, 1.5, 1.0, 0.8, 0.5])) @ right.T
    cosine = torch.nn.functional.cosine_similarity(
        orthogonalise(matrix[None])[0].flatten(), (left @ right.T).flatten(), 0
    )
    assert cosine > 0.97


def test_vectors_take_the_steps_of_adamw() -> None:
    torch.manual_seed(0)
    ours, theirs = (torch.nn.Parameter(torch.ones(5)) for _ in range(2))
    optimizer = muon([("norm.weight", ours)], lr=0.01, weight_decay=0.1)
    optimizer.param_groups[1]["lr"] = 0.01
    reference = torch.optim.AdamW([theirs], lr=0.01, betas=(0.9, 0.98), weight_decay=0.0)
    for _ in range(5):
        gradient = torch.randn(5)
        for parameter, stepper in ((ours, optimizer), (theirs, reference)):
            parameter.grad = gradient.clone()
            stepper.step()
    assert torch.allclose(ours, theirs, atol=1e-6)


def test_a_fused_qkv_is_three_matrices() -> None:
    torch.manual_seed(0)
    fused = torch.nn.Parameter(torch.zeros(24, 8))
    parts = [torch.nn.Parameter(torch.zeros(8, 8)) for _ in range(3)]
    gradient = torch.randn(24, 8)
    fused.grad = gradient.clone()
    for part, rows in zip(parts, gradient.chunk(3), strict=True):
        part.grad = rows.clone()
    for named in ([("qkv.weight", fused)], [(f"{i}.weight", part) for i, part in enumerate(parts)]):
        muon(named, lr=0.01, weight_decay=0.0).step()
    assert torch.allclose(fused, torch.cat([part.detach() for part in parts]), atol=1e-6)


def test_it_learns_a_linear_map() -> None:
    torch.manual_seed(0)
    target, weight = torch.randn(6, 6), torch.nn.Parameter(torch.zeros(6, 6))
    optimizer = muon([("weight", weight)], lr=0.05, weight_decay=0.0)
    inputs = torch.randn(64, 6)

    def loss() -> torch.Tensor:
        return ((inputs @ (weight - target).T) ** 2).mean()

    first = loss().item()
    for step in range(400):
        for group in optimizer.param_groups:
            group["lr"] = 0.1 * (1 - step / 400)
        loss().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert loss().item() < 0.01 * first
