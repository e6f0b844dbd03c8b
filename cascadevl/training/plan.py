"""What a run will take of a device's memory, reckoned before it starts.

Weights that learn are fp32, with an fp32 gradient, AdamW's two moments (Muon's one, taken as two) and perhaps an
average; under a LoRA the others lie in the type of the products, or in few bits. Activations are those of one pack:
with recomputation the inputs of all blocks and the insides of one, otherwise the insides of all. Nothing is sharded:
every rank holds everything.
"""

import torch

from cascadevl.models.config import InternVLConfig
from cascadevl.models.costs import prefill_activations, tower_activations
from cascadevl.models.internvl import InternVL
from cascadevl.ops.formats import FORMATS
from cascadevl.training.config import LoraConfig, TrainConfig
from cascadevl.training.lora import linears
from cascadevl.training.trainable import choose, matching

FULL_BYTES = 4


def memory(config: InternVLConfig, train: TrainConfig, product_bytes: int = 2) -> dict[str, int]:
    """Bytes of a rank by what they hold, and "total"; `product_bytes` of a number in a product, 2 is bfloat16."""
    with torch.device("meta"):
        model = InternVL(config)
    everything = sum(p.numel() for p in model.parameters())
    if train.lora.rank:
        learned = lora_numbers(model, train.lora)
        weights = (
            everything * product_bytes - _saved_by_rounding(model, train.lora, product_bytes) + learned * FULL_BYTES
        )
    else:
        learned = sum(p.numel() for _, p in choose(model, train.train))
        weights = everything * FULL_BYTES
    found = {
        "weights": weights,
        "gradients": learned * FULL_BYTES,
        "moments": 2 * learned * FULL_BYTES,
        "average": learned * FULL_BYTES if train.optim.ema else 0,
        "activations": activations(config, train) * product_bytes,
    }
    return {**found, "total": sum(found.values())}


def lora_numbers(model: InternVL, lora: LoraConfig) -> int:
    """Of A, B and perhaps magnitudes, over all linears that get a change."""
    found = 0
    for path in matching(lora.on, linears(model), "linear"):
        outputs, inputs = model.get_parameter(f"{path}.weight").shape
        found += lora.rank * (outputs + inputs) + (outputs if lora.dora else 0)
    return found


def activations(config: InternVLConfig, train: TrainConfig) -> int:
    """Numbers kept for the gradient of one pack."""
    packs, blocks = train.packs, (config.vision.num_layers, config.decoder.num_layers)
    entries = (config.vision.tile_px // config.vision.patch_px) ** 2 + 1
    inputs = (packs.max_tiles * entries * config.vision.hidden_size, packs.max_tokens * config.decoder.hidden_size)
    insides = (tower_activations(config, packs.max_tiles), prefill_activations(config.decoder, packs.max_tokens))
    if train.compute.recompute:
        return sum(num * size for num, size in zip(blocks, inputs, strict=True)) + max(insides)
    return sum(num * size for num, size in zip(blocks, insides, strict=True))


def _saved_by_rounding(model: InternVL, lora: LoraConfig, product_bytes: int) -> int:
    """What QLoRA takes off the decoder's matrices: bits of a number, and 2 bytes for each group's scale."""
    if lora.quantize is None:
        return 0
    format = FORMATS[lora.quantize]
    bits = (8 if format.kind == "int8" else 4) + (16 / format.group if format.group else 0)
    modules = model.language_model.model.layers.modules()
    numbers = sum(module.weight.numel() for module in modules if type(module) is torch.nn.Linear)
    return round(numbers * (product_bytes - bits / 8))
