"""The tower with weights of 8 bits: quantised products, and attention in bf16 where the processor has it."""

import copy

import pytest
import torch
import torch.nn.functional as F

from cascadevl.checkpoints.tiny import TINY_VISION
from cascadevl.core.config import evolve
from cascadevl.models.quant_linear import quantize_linears
from cascadevl.models.vision import InternViT
from cascadevl.ops.formats import FORMATS


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
def test_features_of_an_int8_tower_point_where_those_in_full_do(norm):
    torch.manual_seed(0)
    whole = InternViT(evolve(TINY_VISION, num_layers=4, norm=norm, qk_norm=norm == "rms_norm")).eval()
    rounded = copy.deepcopy(whole)
    quantize_linears(rounded, lambda _: True, FORMATS["int8"])
    tiles_SCYX = torch.randn(3, 3, TINY_VISION.tile_px, TINY_VISION.tile_px)
    with torch.inference_mode():
        cosine_SP = F.cosine_similarity(rounded(tiles_SCYX), whole(tiles_SCYX), dim=-1)
    assert float(cosine_SP.min()) > 0.999
    assert float(cosine_SP.max()) < 1


def test_gradients_reach_the_pixels_of_an_int8_tower():
    torch.manual_seed(0)
    tower = InternViT(evolve(TINY_VISION, num_layers=2))
    quantize_linears(tower, lambda _: True, FORMATS["int8"])
    tiles_SCYX = torch.randn(1, 3, TINY_VISION.tile_px, TINY_VISION.tile_px, requires_grad=True)
    tower(tiles_SCYX).sum().backward()
    assert tiles_SCYX.grad is not None and tiles_SCYX.grad.abs().max() > 0
