"""InternViT-300M's shape, one tile: int8 weights times int8 activations, against transformers in fp32.

python benchmarks/vit_int8.py [--rounds 5] [--layers 24] [--json OUT]

Weights are random, with a spread of its own for each output and input, so that all together have heavy tails. In a
second row a few channels of the residual stream also get large biases at an early layer, as trained towers have
("massive activations", arXiv 2402.17762), and norms raise them. How far they stand out at the end, where all layers
have added to the rest, is told as "largest over median". One thread; contenders in turns, the first round warms up;
CPU time and wall time. Features are compared token by token: mean and worst cosine, and again without the largest
channels, which would hide the rest. The bound is what the operations would take if all went at four times (int8
products) and twice (bf16 attention) the rate of a product of fp32 matrices measured in the same run.
"""

import argparse
import copy
import json
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from transformers import InternVLVisionConfig, InternVLVisionModel

from cascadevl.models.config import VisionConfig
from cascadevl.models.quant_linear import quantize_linears
from cascadevl.models.vision import InternViT
from cascadevl.ops.formats import FORMATS

CONTENDERS = ("transformers fp32 eager", "ours fp32", "ours int8")
OUTLIERS = 4
"""Channels."""

THEIRS = (
    (r"^embeddings\.class_embedding$", "embeddings.cls_token"),
    (r"^embeddings\.position_embedding$", "embeddings.position_embeddings"),
    (r"^embeddings\.patch_embedding\.", "embeddings.patch_embeddings.projection."),
    (r"^encoder\.layers\.", "encoder.layer."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.ls(\d)$", r".lambda_\1"),
    (r"\.attn\.proj\.", ".attention.projection_layer."),
)


def shape(layers: int) -> VisionConfig:
    return VisionConfig(
        hidden_size=1024, mlp_size=4096, num_layers=layers, num_heads=16, tile_px=448, patch_px=14, qkv_bias=True,
        qk_norm=False, norm="layer_norm", norm_eps=1e-6, drop_path=0.0, pixel_mean=(0.485, 0.456, 0.406),
        pixel_std=(0.229, 0.224, 0.225),
    )  # fmt: skip


@torch.no_grad()
def tower(config: VisionConfig, outliers: bool) -> InternViT:
    """Ours with random weights."""
    torch.manual_seed(0)
    model = InternViT(config).eval()
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2:
            outputs, inputs = (torch.randn(size).mul(0.4).exp() for size in parameter.shape)
            parameter.normal_(std=0.8 / parameter.shape[1] ** 0.5).mul_(outputs[:, None]).mul_(inputs)
        elif "norm" in name and name.endswith("weight"):
            parameter.copy_(torch.randn(parameter.shape).mul(0.3).exp())
        elif ".ls" in name:
            parameter.copy_(torch.randn(parameter.shape).mul(0.5).exp() * 0.2)
        else:
            parameter.copy_(torch.randn(parameter.shape) * 0.05)
    if outliers:
        channels = torch.randperm(config.hidden_size)[:OUTLIERS]
        layers: Any = model.encoder.layers
        layers[len(layers) // 6].mlp.fc2.bias[channels] = torch.tensor([600.0, -400.0, 300.0, -900.0])
        for block in layers[len(layers) // 6 + 1 :]:
            block.norm1.weight[channels] *= 2
            block.norm2.weight[channels] *= 2
    return model


@torch.no_grad()
def theirs(model: InternViT) -> InternVLVisionModel:
    """transformers' tower with the same weights."""
    config = model.config
    found = InternVLVisionModel(
        InternVLVisionConfig(
            hidden_size=config.hidden_size, intermediate_size=config.mlp_size, num_hidden_layers=config.num_layers,
            num_attention_heads=config.num_heads, image_size=[config.tile_px] * 2, patch_size=[config.patch_px] * 2,
            attention_bias=True, norm_type=config.norm, attn_implementation="eager",  # type: ignore[call-arg]
        )
    ).eval()  # fmt: skip
    tensors: dict[str, Tensor] = {}
    for name, tensor in model.state_dict().items():
        for pattern, new in THEIRS:
            name = re.sub(pattern, new, name)
        if ".attn.qkv." in name:
            for part, third in zip("qkv", tensor.chunk(3), strict=True):
                tensors[name.replace(".attn.qkv.", f".attention.{part}_proj.")] = third
        else:
            tensors[name] = tensor
    found.load_state_dict(tensors, assign=True)
    return found


def contender(name: str, model: InternViT) -> Callable[[Tensor], Tensor]:
    """Tiles to patches, CLS dropped."""
    if name.startswith("transformers"):
        whole = theirs(model)
        return lambda tiles_SCYX: whole(tiles_SCYX).last_hidden_state[:, 1:]
    if name.endswith("int8"):
        model = copy.deepcopy(model)
        quantize_linears(model, lambda _: True, FORMATS["int8"])
    return model


def picture(px: int) -> Tensor:
    """A normalised tile: large soft shapes, and noise."""
    generator = torch.Generator().manual_seed(1)
    coarse, fine = torch.randn(1, 3, 12, 12, generator=generator), torch.randn(1, 3, px, px, generator=generator)
    return F.interpolate(coarse, size=(px, px), mode="bicubic") + 0.2 * fine


def largest_over_median(model: InternViT, tile_SCYX: Tensor) -> float:
    """Of the last hidden state's magnitudes."""
    found = model(tile_SCYX).abs()
    return float(found.max() / found.median())


def measured(calls: dict[str, Callable[[], Any]], rounds: int) -> dict[str, dict[str, float]]:
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in calls}
    for number in range(rounds + 1):
        for name, call in calls.items():
            start = time.process_time(), time.perf_counter()
            call()
            if number:
                taken[name].append((time.process_time() - start[0], time.perf_counter() - start[1]))
    return {
        name: {"cpu_s": statistics.median(t[0] for t in times), "wall_s": statistics.median(t[1] for t in times)}
        for name, times in taken.items()
    }


def bound_s(config: VisionConfig, fp32_gflop_per_s: float) -> float:
    tokens, width = (config.tile_px // config.patch_px) ** 2 + 1, config.hidden_size
    products = 2 * tokens * width * (4 * width + 2 * config.mlp_size) * config.num_layers
    attention = 4 * tokens * tokens * width * config.num_layers
    return (products / 4 + attention / 2) / (fp32_gflop_per_s * 1e9)


def measure(layers: int, outliers: bool, rounds: int) -> dict[str, Any]:
    config, tile_SCYX = shape(layers), picture(448)
    square = torch.randn(1024, 1024)
    model = tower(config, outliers)
    models = {name: contender(name, model) for name in CONTENDERS}
    calls: dict[str, Callable[[], Any]] = {name: lambda m=model: m(tile_SCYX) for name, model in models.items()}
    calls["a product of fp32 matrices"] = lambda: square @ square
    seconds = measured(calls, rounds)
    rate = 2 * 1024**3 / seconds.pop("a product of fp32 matrices")["cpu_s"] / 1e9
    expected = models[CONTENDERS[0]](tile_SCYX)
    order_D = expected.abs().amax((0, 1)).argsort()
    all_D, small_D = order_D, order_D[:-OUTLIERS]
    row: dict[str, Any] = {
        "outlier channels": outliers,
        "largest over median": round(largest_over_median(model, tile_SCYX), 1),
        "fp32 product GFLOP/s": round(rate, 1),
        "bound of int8, s": round(bound_s(config, rate), 3),
    }
    for name, each in models.items():
        found = each(tile_SCYX)
        cosines = [
            F.cosine_similarity(found[..., of].double(), expected[..., of].double(), dim=-1) for of in (all_D, small_D)
        ]
        row[name] = {
            **{key: round(value, 3) for key, value in seconds[name].items()},
            "times as fast": round(seconds[CONTENDERS[0]]["cpu_s"] / seconds[name]["cpu_s"], 2),
            "cosine": [round(float(x), 6) for x in (cosines[0].mean(), cosines[0].min())],
            "cosine without the largest channels": [round(float(x), 6) for x in (cosines[1].mean(), cosines[1].min())],
        }
    return row


def peak_mb(name: str, layers: int) -> float:
    """What a process of its own needs at most for a tile, over what it needed with its weights in place."""
    command = [sys.executable, __file__, "--peak", name, "--layers", str(layers)]
    return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize() / 2**20


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--layers", type=int, default=24)
    parser.add_argument("--peak", choices=CONTENDERS, help="print the memory of one contender and stop")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    torch.set_num_threads(1)
    with torch.inference_mode():
        if options.peak:
            model = contender(options.peak, tower(shape(options.layers), outliers=False))
            Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
            before, tile_SCYX = resident_mb(), picture(448)
            model(tile_SCYX)
            status = Path("/proc/self/status").read_text()
            print(round(int(re.findall(r"VmHWM:\s+(\d+)", status)[0]) / 1024 - before, 1))
            return
        rows = [measure(options.layers, outliers, options.rounds) for outliers in (False, True)]
    rows.append({"peak MB over the weights": {name: peak_mb(name, options.layers) for name in CONTENDERS}})
    print(json.dumps(rows, indent=2))
    if options.json:
        versions = {"torch": torch.__version__, "cpu": torch.backends.cpu.get_cpu_capability()}
        options.json.write_text(json.dumps({**versions, "rows": rows}, indent=2) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
