"""RMS norm: the formula, and who rounds when."""

import torch

from cascadevl.ops.norm import rms_norm


def test_the_formula_by_hand() -> None:
    x, weight = torch.tensor([[3.0, 4.0]]), torch.tensor([1.0, 2.0])
    root = ((9 + 16) / 2 + 0.5) ** 0.5
    torch.testing.assert_close(rms_norm(x, weight, 0.5), torch.tensor([[3 / root, 8 / root]]))


def test_statistics_are_fp32_and_the_weight_comes_after_rounding() -> None:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(64, 128, generator=generator).bfloat16()
    weight = torch.rand(128, generator=generator).bfloat16()
    scaled = x.float() * torch.rsqrt(x.float().pow(2).mean(-1, keepdim=True) + 1e-6)
    assert torch.equal(rms_norm(x, weight, 1e-6), weight * scaled.bfloat16())
