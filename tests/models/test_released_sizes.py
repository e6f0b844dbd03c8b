"""Every released model, built without memory from what its config says, and its parameters counted.

InternVL3.5 against the counts of its paper (arXiv 2508.18265, Table 1); all others against the sum of their
shapes, written out here a second time.
"""

from typing import Any, NamedTuple

import pytest
import torch

from cascadevl.models.config import DecoderConfig, InternVLConfig, VisionConfig
from cascadevl.models.families import FAMILIES, read_decoder
from cascadevl.models.internvl import InternVL
from cascadevl.preprocessing.spec_file import IMAGENET_MEAN, IMAGENET_STD

PIXELS: dict[str, Any] = {"tile_px": 448, "patch_px": 14, "pixel_mean": IMAGENET_MEAN, "pixel_std": IMAGENET_STD}
TOWERS = {
    "300M": VisionConfig(
        hidden_size=1024, mlp_size=4096, num_layers=24, num_heads=16, qkv_bias=True, qk_norm=False,
        norm="layer_norm", norm_eps=1e-6, drop_path=0.0, **PIXELS,
    ),
    "6B": VisionConfig(
        hidden_size=3200, mlp_size=12800, num_layers=45, num_heads=25, qkv_bias=False, qk_norm=True,
        norm="rms_norm", norm_eps=1e-6, drop_path=0.0, **PIXELS,
    ),
}  # fmt: skip


class Llm(NamedTuple):
    family: str
    hidden: int
    mlp: int
    layers: int
    heads: int
    kv_heads: int
    vocab: int
    head: int = 0
    """0: the width over the number of heads."""
    experts: int = 0
    chosen: int = 0


LLMS = {
    "Qwen2-0.5B": Llm("qwen2", 896, 4864, 24, 14, 2, 151655),
    "Qwen2.5-0.5B": Llm("qwen2", 896, 4864, 24, 14, 2, 151674),
    "Qwen2.5-1.5B": Llm("qwen2", 1536, 8960, 28, 12, 2, 151674),
    "Qwen2.5-3B": Llm("qwen2", 2048, 11008, 36, 16, 2, 151674),
    "Qwen2.5-7B": Llm("qwen2", 3584, 18944, 28, 28, 4, 151674),
    "Qwen2.5-14B": Llm("qwen2", 5120, 13824, 48, 40, 8, 151674),
    "Qwen2.5-32B": Llm("qwen2", 5120, 27648, 64, 40, 8, 151674),
    "Qwen2.5-72B": Llm("qwen2", 8192, 29568, 80, 64, 8, 151674),
    "Qwen3-0.6B": Llm("qwen3", 1024, 3072, 28, 16, 8, 151936, 128),
    "Qwen3-1.7B": Llm("qwen3", 2048, 6144, 28, 16, 8, 151936, 128),
    "Qwen3-4B": Llm("qwen3", 2560, 9728, 36, 32, 8, 151936, 128),
    "Qwen3-8B": Llm("qwen3", 4096, 12288, 36, 32, 8, 151936, 128),
    "Qwen3-14B": Llm("qwen3", 5120, 17408, 40, 40, 8, 151936, 128),
    "Qwen3-32B": Llm("qwen3", 5120, 25600, 64, 64, 8, 151936, 128),
    "Qwen3-30B-A3B": Llm("qwen3_moe", 2048, 768, 48, 32, 4, 151936, 128, 128, 8),
    "Qwen3-235B-A22B": Llm("qwen3_moe", 4096, 1536, 94, 64, 4, 151936, 128, 128, 8),
    "GPT-OSS-20B": Llm("gpt_oss", 2880, 2880, 24, 64, 8, 201088, 64, 32, 4),
    "InternLM2-1.8B": Llm("internlm2", 2048, 8192, 24, 16, 8, 92553),
    "InternLM2.5-7B": Llm("internlm2", 4096, 14336, 32, 32, 8, 92553),
    "InternLM2-20B": Llm("internlm2", 6144, 16384, 48, 48, 8, 92553),
    "InternLM3-8B": Llm("internlm3", 4096, 10240, 48, 32, 2, 128512, 128),
    "Phi-3-mini": Llm("phi3", 3072, 8192, 32, 32, 32, 32020),
    "Yi-34B": Llm("llama", 7168, 20480, 60, 56, 8, 64000),
    "Llama-3-70B": Llm("llama", 8192, 28672, 80, 64, 8, 128256),
}
RELEASES = {
    "InternVL-Chat-V1-5": ("6B", "InternLM2-20B"),
    "Mini-InternVL-Chat-2B-V1-5": ("300M", "InternLM2-1.8B"),
    "Mini-InternVL-Chat-4B-V1-5": ("300M", "Phi-3-mini"),
    "InternVL2-1B": ("300M", "Qwen2-0.5B"),
    "InternVL2-2B": ("300M", "InternLM2-1.8B"),
    "InternVL2-4B": ("300M", "Phi-3-mini"),
    "InternVL2-8B": ("300M", "InternLM2.5-7B"),
    "InternVL2-26B": ("6B", "InternLM2-20B"),
    "InternVL2-40B": ("6B", "Yi-34B"),
    "InternVL2-Llama3-76B": ("6B", "Llama-3-70B"),
    "InternVL2_5-1B": ("300M", "Qwen2.5-0.5B"),
    "InternVL2_5-2B": ("300M", "InternLM2-1.8B"),
    "InternVL2_5-4B": ("300M", "Qwen2.5-3B"),
    "InternVL2_5-8B": ("300M", "InternLM2.5-7B"),
    "InternVL2_5-26B": ("6B", "InternLM2-20B"),
    "InternVL2_5-38B": ("6B", "Qwen2.5-32B"),
    "InternVL2_5-78B": ("6B", "Qwen2.5-72B"),
    "InternVL3-1B": ("300M", "Qwen2.5-0.5B"),
    "InternVL3-2B": ("300M", "Qwen2.5-1.5B"),
    "InternVL3-8B": ("300M", "Qwen2.5-7B"),
    "InternVL3-9B": ("300M", "InternLM3-8B"),
    "InternVL3-14B": ("300M", "Qwen2.5-14B"),
    "InternVL3-38B": ("6B", "Qwen2.5-32B"),
    "InternVL3-78B": ("6B", "Qwen2.5-72B"),
    "InternVL3_5-1B": ("300M", "Qwen3-0.6B"),
    "InternVL3_5-2B": ("300M", "Qwen3-1.7B"),
    "InternVL3_5-4B": ("300M", "Qwen3-4B"),
    "InternVL3_5-8B": ("300M", "Qwen3-8B"),
    "InternVL3_5-14B": ("300M", "Qwen3-14B"),
    "InternVL3_5-38B": ("6B", "Qwen3-32B"),
    "InternVL3_5-GPT-OSS-20B-A4B": ("300M", "GPT-OSS-20B"),
    "InternVL3_5-30B-A3B": ("300M", "Qwen3-30B-A3B"),
    "InternVL3_5-241B-A28B": ("6B", "Qwen3-235B-A22B"),
    "Intern-S1": ("6B", "Qwen3-235B-A22B"),
    "Intern-S1-mini": ("300M", "Qwen3-8B"),
}
PUBLISHED = {
    "InternVL3_5-1B": (0.3, 0.8, 1.1),
    "InternVL3_5-2B": (0.3, 2.0, 2.3),
    "InternVL3_5-4B": (0.3, 4.4, 4.7),
    "InternVL3_5-8B": (0.3, 8.2, 8.5),
    "InternVL3_5-14B": (0.3, 14.8, 15.1),
    "InternVL3_5-38B": (5.5, 32.8, 38.4),
    "InternVL3_5-GPT-OSS-20B-A4B": (0.3, 20.9, 21.2),
    "InternVL3_5-30B-A3B": (0.3, 30.5, 30.8),
    "InternVL3_5-241B-A28B": (5.5, 235.1, 240.7),
}
"""Vision, language, total in billions."""


def decoder(llm: Llm) -> DecoderConfig:
    official: dict[str, Any] = {
        "model_type": llm.family, "hidden_size": llm.hidden, "intermediate_size": llm.mlp,
        "num_hidden_layers": llm.layers, "num_attention_heads": llm.heads, "num_key_value_heads": llm.kv_heads,
        "vocab_size": llm.vocab, "max_position_embeddings": 32768, "rope_theta": 1e6,
    }  # fmt: skip
    if llm.head:
        official["head_dim"] = llm.head
    if llm.family == "qwen3_moe":
        official |= {"num_experts": llm.experts, "num_experts_per_tok": llm.chosen, "moe_intermediate_size": llm.mlp}
    if llm.family == "gpt_oss":
        official |= {"num_local_experts": llm.experts, "num_experts_per_tok": llm.chosen}
    return read_decoder(official, tied=False)


def build(release: str) -> InternVL:
    tower, llm = RELEASES[release]
    with torch.device("meta"):
        return InternVL(
            InternVLConfig(
                vision=TOWERS[tower], decoder=decoder(LLMS[llm]), downsample_ratio=0.5, pixel_shuffle="v2",
                select_layer=-1, image_token_id=5,
            )
        )  # fmt: skip


def count(module: torch.nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def tower_sum(width: int, mlp: int, layers: int, six_b: bool) -> int:
    """Patches, class entry, 1025 positions; norms, q k v, projection, MLP, two layer scales."""
    start = (3 * 14 * 14 + 1) * width + width + 1025 * width
    norms = 2 * width if six_b else 4 * width
    qkv = 3 * width * width + (2 * width if six_b else 3 * width)  # norms of q and k, or biases
    return start + layers * (norms + qkv + width * width + width + 2 * width * mlp + mlp + width + 2 * width)


def llm_sum(llm: Llm) -> int:
    head = llm.head or llm.hidden // llm.heads
    q, kv = llm.heads * head, llm.kv_heads * head
    layer = 2 * llm.hidden * q + 2 * llm.hidden * kv + 2 * llm.hidden
    if llm.family in ("qwen2", "gpt_oss"):
        layer += q + 2 * kv
    if llm.family in ("qwen3", "qwen3_moe"):
        layer += 2 * head
    if llm.family == "gpt_oss":  # output bias, sinks; router and experts with biases
        layer += llm.hidden + llm.heads + llm.experts * (llm.hidden + 1)
        layer += llm.experts * (3 * llm.hidden * llm.mlp + 2 * llm.mlp + llm.hidden)
    elif llm.experts:
        layer += llm.experts * llm.hidden + llm.experts * 3 * llm.hidden * llm.mlp
    else:
        layer += 3 * llm.hidden * llm.mlp
    return 2 * llm.vocab * llm.hidden + llm.layers * layer + llm.hidden


@pytest.mark.parametrize("release", RELEASES)
def test_a_released_model_has_the_parameters_that_its_shapes_add_up_to(release: str) -> None:
    model, (tower, llm) = build(release), RELEASES[release]
    vision, sizes = TOWERS[tower], LLMS[llm]
    wide, hidden = 4 * vision.hidden_size, sizes.hidden
    assert count(model.vision_model) == tower_sum(vision.hidden_size, vision.mlp_size, vision.num_layers, tower == "6B")
    assert count(model.mlp1) == 2 * wide + wide * hidden + hidden + hidden * hidden + hidden
    assert count(model.language_model) == llm_sum(sizes)


@pytest.mark.parametrize("release", PUBLISHED)
def test_internvl3_5_has_the_published_number_of_parameters(release: str) -> None:
    model = build(release)
    found = tuple(round(count(part) / 1e9, 1) for part in (model.vision_model, model.language_model, model))
    assert found == PUBLISHED[release]


def test_the_table_has_every_family() -> None:
    assert {llm.family for llm in LLMS.values()} == FAMILIES.keys()
    assert {llm for _, llm in RELEASES.values()} == LLMS.keys()
