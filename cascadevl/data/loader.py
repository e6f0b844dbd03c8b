"""Loader: data sets become batches without end, and every position is in its state.

1. `mixture`   a position of the stream -> a data set and a row;
2. `_read`     the row -> a conversation -> token ids, tiles and a mask, on threads that run ahead;
3. `_record`   a bad sample is written down with its reason; no other takes its place;
4. `packing`   samples find a pack with room for their tokens and tiles;
5. `collate`   a full pack becomes a batch.

The state speaks of what was given out, not of what was read ahead: after `restore` the next batch is bit for bit
the one that would have come. Open packs are kept as positions and sizes, and read again only when they are full.
"""

import dataclasses
import json
import random
import re
import threading
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from cascadevl.core.errors import ConfigError, DataError, MediaError, MessageError
from cascadevl.core.messages import Conversation
from cascadevl.core.shapes import num_tiles
from cascadevl.data.augment import random_jpeg
from cascadevl.data.batch import Batch, collate, fractional_positions
from cascadevl.data.mixture import Mixture
from cascadevl.data.packing import Pack, Packer, shortened
from cascadevl.data.sources import Dataset
from cascadevl.preprocessing.processor import ModelInputs, Processor

PUBLISHED_DELTAS = tuple(2.0**-n for n in range(9))
"""Of V2PE: 1, 1/2, … 1/256 (InternVL3, arXiv 2504.10479, §2.1)."""


class Sample(NamedTuple):
    """A row as the model reads it."""

    id: str
    inputs: ModelInputs
    positions: Tensor


class Bad(NamedTuple):
    """A row that cannot be learned from."""

    id: str
    reason: str
    kind: str
    """The reason without its particulars: what is counted."""


class Held(NamedTuple):
    """A sample in an open pack; None where it was restored and is not read again yet."""

    position: int
    num_tokens: int
    num_tiles: int
    sample: Sample | None


@dataclass(kw_only=True, slots=True)
class Loader:
    """An iterable of `Batch`, endless unless `epochs` is set; iterating again goes on where it stood.

    Ranks share the stream: rank r of w reads the positions r, r + w, r + 2w, … With `epochs`, ranks may end a
    pack apart.
    """

    datasets: Sequence[Dataset]
    processor: Processor
    max_tokens: int
    max_tiles: int
    """Budget of a pack."""
    seed: int = 0
    epochs: float | None = None
    rank: int = 0
    world: int = 1
    delta: tuple[float, ...] = ()
    """V2PE: a δ is drawn for every picture from these, such as `PUBLISHED_DELTAS`; empty is off."""
    bad_samples: Path | None = None
    """Where refused samples are written with their reasons, one JSON object a line."""
    max_bad_share: float = 0.01
    """More bad samples than this stop the run; the share is taken of 100 samples at least."""
    too_long: Literal["refuse", "shorten"] = "refuse"
    """What becomes of samples beyond a pack's budget; `shorten` drops the last turns, or parts of a document."""
    share_tiles: bool = False
    """Divide the tile limit by the number of pictures in a sample, as the released training code does."""
    max_open: int = 8
    """Packs that wait for samples which fit: 8 are 99.7 % full, 20 are 99.8 % (benchmarks/packing.py, 4,096 tokens)."""
    workers: int = 2
    """Threads that read ahead."""
    ahead: int = 64
    """Samples that are read ahead."""
    _mixture: Mixture = field(init=False, repr=False)
    _packer: Packer[Held] = field(init=False, repr=False)
    _context_id: int = field(init=False, repr=False)
    _num_read: int = field(default=0, init=False, repr=False)
    _kinds: Counter[str] = field(default_factory=Counter, init=False, repr=False)
    _record_bytes: int = field(default=0, init=False, repr=False)
    _one_row: threading.Lock = field(default_factory=threading.Lock, init=False, repr=False)

    def __post_init__(self) -> None:
        if not 0 <= self.rank < self.world:
            raise ConfigError(f"Rank {self.rank} of {self.world}: expected 0 ≤ rank < world.")
        if not 0 <= self.max_bad_share < 1:
            raise ConfigError(f"max_bad_share is {self.max_bad_share}: expected 0 ≤ share < 1.")
        if any(not 0 < delta <= 1 for delta in self.delta):
            raise ConfigError(f"delta is {self.delta}: V2PE needs 0 < δ ≤ 1.")
        for name in ("max_tokens", "max_tiles", "max_open", "workers", "ahead"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}: expected at least 1.")
        if self.world > 1 and self.bad_samples is not None:  # each rank writes a file of its own
            self.bad_samples = self.bad_samples.with_suffix(f".rank{self.rank}{self.bad_samples.suffix}")
        self._mixture = Mixture(self.datasets, self.seed)
        self._packer = Packer(self.max_tokens, self.max_tiles, self.max_open)
        self._context_id = self.processor.tokenizer.id(self.processor.spec.image_context)
        # How long a sample may be is a matter of the pack, and said in its words.
        self.processor = Processor(self.processor.spec, self.processor.tokenizer, limits=self.processor.limits)

    def __iter__(self) -> Iterator[Batch]:
        self._cut_record()
        pool = ThreadPoolExecutor(self.workers, thread_name_prefix="loader")
        coming: deque[tuple[int, Future[Sample | Bad]]] = deque()
        positions = self._positions()
        try:
            while True:
                while len(coming) < self.ahead and (position := next(positions, None)) is not None:
                    coming.append((position, pool.submit(self._read, position)))
                if not coming:
                    break
                position, future = coming.popleft()
                found = future.result()
                self._num_read += 1
                if isinstance(found, Bad):
                    self._record(found, position)
                    continue
                sizes = len(found.inputs.token_ids), len(found.inputs.tiles)
                if pack := self._packer.add(Held(position, *sizes, found), *sizes):
                    yield self._batch(pack, pool)
            while pack := self._packer.take():
                yield self._batch(pack, pool)
        finally:
            pool.shutdown(cancel_futures=True)

    def _positions(self) -> Iterator[int]:
        """Those of this rank that are still to be read."""
        end = None if self.epochs is None else int(self.epochs * len(self._mixture))
        position = self.rank + self._num_read * self.world
        while end is None or position < end:
            yield position
            position += self.world

    def _batch(self, pack: Pack[Held], pool: ThreadPoolExecutor) -> Batch:
        again = {held.position: pool.submit(self._read, held.position) for held in pack.items if held.sample is None}
        samples = []
        for held in pack.items:
            sample = held.sample or again[held.position].result()
            if isinstance(sample, Bad) or (len(sample.inputs.token_ids), len(sample.inputs.tiles)) != held[1:3]:
                number, row = self._mixture(held.position)
                raise DataError(
                    f"{self.datasets[number].source.name}:{row + 1}",
                    f"it had {held.num_tokens} tokens and {held.num_tiles} tiles before the run was interrupted and "
                    f"is another now{f' ({sample.reason})' if isinstance(sample, Bad) else ''}.",
                    "Put the data back as they were, or start a new run from the weights.",
                    "changed data",
                )
            samples.append(sample)
        ids, inputs, positions = zip(*samples, strict=True)
        return collate(inputs, positions=positions, ids=ids)

    # One sample; runs on the threads and depends on nothing but its position.

    def _read(self, position: int) -> Sample | Bad:
        number, row = self._mixture(position)
        dataset = self.datasets[number]
        id = f"{dataset.source.name}:{row + 1}"
        try:
            with self._one_row:  # rows are cheap, and sources need not know of threads; pictures are opened outside
                example = dataset.source[row]
            id = example.id
            limit = self._limit(example.conversation, dataset.max_tiles)
            inputs = self._inputs(example.conversation, limit, position, id)
        except DataError as error:
            return Bad(error.where, str(error), error.kind)
        except (MessageError, MediaError) as error:
            return Bad(id, str(error), _kind(str(error)))
        except Exception as error:  # not the data's fault: the run stops, and one knows where
            error.add_note(f"The sample was {id}.")
            raise
        if dataset.augment:
            inputs = self._augmented(inputs, position)
        return Sample(id, inputs, self._rotary(inputs, position))

    def _limit(self, conversation: Conversation, max_tiles: int | None) -> int | None:
        """`dynamic_preprocess` of internvl_chat_finetune.py gets max(1, max_dynamic_patch // num_image)."""
        num_images = len(conversation.images)
        if not self.share_tiles or num_images < 2:
            return max_tiles
        return max(1, (max_tiles or self.processor.spec.max_tiles) // num_images)

    def _inputs(self, conversation: Conversation, max_tiles: int | None, position: int, id: str) -> ModelInputs:
        """Raises DataError for what does not fit or teaches nothing."""
        seed = random.Random(f"{self.seed}/{position}/frames").getrandbits(31)
        inputs = self.processor(conversation, max_tiles=max_tiles, seed=seed)
        while not self._packer.fits(len(inputs.token_ids), len(inputs.tiles)):
            shorter = shortened(conversation) if self.too_long == "shorten" else None
            if shorter is None:
                raise DataError(
                    id,
                    f"it has {len(inputs.token_ids)} tokens and {len(inputs.tiles)} tiles; "
                    f"a pack holds {self.max_tokens} and {self.max_tiles}.",
                    "Raise max_tokens or max_tiles, lower the tile limit of its pictures, or set too_long to shorten.",
                    "too long",
                )
            conversation = shorter
            inputs = self.processor(conversation, max_tiles=max_tiles, seed=seed)
        if not bool(inputs.trained[1:].any()):
            raise DataError(
                id, "no token of it is learned.", "It needs an answer of the assistant.", "nothing to learn"
            )
        return inputs

    def _augmented(self, inputs: ModelInputs, position: int) -> ModelInputs:
        counts = [num_tiles(grid, self.processor.spec.thumbnail) for grid in inputs.grids]
        still_S = [not frame for frame, count in zip(inputs.frames, counts, strict=True) for _ in range(count)]
        tiles = random_jpeg(inputs.tiles, still_S, f"{self.seed}/{position}/jpeg")
        return dataclasses.replace(inputs, tiles=tiles)

    def _rotary(self, inputs: ModelInputs, position: int) -> Tensor:
        if not self.delta:
            return torch.arange(len(inputs.token_ids), dtype=torch.float32)
        draw = random.Random(f"{self.seed}/{position}/delta")
        deltas = [draw.choice(self.delta) for _ in inputs.grids]
        return fractional_positions(inputs.token_ids == self._context_id, deltas)

    # Bad samples.

    def _record(self, bad: Bad, position: int) -> None:
        self._kinds[bad.kind] += 1
        if self.bad_samples is not None:
            line = json.dumps({"id": bad.id, "reason": bad.reason, "position": position}, ensure_ascii=False) + "\n"
            self.bad_samples.parent.mkdir(parents=True, exist_ok=True)
            with open(self.bad_samples, "ab") as file:
                file.write(line.encode())
                self._record_bytes = file.tell()
        num_bad = self._kinds.total()
        if num_bad <= self.max_bad_share * max(self._num_read, 100):
            return
        commonest = "; ".join(f"{kind} ({count})" for kind, count in self._kinds.most_common(3))
        where = f"All are in {self.bad_samples}." if self.bad_samples else f"The last: {bad.reason}"
        raise DataError(
            "The data",
            f"{num_bad} of {self._num_read} samples are bad, more than max_bad_share = {self.max_bad_share:g} allows: "
            f"{commonest}. {where}",
            "Run `cascadevl data check` on them, or raise max_bad_share.",
            "too many bad samples",
        )

    def _cut_record(self) -> None:
        """Take off what belongs to samples that will be read once more, or to an earlier run."""
        if self.bad_samples is not None and self.bad_samples.is_file():
            with open(self.bad_samples, "r+b") as file:
                file.truncate(min(self._record_bytes, self.bad_samples.stat().st_size))

    # Its position.

    def state(self) -> dict[str, Any]:
        """JSON-ready; what `restore` needs to go on behind the last batch that was given out."""
        return {
            "plan": self._plan(),
            "num_read": self._num_read,
            "open": [[list(held[:3]) for held in pack.items] for pack in self._packer.packs],
            "bad": dict(self._kinds),
            "record_bytes": self._record_bytes,
        }

    def restore(self, state: dict[str, Any]) -> None:
        """Go on where `state` was taken; call it before iterating. Another plan is refused: nothing would be equal."""
        for name, value in self._plan().items():
            if state["plan"][name] != value:
                raise ConfigError(
                    f"The run was interrupted with {name} = {state['plan'][name]!r:.300} and would go on with "
                    f"{value!r:.300}. Set it as it was, or start a new run from the weights."
                )
        self._num_read, self._record_bytes = state["num_read"], state["record_bytes"]
        self._kinds = Counter(state["bad"])
        self._packer.packs = [_reopened(items) for items in state["open"]]

    def _plan(self) -> dict[str, Any]:
        """Everything that the stream of batches depends on; as JSON gives it back."""
        names = ("seed", "rank", "world", "max_tokens", "max_tiles", "max_open", "too_long", "share_tiles")
        return {
            **{name: getattr(self, name) for name in names},
            "delta": list(self.delta),
            "spec": self.processor.spec.hash,
            "datasets": [
                [each.source.name, len(each.source), each.repeat, each.weight, each.max_tiles, each.augment]
                for each in self.datasets
            ],
        }


def _reopened(items: list[list[int]]) -> Pack[Held]:
    held = [Held(position, tokens, tiles, None) for position, tokens, tiles in items]
    return Pack(held, sum(each.num_tokens for each in held), sum(each.num_tiles for each in held))


def _kind(reason: str) -> str:
    """A reason without its names and numbers."""
    return re.sub(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*", "…", reason)[:100]
