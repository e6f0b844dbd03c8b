"""Batches are a function of the settings; a run that is killed goes on with the bits that would have come."""

import dataclasses
import hashlib
import itertools
import json
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

from cascadevl.checkpoints.tiny import tiny_parts
from cascadevl.core.errors import ConfigError, DataError, MissingExtra
from cascadevl.core.messages import Conversation, Text, Turn
from cascadevl.data.batch import IGNORE, Batch
from cascadevl.data.loader import PUBLISHED_DELTAS, Loader
from cascadevl.data.sources import Dataset
from cascadevl.preprocessing.processor import Processor
from tests.data.talks import Talks, answered, lines, mixed, photo

PROCESSOR = tiny_parts("qwen3").processor


def _loader(*datasets: Dataset, **settings: Any) -> Loader:
    datasets = datasets or (
        Dataset(source=mixed("a", 40), augment=True),
        Dataset(source=mixed("b", 17), repeat=2.0, max_tiles=2),
    )
    settings = {"max_tokens": 900, "max_tiles": 14, "max_open": 4, **settings}
    return Loader(datasets=datasets, processor=PROCESSOR, **settings)


def _digest(batch: Batch) -> str:
    values = [getattr(batch, field.name) for field in dataclasses.fields(batch)]
    found = [v.numpy().tobytes() if torch.is_tensor(v) else repr(v).encode() for v in values]
    return hashlib.sha256(b"|".join(found)).hexdigest()


def _first(loader: Loader, count: int) -> list[str]:
    return [_digest(batch) for batch in itertools.islice(loader, count)]


def test_an_epoch_gives_every_row_as_often_as_asked_within_the_budget() -> None:
    batches = list(_loader(epochs=1.0))
    ids = sorted(id for batch in batches for id in batch.ids)
    assert ids == sorted([f"a:{n + 1}" for n in range(40)] + [f"b:{n + 1}" for n in range(17)] * 2)
    for batch in batches:
        assert len(batch.token_ids) == sum(batch.lengths) <= 900 and len(batch.tiles) <= 14
        assert len(batch.ids) == len(batch.lengths)
        for targets, positions in zip(
            batch.targets.split(batch.lengths), batch.positions.split(batch.lengths), strict=True
        ):
            assert bool((targets != IGNORE).any())
            assert positions.tolist() == list(range(len(targets)))


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize("ahead", [1, 50])
def test_how_far_threads_run_ahead_changes_nothing(workers: int, ahead: int) -> None:
    assert _first(_loader(workers=workers, ahead=ahead), 6) == _first(_loader(), 6)


def test_another_seed_gives_other_batches() -> None:
    assert _first(_loader(seed=1), 1) != _first(_loader(), 1)


@pytest.mark.parametrize("stop", [1, 2, 7])
@pytest.mark.parametrize("settings", [{}, {"epochs": 1.0}, {"delta": PUBLISHED_DELTAS, "rank": 1, "world": 2}])
def test_a_restored_loader_goes_on_bit_for_bit(stop: int, settings: dict[str, Any]) -> None:
    whole = _first(_loader(**settings), 12)
    first = _loader(**settings)
    assert _first(first, stop) == whole[:stop]
    state = json.loads(json.dumps(first.state()))
    second = _loader(**settings)
    second.restore(state)
    assert second.state() == first.state()
    assert _first(second, 12 - stop) == whole[stop:]


def test_restoring_reads_only_what_the_next_batches_need() -> None:
    """However many samples lie in open packs: a pack is read again when it is given out."""
    asked: list[int] = []

    def talk(row: int) -> Conversation:
        asked.append(row)
        return answered(f"{row}", "yes " * (1 + row % 50))

    def loader() -> Loader:
        return _loader(Dataset(source=Talks("t", 500, talk)), max_open=30, ahead=1, workers=1)

    first = loader()
    given = list(itertools.islice(first, 1))
    before = len(asked)
    second = loader()
    second.restore(first.state())
    asked.clear()
    (batch,) = itertools.islice(second, 1)
    assert before > 10 * len(given[0].ids), "much was read before the first pack was given out"
    assert len(asked) <= len(batch.ids) + 12
    assert _digest(batch) == _first(loader(), 2)[1]


def test_the_state_is_that_of_what_was_given_out_and_iterating_again_goes_on() -> None:
    loader, whole = _loader(ahead=50), _first(_loader(), 5)
    assert [*_first(loader, 2), *_first(loader, 3)] == whole
    held = sum(len(pack) for pack in loader.state()["open"])
    given = sum(len(batch.ids) for batch in itertools.islice(_loader(), 5))
    assert loader.state()["num_read"] == given + held


KILLED = """
import json, sys
from pathlib import Path
from cascadevl.core.files import write_json
from tests.data.test_loader import _digest, _loader
out, loader, number = Path(sys.argv[1]), _loader(), 0
if (out / "state.json").exists():
    saved = json.loads((out / "state.json").read_text())
    number = saved["number"]
    loader.restore(saved["loader"])
for number, batch in enumerate(loader, number + 1):
    with open(out / "given", "a") as file:
        file.write(_digest(batch) + "\\n")
    if number % 3 == 0:
        write_json(out / "state.json", {"number": number, "loader": loader.state()})
"""


def test_a_killed_process_resumes_with_the_bits_that_would_have_come(tmp_path: Path) -> None:
    """kill -9 at moments that nobody chose, twice; what was given out behind the last save comes once more."""
    root, whole = Path(__file__).parents[2], _first(_loader(), 30)
    start = seen = 0
    for _ in range(2):
        process = subprocess.Popen([sys.executable, "-c", KILLED, str(tmp_path)], cwd=root)
        while len(lines(tmp_path / "given")) < seen + 4:
            assert process.poll() is None
            time.sleep(0.005)
        os.kill(process.pid, signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        given = lines(tmp_path / "given")[seen:]
        assert given == whole[start : start + len(given)]
        seen += len(given)
        start, before = json.loads((tmp_path / "state.json").read_text())["number"], start
        assert start > before


def test_world_sizes_read_the_same_rows_together() -> None:
    def rows(**settings: Any) -> list[str]:
        return [id for batch in _loader(epochs=1.0, **settings) for id in batch.ids]

    together = sorted(rows())
    for world in (2, 3):
        assert sorted(itertools.chain(*(rows(rank=rank, world=world) for rank in range(world)))) == together


def test_another_plan_is_refused_by_name() -> None:
    state = _loader().state()
    for change in ({"seed": 1}, {"max_tokens": 901}, {"world": 2}, {"delta": (0.5,)}):
        with pytest.raises(ConfigError, match=rf"interrupted with {next(iter(change))} = "):
            _loader(**change).restore(state)
    with pytest.raises(ConfigError, match="interrupted with datasets = "):
        _loader(Dataset(source=mixed("a", 41))).restore(state)


def test_data_that_changed_in_between_are_refused() -> None:
    loader = _loader(Dataset(source=Talks("a", 30, lambda row: answered("q", "yes " * 40))), max_open=2)
    list(itertools.islice(loader, 1))
    other = _loader(Dataset(source=Talks("a", 30, lambda row: answered("q", "no"))), max_open=2)
    other.restore(loader.state())
    with pytest.raises(DataError, match=r"a:\d+: it had \d+ tokens and 0 tiles before .* is another now"):
        list(itertools.islice(other, 1))


# Bad samples.


def _some_bad(row: int) -> Conversation | None:
    kinds = {
        3: None,
        5: answered("q", "a", [b"no picture"]),
        8: answered("q", "long " * 300),
        9: Conversation((Turn("user", (Text("nobody answers"),)),)),
        11: answered("q", "a", [photo(1, 60, 900), photo(2, 60, 900), photo(3, 60, 900)]),
    }
    return kinds.get(row, answered(f"q{row}", "yes"))


BAD = {"t:4", "t:6", "t:9", "t:10", "t:12"}


def test_bad_samples_are_recorded_with_their_reasons_and_nothing_takes_their_place(tmp_path: Path) -> None:
    record = tmp_path / "run" / "bad.jsonl"
    loader = _loader(Dataset(source=Talks("t", 30, _some_bad)), epochs=1.0, bad_samples=record, max_bad_share=0.2)
    ids = [id for batch in loader for id in batch.ids]
    assert sorted(ids) == sorted({f"t:{n + 1}" for n in range(30)} - BAD)
    reasons = {row["id"]: row["reason"] for row in map(json.loads, lines(record))}
    assert reasons.keys() == BAD
    assert reasons["t:4"] == "t:4: is not JSON. Mend it."
    assert "which is no picture" in reasons["t:6"]
    assert "tokens and 0 tiles; a pack holds 900 and 14" in reasons["t:9"]
    assert "no token of it is learned" in reasons["t:10"]
    assert "21 tiles; a pack holds 900 and 14" in reasons["t:12"]


def test_too_many_stop_the_run_and_the_commonest_reasons_are_named(tmp_path: Path) -> None:
    def talk(row: int) -> Conversation | None:
        return None if row % 4 == 0 else answered("q", "a", [f"{row}.png".encode()] if row % 9 == 1 else ())

    loader = _loader(Dataset(source=Talks("t", 400, talk)), bad_samples=tmp_path / "bad.jsonl", max_bad_share=0.25)
    with pytest.raises(
        DataError, match=r"of \d+ samples are bad, .* = 0.25 allows: not JSON \(\d+\); .*no picture.*bad.jsonl"
    ):
        list(loader)
    tolerant = _loader(Dataset(source=Talks("t", 40, talk)), epochs=1.0, max_bad_share=0.5)
    assert len([id for batch in tolerant for id in batch.ids]) == 26


def test_a_resumed_run_records_a_bad_sample_once(tmp_path: Path) -> None:
    def loader(name: str) -> Loader:
        data = Dataset(source=Talks("t", 120, lambda row: None if row % 10 == 0 else answered(f"{row}", "yes " * 9)))
        return _loader(data, bad_samples=tmp_path / name, max_bad_share=0.3, max_tokens=300, epochs=1.0, ahead=4)

    list(loader("whole"))
    assert len(lines(tmp_path / "whole")) == 12
    first = loader("resumed")
    given = iter(first)
    for _ in range(5):
        next(given)
    state = first.state()
    list(given)  # reads on behind the last save, and is killed
    second = loader("resumed")
    second.restore(state)
    list(second)
    assert (tmp_path / "resumed").read_text() == (tmp_path / "whole").read_text()


def test_what_is_nobodys_data_stops_the_run_as_it_is() -> None:
    def talk(row: int) -> Conversation:
        raise MissingExtra("needs the extra video")

    with pytest.raises(MissingExtra) as caught:
        list(_loader(Dataset(source=Talks("t", 1, talk)), max_bad_share=0.9))
    assert caught.value.__notes__ == ["The sample was t:1."]


@pytest.mark.parametrize("form", ["turns", "document"])
def test_whole_turns_and_pictures_go_when_asked_to_shorten(form: str) -> None:
    def talk(row: int) -> Conversation:
        pairs = [turn for n in range(4) for turn in answered(f"q{n}", "yes " * 50, [photo(n)] * (n % 2)).turns]
        if form == "turns":
            return Conversation(tuple(pairs))
        return Conversation((Turn("assistant", tuple(part for turn in pairs for part in turn.parts)),))

    def loader(**settings: Any) -> Loader:
        return _loader(Dataset(source=Talks("t", 1, talk)), max_tokens=760, epochs=1.0, max_bad_share=0.5, **settings)

    assert list(loader()) == []
    (batch,) = loader(too_long="shorten")
    (whole,) = _loader(Dataset(source=Talks("t", 1, talk)), max_tokens=2000, epochs=1.0)
    assert 500 < len(batch.token_ids) <= 760
    same = len(batch.token_ids) if form == "document" else len(batch.token_ids) - 1
    assert batch.token_ids[:same].tolist() == whole.token_ids[:same].tolist(), "only the end is gone"
    context = PROCESSOR.tokenizer.id("<IMG_CONTEXT>")
    assert int((batch.token_ids == context).sum()) == 4 * len(batch.tiles)


# Positions, pictures, threads.


def test_each_picture_has_a_delta_of_its_own_and_the_same_one_again() -> None:
    data = Dataset(source=mixed("a", 40))
    drawn = set()
    for plain, fractional in zip(
        _loader(data, epochs=1.0), _loader(data, epochs=1.0, delta=PUBLISHED_DELTAS), strict=True
    ):
        assert plain.token_ids.tolist() == fractional.token_ids.tolist()
        visual = plain.token_ids == PROCESSOR.tokenizer.id("<IMG_CONTEXT>")
        steps = fractional.positions.diff()[visual[1:]]
        drawn |= set(steps.tolist())
        for positions in fractional.positions.split(fractional.lengths):
            assert positions[0] == 0 and bool((positions.diff() > 0).all())
    assert drawn == set(PUBLISHED_DELTAS)
    assert _first(_loader(data, delta=PUBLISHED_DELTAS), 3) == _first(_loader(data, delta=PUBLISHED_DELTAS), 3)
    assert _first(_loader(data, delta=(1.0,)), 3) == _first(_loader(data), 3), "δ = 1 is what it always was"


def test_only_pictures_of_sets_that_ask_for_it_are_compressed() -> None:
    plain, compressed = (
        list(_loader(Dataset(source=mixed("a", 12), augment=augment), epochs=1.0)) for augment in (False, True)
    )
    for one, other in zip(plain, compressed, strict=True):
        assert one.token_ids.tolist() == other.token_ids.tolist()
        apart = (one.tiles.float() - other.tiles.float()).abs().mean((1, 2, 3))
        assert bool((apart > 0.5).all()), "noise does not survive a JPEG"


def test_leaving_early_leaves_no_thread_behind() -> None:
    before = threading.active_count()
    batches = iter(_loader(workers=3, ahead=50))
    next(batches)
    assert threading.active_count() > before
    batches.close()  # type: ignore[attr-defined]
    assert threading.active_count() == before


def test_a_program_ends_though_its_loader_was_not_finished() -> None:
    code = (
        "from tests.data.test_loader import _loader\nbatches = iter(_loader(ahead=50))\nnext(batches)\nprint('given')"
    )
    root = str(Path(__file__).parents[2])
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True, timeout=300)
    assert (done.returncode, done.stdout, done.stderr) == (0, "given\n", "")


def test_rows_are_asked_for_one_at_a_time() -> None:
    """Sources read files and need not know of threads."""
    inside = threading.Lock()

    def talk(row: int) -> Conversation:
        assert inside.acquire(blocking=False), "two threads in one source"
        time.sleep(0.001)
        inside.release()
        return answered(f"{row}", "yes")

    assert sum(len(batch.ids) for batch in _loader(Dataset(source=Talks("t", 60, talk)), workers=4, epochs=1.0)) == 60


def test_the_packs_budget_is_the_only_bound_on_length() -> None:
    bounded = Processor(PROCESSOR.spec, PROCESSOR.tokenizer, max_tokens=20)
    loader = Loader(
        datasets=[Dataset(source=mixed("a", 4))], processor=bounded, max_tokens=900, max_tiles=14, epochs=1.0
    )
    assert sum(len(batch.ids) for batch in loader) == 4


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"rank": 2, "world": 2}, "Rank 2 of 2"),
        ({"max_bad_share": 1.0}, "max_bad_share is 1.0"),
        ({"delta": (0.5, 0.0)}, "0 < δ ≤ 1"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"workers": 0}, "workers is 0"),
    ],
)
def test_settings_that_cannot_be_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        _loader(**settings)


def test_pictures_of_a_sample_share_the_tile_limit_where_asked() -> None:
    """A picture twice as wide as high is two tiles and a thumbnail, or one tile alone."""
    wide = photo(0, 120, 60)
    talks = Talks("wide", 3, lambda row: answered("What?", "That.", [wide] * (row + 1)))

    def tiles(**settings: Any) -> dict[str, int]:
        (batch,) = _loader(Dataset(source=talks, max_tiles=2), epochs=1.0, max_tiles=99, max_open=1, **settings)
        counts = [
            sum(part == PROCESSOR.tokenizer.id(PROCESSOR.spec.image_context))
            for part in batch.token_ids.split(batch.lengths)
        ]
        per_tile = PROCESSOR.spec.visual_tokens_per_tile
        return {id: int(count) // per_tile for id, count in zip(batch.ids, counts, strict=True)}

    assert tiles() == {"wide:1": 3, "wide:2": 6, "wide:3": 9}
    assert tiles(share_tiles=True) == {"wide:1": 3, "wide:2": 2, "wide:3": 3}
