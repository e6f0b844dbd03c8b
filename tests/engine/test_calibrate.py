"""Scaling changes nothing in full precision, and lessens what rounding loses where inputs are uneven."""

from typing import Any

import pytest
import torch
from torch import Tensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.messages import Conversation
from cascadevl.engine.calibrate import apply, decoder_folds, output_error, scale_weights, scales, vision_folds
from cascadevl.models.internvl import InternVL
from cascadevl.models.quant_linear import quantize_decoder
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.quantize import dequantize, quantize
from cascadevl.preprocessing.processor import ModelInputs


def uneven(family: str, **changes: Any) -> tuple[InternVL, list[ModelInputs]]:
    """A model whose norms let some inputs through much larger than others, as trained ones do."""
    parts = tiny_parts(family, std=0.1, **{"hidden_size": 64, "mlp_size": 64, **changes})
    torch.manual_seed(0)
    with torch.no_grad():
        for name, weight in parts.model.language_model.model.layers.named_parameters():
            if name.endswith("layernorm.weight"):
                weight[::16] = 30.0
    samples = [parts.processor(Conversation.ask(f"What is {n} + {n}?")) for n in range(4)]
    return parts.model, samples


def logits(model: InternVL, samples: list[ModelInputs]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(sample.token_ids, sample.tiles) for sample in samples])


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_in_full_precision_nothing_changes(family: str) -> None:
    """Biases (qwen2), norms of heads (qwen3) and grouped queries (all) among it."""
    model, samples = uneven(family)
    expected = logits(model, samples)
    before = [parameter.clone() for parameter in model.parameters()]
    found = scale_weights(model, samples, FORMATS["int4-g32"], head=True)
    assert any(each.alpha > 0 for each in found)
    assert not all(torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True))
    torch.testing.assert_close(logits(model, samples), expected, atol=1e-4 * float(expected.abs().max()), rtol=1e-3)


def test_every_fold_takes_every_scale_without_a_change() -> None:
    parts = tiny_parts("qwen2", std=0.1)
    sample = parts.processor(
        [{"role": "user", "content": [{"type": "image", "image": _picture()}, {"type": "text", "text": "What?"}]}]
    )
    expected = logits(parts.model, [sample])
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for fold in decoder_folds(parts.model.language_model, head=True) + vision_folds(parts.model):
            width = fold.narrow(torch.ones(fold.linears[0].in_features)).shape[0]
            apply(fold, torch.rand(width, generator=generator) + 0.5)
    torch.testing.assert_close(
        logits(parts.model, [sample]), expected, atol=2e-5 * float(expected.abs().max()), rtol=1e-3
    )


def _picture() -> object:
    from PIL import Image

    return Image.radial_gradient("L").resize((70, 60)).convert("RGB")


def test_rounding_loses_less_where_inputs_are_uneven() -> None:
    def divergence(scaled: bool) -> float:
        model, samples = uneven("qwen3")
        whole = logits(model, samples).log_softmax(-1)
        if scaled:
            scale_weights(model, samples, FORMATS["int4-g32"])
        quantize_decoder(model.language_model, FORMATS["int4-g32"])
        rounded = logits(model, samples).log_softmax(-1)
        return float((whole.exp() * (whole - rounded)).sum(-1).mean())

    plain, scaled = divergence(False), divergence(True)
    assert scaled < 0.8 * plain


def test_the_best_of_the_grid_is_taken_and_no_scaling_is_in_it() -> None:
    model, samples = uneven("qwen3")
    for each in scale_weights(model, samples, FORMATS["int4-g64"]):
        assert each.error <= each.error_plain
        assert (each.alpha == 0) == (each.error == each.error_plain)


def test_the_error_is_that_of_the_papers_formula() -> None:
    weight, x, s = torch.randn(6, 32), torch.randn(5, 32), torch.rand(32) + 0.5
    rounded = dequantize(quantize(weight * s, FORMATS["int4-g32"]))
    total = 0.0
    for row in x:
        for f in range(6):
            whole = sum(float(weight[f, d] * row[d]) for d in range(32))
            total += (sum(float(rounded[f, d] * (row[d] / s[d])) for d in range(32)) - whole) ** 2
    assert output_error(weight, x, s, FORMATS["int4-g32"]) == pytest.approx(total, rel=1e-3)


def test_scales_are_powers_of_the_magnitude_around_one() -> None:
    mean = torch.tensor([1.0, 4.0, 16.0])
    torch.testing.assert_close(scales(mean, 0.5), torch.tensor([0.5, 1.0, 2.0]))
    assert torch.equal(scales(mean, 0.0), torch.ones(3))
    assert bool(scales(torch.tensor([0.0, 1.0]), 0.5).isfinite().all()), "an input that is never there"
    assert torch.equal(scales(torch.zeros(3), 0.5), torch.ones(3))


def test_experts_are_left_alone() -> None:
    parts = tiny_parts("qwen3_moe", std=0.1)
    names = {fold.name for fold in decoder_folds(parts.model.language_model, head=False)}
    assert names == {"layers.0.qkv", "layers.0.o_proj", "layers.1.qkv", "layers.1.o_proj"}
