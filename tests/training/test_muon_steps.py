"""Muon's steps are as large as AdamW's, whatever the shape of a matrix: they share one learning rate."""

import pytest
import torch
from torch import nn

from cascadevl.training.muon import muon


@pytest.mark.parametrize("shape", [(8, 8), (8, 128), (128, 8), (96, 32)])
def test_a_step_moves_a_number_by_a_fifth_of_the_rate(shape: tuple[int, int]) -> None:
    """Moonlight (arXiv 2502.16982), equation 4: 0.2 times the longer side's root makes the mean square 0.2."""
    matrix = nn.Parameter(torch.zeros(shape))
    optimizer = muon([("layer.weight", matrix)], lr=0.5, weight_decay=0.0)
    for group in optimizer.param_groups:
        group["lr"] = group["peak_lr"]
    matrix.grad = torch.randn(shape) * 1e-3
    optimizer.step()
    assert float(matrix.detach().square().mean().sqrt()) == pytest.approx(0.2 * 0.5, rel=0.25)
