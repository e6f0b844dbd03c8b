"""Which inputs the weights of a model are rounded by, and what of it is rounded to nearest."""

from typing import Any

import pytest
import torch
from PIL import Image
from torch import Tensor

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.messages import Conversation
from cascadevl.engine.gptq import round_weights
from cascadevl.models.internvl import InternVL
from cascadevl.models.quant_linear import few_bits, quantize_decoder, quantize_linears
from cascadevl.ops.formats import FORMATS, Quantized
from cascadevl.ops.gptq import quantize_compensated
from cascadevl.preprocessing.processor import ModelInputs

INT4 = FORMATS["int4-g32"]


def calibrated(family: str, **changes: Any) -> tuple[InternVL, list[ModelInputs]]:
    """A small model, and what it shall read. Its widths are cut into whole groups."""
    parts = tiny_parts(family, std=0.1, **{"hidden_size": 64, "mlp_size": 64, **changes})
    return parts.model, [parts.processor(Conversation.ask(f"What is {n} + {n}, and why?")) for n in range(4)]


def logits(model: InternVL, samples: list[ModelInputs]) -> Tensor:
    with torch.no_grad():
        return torch.cat([model(sample.token_ids, sample.tiles) for sample in samples])


def same(one: Quantized, other: Quantized) -> bool:
    return all(torch.equal(tensor, other.tensors()[name]) for name, tensor in one.tensors().items())


def inputs_of(model: InternVL, path: str, samples: list[ModelInputs]) -> Tensor:
    """All that a module reads."""
    seen: list[Tensor] = []
    handle = model.get_submodule(path).register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    logits(model, samples)
    handle.remove()
    return torch.cat(seen)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "llama"])
def test_the_model_loses_less_than_by_rounding_to_nearest(family: str) -> None:
    """Biases (qwen2) among it, and heads of queries that share keys (all)."""

    def divergence(compensated: bool) -> float:
        model, samples = calibrated(family)
        whole = logits(model, samples).log_softmax(-1)
        if compensated:
            round_weights(model, samples, INT4, head=True)
        else:
            quantize_decoder(model.language_model, INT4, head=True)
        rounded = logits(model, samples).log_softmax(-1)
        return float((whole.exp() * (whole - rounded)).sum(-1).mean())

    assert divergence(True) < 0.5 * divergence(False)


def test_each_linear_is_rounded_by_what_it_reads_behind_rounded_blocks() -> None:
    model, samples = calibrated("qwen3", num_layers=2)
    whole, _ = calibrated("qwen3", num_layers=2)
    half, _ = calibrated("qwen3", num_layers=2)  # its first block will be of few bits
    found = round_weights(model, samples, INT4, head=True)
    layers = few_bits(model)
    for name, layer in few_bits(model).items():
        if ".layers.0." in name:
            half.set_submodule(name.removesuffix(".weight"), layer[0])
    for index, before in enumerate((whole, half)):
        for path in ("self_attn.q_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.up_proj", "mlp.down_proj"):
            name = f"language_model.model.layers.{index}.{path}"
            x_TD = inputs_of(before, name, samples)
            weight = whole.get_parameter(f"{name}.weight")
            # Sums in another order: a weight halfway between two steps may go either way.
            expected = quantize_compensated(weight, x_TD.T @ x_TD / len(x_TD), INT4).quants
            assert (layers[f"{name}.weight"][0].quantized.quants == expected).float().mean() > 0.99, name
    assert [each.name for each in found[:2]] == ["layers.0.self_attn.q_proj", "layers.0.self_attn.k_proj"]
    assert found[-1].name == "lm_head" and len(found) == 15
    assert all(each.error <= each.error_nearest for each in found)


def test_the_same_is_rounded_as_to_nearest() -> None:
    for head in (False, True):
        (model, samples), (other, _) = calibrated("qwen3"), calibrated("qwen3")
        round_weights(model, samples, INT4, head=head)
        quantize_decoder(other.language_model, INT4, head=head)
        assert few_bits(model).keys() == few_bits(other).keys()


def test_an_output_matrix_that_is_the_embeddings_stays() -> None:
    model, samples = calibrated("qwen3", tied=True)
    before = model.language_model.model.embed_tokens.weight.clone()
    round_weights(model, samples, INT4, head=True)
    assert model.language_model.lm_head is None
    assert torch.equal(model.language_model.model.embed_tokens.weight, before)


@pytest.mark.parametrize("family", ["qwen3_moe", "gpt_oss"])
def test_experts_are_rounded_to_nearest_and_what_routes_to_them_stays(family: str) -> None:
    format = FORMATS["int8"]
    (model, samples), (other, _) = calibrated(family), calibrated(family)
    round_weights(model, samples, format)
    quantize_decoder(other.language_model, format)
    mine, nearest = few_bits(model), few_bits(other)
    assert mine.keys() == nearest.keys() and any("experts" in name for name in mine)
    for name in mine:
        assert all(
            same(a.quantized, b.quantized) == ("experts" in name)
            for a, b in zip(mine[name], nearest[name], strict=True)
        ), name


@pytest.mark.parametrize("pictures", [True, False])
def test_the_tower_is_rounded_by_pictures_and_to_nearest_without(pictures: bool) -> None:
    parts, other = tiny_parts("qwen3", std=0.1), tiny_parts("qwen3", std=0.1).model
    picture = Image.radial_gradient("L").resize((70, 60)).convert("RGB")
    asked = Conversation.ask("What is it?", images=(picture,) if pictures else ())
    found = round_weights(parts.model, [parts.processor(asked)], FORMATS["int8"], vision=True)
    quantize_linears(other, lambda name: name.startswith(("vision_model.", "mlp1.")), FORMATS["int8"])
    vision = {each.name: each for each in found if not each.name.startswith("layers.")}
    assert {"vision.0.attn.qkv", "vision.1.mlp.fc2", "mlp1.1", "mlp1.3"} < set(vision)
    assert all((each.error < each.error_nearest) == pictures for each in vision.values())
    nearest = few_bits(other)
    mine = {name: layers for name, layers in few_bits(parts.model).items() if not name.startswith("language_model.")}
    assert mine.keys() == nearest.keys()
    assert all(same(mine[name][0].quantized, nearest[name][0].quantized) != pictures for name in mine)
