"""Pre-training as published: projector warm-up, tower and projector, native joint pre-training.

Every function gives the TrainConfig of a stage for one released size; the table at the end names them for the command
line. Data are never part of a recipe: the corpora were not released, so `--data` names yours. Batches are counted in
packs, as the scripts do. Hours were published for none of these runs. Where paper and scripts are silent it is said,
and what stands here is the nearest that was published.

Scripts: https://github.com/OpenGVLab/InternVL, internvl_chat/shell and internvl_chat_gpt_oss/shell.
"""

from collections.abc import Callable
from functools import partial

from cascadevl.training.config import (
    ComputeConfig,
    OptimConfig,
    PackConfig,
    ScheduleConfig,
    TrainConfig,
    WatchConfig,
)

RECOMPUTE = ComputeConfig(recompute=True)
"""All published runs recompute activations."""
HUNDRED_STEPS = ScheduleConfig(kind="cosine", warmup_steps=100)
THREE_PERCENT = ScheduleConfig(kind="cosine", warmup_ratio=0.03)

NAMES_3_5 = {
    "1b": "InternVL3_5-1B",
    "2b": "InternVL3_5-2B",
    "4b": "InternVL3_5-4B",
    "8b": "InternVL3_5-8B",
    "14b": "InternVL3_5-14B",
    "38b": "InternVL3_5-38B",
    "20b_a4b": "InternVL3_5-GPT-OSS-20B-A4B",
    "30b_a3b": "InternVL3_5-30B-A3B",
    "241b_a28b": "InternVL3_5-241B-A28B",
}
SIZES_3_5 = tuple(NAMES_3_5)
SIZES_3 = ("1b", "2b", "8b", "9b", "14b", "38b", "78b")
SIZES_2_5 = ("1b", "2b", "4b", "8b", "26b", "38b", "78b")
NAMES_1_5 = {
    "2b": "Mini-InternVL-Chat-2B-V1-5",
    "4b": "Mini-InternVL-Chat-4B-V1-5",
    "26b": "InternVL-Chat-V1-5",
}

WARMUP_TOKENS_2_5 = {"1b": 191, "2b": 277, "4b": 164, "8b": 22, "26b": 31, "38b": 107, "78b": 76}
"""Billions, by size (InternVL 2.5, table 3)."""
INCREMENTAL_2_5 = {"8b": (76, 0.1), "26b": (146, 0.4)}
"""Billions of tokens and drop path."""
PRETRAIN_1_5 = {
    "2b": (("vit", "mlp"), 2e-5, 0.1, 0.01),
    "4b": (("mlp",), 2e-4, 0.0, 0.05),
    "26b": (("vit", "mlp"), 1e-5, 0.2, 0.05),
}
"""What learns, rate, drop path and weight decay, by size, of the scripts."""
DROP_PATH_3_5 = {"1b": 0.0, "2b": 0.0, "4b": 0.0, "38b": 0.4, "241b_a28b": 0.4}
"""Others 0.1."""
BALANCE_3_5 = {"20b_a4b": 0.001, "30b_a3b": 0.001, "241b_a28b": 0.001}
"""The `router_aux_loss_coef` that transformers gives these language models; the scripts set none."""


def packs(max_tokens: int, max_tiles: int, per_step: int, reduction: str = "square") -> PackConfig:
    """A pack's budget and the packs of a step."""
    assert reduction in ("square", "token")
    return PackConfig(
        max_tokens=max_tokens, max_tiles=max_tiles, per_step=per_step, reduction=reduction, share_tiles=True
    )


def internvl1_5_pretrain(size: str) -> TrainConfig:
    """InternVL 1.5, first stage: tower and projector learn, of the 4B the projector alone; dynamic high resolution.

    Paper: arXiv 2404.16821, §4; Mini-InternVL: arXiv 2410.16261. Script: internvl_chat_v1_5_*_dynamic_res_pretrain.sh.
    Command: cascadevl train internvl1_5_26b_pretrain --init FOLDER --data META.json --steps N --out OUT
    Hardware: 256 GPUs (26B), 128 (2B, 4B). Hours: not published. Steps: one epoch.
    `--init` is a model of InternViT-6B-448px-V1-5 and InternLM2-Chat-20B (the 300M tower and InternLM2-Chat-1.8B or
    Phi-3-mini) with a fresh projector. Samples were not packed: 13 tiles fill the 4,096 tokens of a pack but for
    short texts. The published batch of 2,048 counts samples.
    """
    train, lr, drop_path, weight_decay = PRETRAIN_1_5[size]
    return TrainConfig(
        recipe=f"internvl1_5_{size}_pretrain",
        model=NAMES_1_5[size],
        train=train,
        drop_path=drop_path,
        packs=packs(4096, 13, 2048, "token"),
        optim=OptimConfig(lr=lr, weight_decay=weight_decay),
        schedule=HUNDRED_STEPS,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=200),
    )


def internvl2_5_mlp_warmup(size: str) -> TrainConfig:
    """InternVL 2.5, stage 1: the projector alone learns.

    Paper: arXiv 2412.05271, §3.3 and table 3. Script: internvl2.5/stage1/internvl2_5_*_stage1.sh.
    Command: cascadevl train internvl2_5_8b_mlp_warmup --init FOLDER --data META.json --out OUT
    Hardware: 512 GPUs. Hours: not published. Steps: from the tokens of table 3, for full packs; the script would go on
    to 100,000.
    `--init` is a model of the tower (300M, or 6B-448px-V1-5 from 26B on) and the language model with a fresh projector.
    """
    return TrainConfig(
        recipe=f"internvl2_5_{size}_mlp_warmup",
        model=f"InternVL2_5-{size.upper()}",
        steps=round(WARMUP_TOKENS_2_5[size] * 1e9 / (512 * 16384)),
        train=("mlp",),
        drop_path=0.0,
        packs=packs(16384, 48, 512),
        optim=OptimConfig(lr=2e-4, weight_decay=decay_2_5(size)),
        schedule=HUNDRED_STEPS,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=100),
    )


def internvl2_5_vit_incremental(size: str) -> TrainConfig:
    """InternVL 2.5, stage 1.5: tower and projector learn, on rare domains too; the tower then serves other sizes.

    Paper: arXiv 2412.05271, §3.3 and table 3; 8B and 26B alone have it. Script: internvl2.5/stage1.5.
    Command: cascadevl train internvl2_5_8b_vit_incremental --init OUT-OF-STAGE-1/model --data META.json --out OUT
    Hardware: 512 GPUs. Hours: not published. Steps: from the tokens of table 3, for full packs.
    """
    tokens, drop_path = INCREMENTAL_2_5[size]
    return TrainConfig(
        recipe=f"internvl2_5_{size}_vit_incremental",
        model=f"InternVL2_5-{size.upper()}",
        steps=round(tokens * 1e9 / (1024 * 16384)),
        train=("vit", "mlp"),
        drop_path=drop_path,
        packs=packs(16384, 48, 1024),
        optim=OptimConfig(lr=1e-5, weight_decay=0.05),
        schedule=HUNDRED_STEPS,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=100),
    )


def internvl3_pretrain(size: str) -> TrainConfig:
    """InternVL3, native multimodal pre-training: everything learns at once, from a base language model.

    Paper: arXiv 2504.10479, §2.2: some 200 billion tokens, text to multimodal 1 : 3, contexts of 32K; no separate
    alignment. Command: cascadevl train internvl3_8b_pretrain --init FOLDER --data META.json --out OUT
    Hardware and hours: not published, nor are rate, batch and drop path. Those here are InternVL3.5's for the same
    stage; steps follow from the tokens, for full packs. V2PE (`--packs.deltas`) is off, as in the released models.
    `--init` is a model of the tower (300M-V2.5, 6B-V2.5 from 38B on) and a base language model, with a fresh projector.
    """
    return TrainConfig(
        recipe=f"internvl3_{size}_pretrain",
        model=f"InternVL3-{size.upper()}",
        steps=round(200e9 / (512 * 32768)),
        drop_path={"38b": 0.4, "78b": 0.4}.get(size, 0.1),
        packs=packs(32768, 96, 512),
        optim=OptimConfig(lr=2e-5, weight_decay=0.05),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=500),
    )


def internvl3_5_mlp_warmup(size: str) -> TrainConfig:
    """InternVL3.5, stage 0: the projector alone learns.

    Paper: arXiv 2508.18265, §2.2. Script: internvl3_5_gpt_oss_20b_stage0_mlp_warmup.sh, the only size with one; the
    others are taken to be alike. Command:
    cascadevl train internvl3_5_8b_mlp_warmup --init FOLDER --data META.json --out OUT
    Hardware: nodes of 8 GPUs, their number is left open. Hours: not published.
    Packs hold 32,768 tokens and samples 16,384; here the pack's bound is the only one.
    `--init` is a model of InternViT-300M-448px-V2_5 (6B from 38B on) and the language model, with a fresh projector.
    """
    return TrainConfig(
        recipe=f"internvl3_5_{size}_mlp_warmup",
        model=NAMES_3_5[size],
        steps=5000,
        train=("mlp",),
        drop_path=DROP_PATH_3_5.get(size, 0.1),
        packs=packs(32768, 96, 256),
        optim=OptimConfig(lr=1e-3, weight_decay=0.05),
        schedule=ScheduleConfig(kind="cosine", warmup_ratio=0.01),
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=500),
    )


def internvl3_5_pretrain(size: str) -> TrainConfig:
    """InternVL3.5, stage 1: native pre-training of everything.

    Paper: arXiv 2508.18265, §2.2: 116 million samples, some 250 billion tokens, text to multimodal 1 : 2.5, contexts
    of 32K. Script: internvl3_5_gpt_oss_20b_stage1_pretrain.sh, the only size with one; the others are taken to be
    alike but for the drop path of their own later scripts.
    Command: cascadevl train internvl3_5_8b_pretrain --init OUT-OF-STAGE-0/model --data META.json --out OUT
    Hardware: nodes of 8 GPUs, their number is left open. Hours: not published.
    """
    return TrainConfig(
        recipe=f"internvl3_5_{size}_pretrain",
        model=NAMES_3_5[size],
        steps=15000,
        drop_path=DROP_PATH_3_5.get(size, 0.1),
        balance=BALANCE_3_5.get(size, 0.0),
        packs=packs(32768, 96, 512),
        optim=OptimConfig(lr=2e-5, weight_decay=0.05),
        schedule=THREE_PERCENT,
        compute=RECOMPUTE,
        watch=WatchConfig(save_every=500),
    )


def decay_2_5(size: str) -> float:
    """Weight decay of InternVL 2.5."""
    return 0.01 if size in ("1b", "2b", "4b") else 0.05


Recipe = Callable[[], TrainConfig]

RECIPES: dict[str, Recipe] = {
    **{f"internvl1_5_{size}_pretrain": partial(internvl1_5_pretrain, size) for size in NAMES_1_5},
    **{f"internvl2_5_{size}_mlp_warmup": partial(internvl2_5_mlp_warmup, size) for size in SIZES_2_5},
    **{f"internvl2_5_{size}_vit_incremental": partial(internvl2_5_vit_incremental, size) for size in INCREMENTAL_2_5},
    **{f"internvl3_{size}_pretrain": partial(internvl3_pretrain, size) for size in SIZES_3},
    **{f"internvl3_5_{size}_mlp_warmup": partial(internvl3_5_mlp_warmup, size) for size in SIZES_3_5},
    **{f"internvl3_5_{size}_pretrain": partial(internvl3_5_pretrain, size) for size in SIZES_3_5},
}
