"""Supervised fine-tuning: the published stages, and small runs for one's own data and for a first try.

As in pretrain.py, data are the reader's and hours were not published.
"""

from functools import partial

from cascadevl.core.config import evolve
from cascadevl.recipes.pretrain import (
    BALANCE_3_5,
    DROP_PATH_3_5,
    NAMES_1_5,
    NAMES_3_5,
    RECOMPUTE,
    SIZES_2_5,
    SIZES_3,
    SIZES_3_5,
    THREE_PERCENT,
    Recipe,
    decay_2_5,
    packs,
)
from cascadevl.training.config import (
    LoraConfig,
    OptimConfig,
    PackConfig,
    ScheduleConfig,
    TrainConfig,
    WatchConfig,
)

STEPS_2_5 = {"1b": 22000, "2b": 22000, "4b": 11000}
"""Of the scripts, 4, 4 and 2 epochs; others 5,500, which is one."""
DROP_PATH_FINETUNE_3 = {"14b": 0.1, "38b": 0.2, "78b": 0.4}
"""Others none; the tower rests, and yet drops."""
LARGE = ("26b", "38b", "78b")


def internvl1_5_sft(size: str) -> TrainConfig:
    """InternVL 1.5, second stage: everything learns, with dynamic high resolution of up to 12 tiles.

    Paper: arXiv 2404.16821, §4; Mini-InternVL: arXiv 2410.16261. Script: internvl_chat_v1_5_*_dynamic_res_finetune.sh.
    Command: cascadevl train internvl1_5_26b_sft --init OUT-OF-PRETRAIN/model --data META.json --steps N --out OUT
    Hardware: 256 GPUs (26B), 128 (2B, 4B). Hours: not published. Steps: one epoch.
    Samples were not packed; the published batch of 1,024 counts samples.
    """
    large = size == "26b"
    return TrainConfig(
        recipe=f"internvl1_5_{size}_sft",
        model=NAMES_1_5[size],
        drop_path=0.4 if large else 0.1,
        packs=packs(4096 if large else 8192, 13, 1024, "token"),
        optim=OptimConfig(lr=2e-5 if large else 4e-5, weight_decay=0.01 if size == "2b" else 0.05),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=200),
    )


def internvl2_5_sft(size: str) -> TrainConfig:
    """InternVL 2.5, stage 2: everything learns from 16.3 million samples.

    Paper: arXiv 2412.05271, §3.3, §4 and table 3. Script: internvl2.5/stage2/internvl2_5_*_stage2.sh.
    Command: cascadevl train internvl2_5_8b_sft --init OUT-OF-STAGE-1.5/model --data META.json --out OUT
    Hardware: 512 GPUs. Hours: not published.
    High-resolution documents and several pictures get up to 24 or 36 tiles, videos one a frame (§4.1): that is said by
    `max_dynamic_patch` of each set in META.json. Pictures are seen through random JPEG where the set says so.
    """
    large = size in LARGE
    return TrainConfig(
        recipe=f"internvl2_5_{size}_sft",
        model=f"InternVL2_5-{size.upper()}",
        steps=STEPS_2_5.get(size, 5500),
        drop_path=0.4 if large else 0.1,
        packs=packs(16384, 48, 512),
        optim=OptimConfig(lr=2e-5 if large else 4e-5, weight_decay=decay_2_5(size)),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=100),
    )


def internvl3_sft(size: str) -> TrainConfig:
    """InternVL3, supervised fine-tuning of everything on 21.7 million samples.

    Paper: arXiv 2504.10479, §2.3: random JPEG, square-root averaging and packing as in 2.5.
    Command: cascadevl train internvl3_8b_sft --init OUT-OF-PRETRAIN/model --data META.json --steps N --out OUT
    Hardware, hours, rate, batch, drop path and steps: not published. Those here are InternVL 2.5's of the same size
    (9B and 14B as 8B).
    """
    large = size in LARGE
    return TrainConfig(
        recipe=f"internvl3_{size}_sft",
        model=f"InternVL3-{size.upper()}",
        drop_path=0.4 if large else 0.1,
        packs=packs(16384, 48, 512),
        optim=OptimConfig(lr=2e-5 if large else 4e-5, weight_decay=decay_2_5(size)),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=100),
    )


def internvl3_finetune(size: str) -> TrainConfig:
    """InternVL3 on one's own data, as its authors advise: the tower rests.

    Script: internvl3.0/2nd_finetune/internvl3_*_2nd_finetune_full.sh.
    Command: cascadevl train internvl3_8b_finetune --data META.json --steps N --out OUT
    Hardware: 8 GPUs (38B 16, 78B 32). Hours: not published. Steps: one epoch.
    Samples were not packed; the published batch of 128 counts samples, all of whose tokens weigh alike. Where samples
    are short, fewer packs (`--packs.per-step`) hold as many.
    """
    return TrainConfig(
        recipe=f"internvl3_{size}_finetune",
        model=f"InternVL3-{size.upper()}",
        init=f"OpenGVLab/InternVL3-{size.upper()}",
        train=("mlp", "llm"),
        drop_path=DROP_PATH_FINETUNE_3.get(size, 0.0),
        packs=packs(16384, 48, 128, "token"),
        optim=OptimConfig(lr=1e-5 if size == "1b" else 2e-5, weight_decay=0.05),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
    )


def internvl3_5_sft(size: str) -> TrainConfig:
    """InternVL3.5, stage 2: everything learns from 56 million samples, some 130 billion tokens.

    Paper: arXiv 2508.18265, §2.2: text to multimodal 1 : 3.5; instructions of InternVL3, Thinking data, and new
    abilities (GUI, embodied, SVG). Scripts: internvl3_5_*_sft.sh, and internvl3_5_gpt_oss_20b_stage2_sft.sh.
    Command: cascadevl train internvl3_5_8b_sft --data META.json --out OUT
    Hardware: nodes of 8 GPUs, their number is left open. Hours: not published.
    """
    return TrainConfig(
        recipe=f"internvl3_5_{size}_sft",
        model=NAMES_3_5[size],
        init=f"OpenGVLab/{NAMES_3_5[size]}-Pretrained",
        steps=8000,
        drop_path=DROP_PATH_3_5.get(size, 0.1),
        balance=BALANCE_3_5.get(size, 0.0),
        packs=packs(32768, 96, 512),
        optim=OptimConfig(lr=2e-5 if size == "241b_a28b" else 8e-5, weight_decay=0.05),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=500),
    )


def internvl3_5_thinking_sft(size: str) -> TrainConfig:
    """InternVL3.5's fine-tuning on Thinking data alone: long chains of thought under the thinking system prompt.

    Paper: arXiv 2508.18265, §2.2, where these data are a part of stage 2 and no stage of their own; the settings are
    those of stage 2, from its result on. How many steps depends on the data.
    Command: cascadevl train internvl3_5_8b_thinking_sft --data THINKING.jsonl --steps N --out OUT
    """
    name = f"internvl3_5_{size}_thinking_sft"
    return evolve(internvl3_5_sft(size), recipe=name, init=f"OpenGVLab/{NAMES_3_5[size]}-Instruct", steps=None)


def sft_nano() -> TrainConfig:
    """nano learns from your data, everything in it.

    Command: cascadevl train sft_nano --data mine.jsonl --out runs/mine
    Hardware: one CPU core. `--steps` is worth a thought: a pack holds some dozens of short samples.
    """
    return TrainConfig(
        recipe="sft_nano",
        model="nano",
        init="nano",
        steps=200,
        packs=PackConfig(max_tokens=2048, max_tiles=24),
        optim=OptimConfig(lr=2e-4, betas=(0.9, 0.98)),
        schedule=ScheduleConfig(kind="cosine", warmup_ratio=0.05),
        watch=WatchConfig(save_every=50),
    )


def sft_nano_lora() -> TrainConfig:
    """nano learns from your data through a LoRA on its decoder and projector: OUT/adapter is under a megabyte.

    Command: cascadevl train sft_nano_lora --data mine.jsonl --out runs/mine
    Hardware: one CPU core.
    """
    return evolve(
        sft_nano(), recipe="sft_nano_lora", optim={"lr": 2e-3}, lora=LoraConfig(rank=8, alpha=16.0, on=("llm", "mlp"))
    )


def tiny() -> TrainConfig:
    """Twenty steps of a random model of 80 thousand numbers on rendered lines: to see everything work.

    Command: cascadevl train tiny --out runs/tiny
    Hardware: any. Hours: some seconds.
    """
    return TrainConfig(
        recipe="tiny",
        model="tiny:qwen3",
        init="tiny:qwen3",
        data="gym:line",
        steps=20,
        packs=PackConfig(max_tokens=1024, max_tiles=24, reduction="token"),
        optim=OptimConfig(lr=1e-2),
        schedule=ScheduleConfig(kind="constant", warmup_steps=2),
        watch=WatchConfig(save_every=10),
    )


RECIPES: dict[str, Recipe] = {
    **{f"internvl1_5_{size}_sft": partial(internvl1_5_sft, size) for size in NAMES_1_5},
    **{f"internvl2_5_{size}_sft": partial(internvl2_5_sft, size) for size in SIZES_2_5},
    **{f"internvl3_{size}_sft": partial(internvl3_sft, size) for size in SIZES_3},
    **{f"internvl3_{size}_finetune": partial(internvl3_finetune, size) for size in SIZES_3},
    **{f"internvl3_5_{size}_sft": partial(internvl3_5_sft, size) for size in SIZES_3_5},
    **{f"internvl3_5_{size}_thinking_sft": partial(internvl3_5_thinking_sft, size) for size in SIZES_3_5},
    "sft_nano": sft_nano,
    "sft_nano_lora": sft_nano_lora,
    "tiny": tiny,
}
