"""One way of fine-tuning in a process of its own, which does what sft.py tells it over a pipe.

The same samples, made from a seed, for every way: bytes of random letters as question and answer, one in four with a
picture for most of its tokens where it is long enough. They are prepared beforehand: reading them is not measured.
"""

import dataclasses
import json
import random
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from cascadevl.checkpoints.load import load_parts, load_processor
from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.data.batch import IGNORE, Batch, collate
from cascadevl.data.packing import Packer
from cascadevl.preprocessing.processor import ModelInputs, Processor
from cascadevl.training.compute import autocast
from cascadevl.training.config import OptimConfig
from cascadevl.training.fit import FitState, fit
from cascadevl.training.objectives.next_token import NextToken
from cascadevl.training.step import Step
from cascadevl.training.throughput import matmul_rate
from cascadevl.training.trainable import choose, make_optimizer

BATCH = 8
LR, WEIGHT_DECAY = 1e-5, 0.05
MAX_TILES = 48
"""Of a pack."""


class Rows:
    """Prepared samples of given lengths, by number; made once."""

    def __init__(self, processor: Processor, lengths: Sequence[int]) -> None:
        self.processor = processor
        self.lengths = lengths
        self._made: dict[int, ModelInputs] = {}

    def __getitem__(self, number: int) -> ModelInputs:
        if number not in self._made:
            self._made[number] = self._make(number)
        return self._made[number]

    def _make(self, number: int) -> ModelInputs:
        draw, spec, length = random.Random(number), self.processor.spec, self.lengths[number]
        pictures = []
        room = int(0.8 * (length - 32) / spec.visual_tokens_per_tile) - 1  # one is the thumbnail's
        if number % 4 == 0 and room > 1:
            size = min(room, spec.max_tiles) * spec.tile_px, spec.tile_px
            noise = np.random.default_rng(number).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
            pictures = [Image.fromarray(noise)]

        def prepared(num_letters: int) -> ModelInputs:
            letters = "".join(draw.choices("abcdefghijklmnopqrstuvwxyz", k=num_letters))
            asked, said = letters[: num_letters // 2], letters[num_letters // 2 :]
            return self.processor(
                Conversation((*Conversation.ask(asked, pictures).turns, Turn("assistant", (Text(said),))))
            )

        inputs = prepared(length - len(prepared(2).token_ids) + 2)  # a letter is a token
        assert len(inputs.token_ids) == length, (len(inputs.token_ids), length)
        return inputs


def padded(samples: Sequence[ModelInputs]) -> list[ModelInputs]:
    """All as long as the longest; nothing of the padding is learned, and nothing looks at it."""
    longest = max(len(sample.token_ids) for sample in samples)

    def longer(sample: ModelInputs) -> ModelInputs:
        more = (0, longest - len(sample.token_ids))
        pad = torch.nn.functional.pad
        return dataclasses.replace(sample, token_ids=pad(sample.token_ids, more), trained=pad(sample.trained, more))

    return [longer(sample) for sample in samples]


class Ours:
    """`fit` over packs, over padded batches, or over samples one by one with eight to an update."""

    def __init__(self, way: str, folder: Path, max_tokens: int, products: torch.dtype) -> None:
        self.way = way
        self.max_tokens = max_tokens
        self.products = products
        self.parts = load_parts(folder, dtype=torch.float32, device="cpu")
        self.learned = choose(self.parts.model, ("vit", "mlp", "llm"))

    def batches(self, samples: Sequence[ModelInputs]) -> Iterator[Batch]:
        if self.way == "one by one":
            yield from (collate([sample]) for sample in samples)
        elif self.way == "padded":
            yield from (collate(padded(samples[at : at + BATCH])) for at in range(0, len(samples), BATCH))
        else:
            packer: Packer[int] = Packer(self.max_tokens, MAX_TILES)
            for number, sample in enumerate(samples):
                if pack := packer.add(number, len(sample.token_ids), len(sample.tiles)):
                    yield collate([samples[each] for each in pack.items])
            while pack := packer.take():
                yield collate([samples[each] for each in pack.items])

    def loss(self, samples: Sequence[ModelInputs]) -> float:
        with torch.no_grad():
            return NextToken(reduction="token")(self.parts.model, collate(samples)).total.item()

    def run(self, samples: Sequence[ModelInputs]) -> dict[str, float]:
        objective = NextToken(reduction="token")
        blocks = self.parts.model.config.vision.num_layers
        optimizer = make_optimizer(self.learned, OptimConfig(lr=LR, weight_decay=WEIGHT_DECAY), num_blocks=blocks)
        computed = 0

        def counted() -> Iterator[Batch]:
            nonlocal computed
            for batch in self.batches(samples):
                computed += len(batch.token_ids)
                yield batch

        started = time.perf_counter(), time.process_time()
        state = fit(
            model=self.parts.model,
            objective=objective,
            batches=counted(),
            optimizer=optimizer,
            schedule=lambda step: 1.0,
            state=FitState(),
            observe=lambda state, loss, norm: None,
            save=lambda state: None,
            learn=Step(weigh=objective.weight, autocast=autocast(self.products, torch.device("cpu"))),
            accumulate=BATCH if self.way == "one by one" else 1,
        )
        return spent(*started) | {"steps": state.step, "computed_tokens": computed}

    def products_s(self, samples: Sequence[ModelInputs]) -> float:
        """What the products of `run` take at the rate of a large one."""
        with FlopCounterMode(display=False) as counter:
            self.run(samples)
        return counter.get_total_flops() / matmul_rate(torch.device("cpu"), self.products, seconds=2)


class Peer:
    """transformers' Trainer over batches padded to their longest; samples come in the order of its sampler."""

    def __init__(self, folder: Path, products: torch.dtype) -> None:
        from transformers import InternVLForConditionalGeneration

        self.products = products
        self.model: Any = InternVLForConditionalGeneration.from_pretrained(folder, dtype=torch.float32)
        spec = load_processor(folder).spec
        self.mean, self.std = (torch.tensor(values).view(3, 1, 1) for values in (spec.mean, spec.std))
        self.computed = 0

    def collate(self, samples: Sequence[dict[str, ModelInputs]]) -> dict[str, Tensor]:
        rows = [sample["inputs"] for sample in samples]
        lengths = torch.tensor([[len(row.token_ids)] for row in rows])
        ids, trained = (torch.stack([getattr(row, name) for row in padded(rows)]) for name in ("token_ids", "trained"))
        self.computed += ids.numel()
        found = {
            "input_ids": ids,
            "attention_mask": (torch.arange(ids.shape[1]) < lengths).long(),
            "labels": torch.where(trained, ids, IGNORE),
        }
        tiles = torch.cat([row.tiles for row in rows])
        return found | {"pixel_values": (tiles.float() / 255 - self.mean) / self.std} if len(tiles) else found

    def loss(self, samples: Sequence[ModelInputs]) -> float:
        with torch.no_grad():
            return self.model(**self.collate([{"inputs": sample} for sample in samples])).loss.item()

    def run(self, samples: Sequence[ModelInputs]) -> dict[str, float]:
        from transformers import Trainer, TrainerCallback, TrainingArguments

        clock: dict[str, Any] = {}

        class Clock(TrainerCallback):
            """Leaves out what Trainer sets up before the first step."""

            def on_train_begin(self, *_: Any, **__: Any) -> None:
                clock["started"] = time.perf_counter(), time.process_time()

            def on_train_end(self, *_: Any, **__: Any) -> None:
                clock["spent"] = spent(*clock["started"])

        settings = TrainingArguments(
            output_dir=tempfile.gettempdir(),  # nothing is saved
            per_device_train_batch_size=BATCH,
            num_train_epochs=1,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=WEIGHT_DECAY,
            train_sampling_strategy="sequential",
            remove_unused_columns=False,
            dataloader_pin_memory=False,
            use_cpu=True,
            bf16=self.products == torch.bfloat16,
            save_strategy="no",
            logging_strategy="no",
            report_to="none",
            disable_tqdm=True,
        )
        self.computed = 0
        data: Any = [{"inputs": sample} for sample in samples]
        trainer = Trainer(
            model=self.model, args=settings, train_dataset=data, data_collator=self.collate, callbacks=[Clock()]
        )
        trainer.train()
        return clock["spent"] | {"steps": trainer.state.global_step, "computed_tokens": self.computed}


def spent(wall_s: float, cpu_s: float) -> dict[str, float]:
    return {"wall_s": time.perf_counter() - wall_s, "cpu_s": time.process_time() - cpu_s}


def resident_mib(name: str) -> float:
    return int(Path("/proc/self/status").read_text().split(f"{name}:")[1].split()[0]) / 1024


def main() -> None:
    """Orders are lines of JSON: the plan first (lengths, samples), then `loss`, `run`, `products` over samples."""
    way, folder, max_tokens, products = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3]), getattr(torch, sys.argv[4])
    torch.set_num_threads(1)
    if way == "Trainer":  # imports are not the question
        import transformers.models.internvl.modeling_internvl
        import transformers.trainer  # noqa: F401
    plan = json.loads(sys.stdin.readline())
    rows = Rows(load_processor(folder), plan["lengths"])
    for number in plan["samples"]:
        rows[number]
    Path("/proc/self/clear_refs").write_text("5")
    before_mib = resident_mib("VmRSS")
    side = Peer(folder, products) if way == "Trainer" else Ours(way, folder, max_tokens, products)
    print("@{}", flush=True)
    for line in sys.stdin:
        order = json.loads(line)
        samples = [rows[number] for number in order["samples"]]
        if order["do"] == "loss":
            found = {"loss": side.loss(samples)}
        elif order["do"] == "products":
            assert isinstance(side, Ours)
            found = {"s": side.products_s(samples)}
        else:
            found = side.run(samples)
            found |= {
                "samples": len(samples),
                "tokens": sum(len(sample.token_ids) for sample in samples),
                "counted_tokens": sum(int(s.trained[1:].sum()) + s.num_visual_tokens for s in samples),
                "peak_mib": resident_mib("VmHWM") - before_mib,
                "process_peak_mib": resident_mib("VmHWM"),
            }
        print("@" + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
