"""Worker processes: the same tiles as here, and nothing that happens to one of them harms anybody else."""

import io
import os
import random
import signal
import socket
import threading
import time
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
from PIL import Image as Pillow

from cascadevl.core.errors import MediaError, MessageError
from cascadevl.core.messages import Image, Video
from cascadevl.engine.config import EngineConfig
from cascadevl.preprocessing.image import MediaLimits
from cascadevl.preprocessing.spec_file import Spec
from cascadevl.preprocessing.tiling import Tiling
from cascadevl.serving.app import Service
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.decode import LENGTH, Task, cut_up
from cascadevl.serving.refusals import Refused
from cascadevl.serving.workers import Workers, _Lost, _Worker
from tests.serving.conftest import eventually, running, url_of

PLENTY_S = 60.0


@pytest.fixture(scope="module")
def workers():
    workers = Workers(1, memory_bytes=2**29)
    yield workers
    workers.close()


def task(medium, room=50, resize: Literal["pil", "torch_uint8"] = "pil", **limits):
    medium = medium if isinstance(medium, Image | Video) else Image(medium)
    tiling = Tiling(tile_px=32, resize=resize)
    return Task(medium=medium, spec=Spec(), tiling=tiling, limits=MediaLimits(**limits), room=room)


def png(width, height, mode="RGB", **options):
    Pillow.new(mode, (width, height), 1).save(file := io.BytesIO(), "PNG", **options)
    return file.getvalue()


def gif(*colors, size=(64, 48), **options):
    frames = [Pillow.new("RGB", size, color) for color in colors]
    frames[0].save(file := io.BytesIO(), "GIF", save_all=True, append_images=frames[1:], duration=500, **options)
    return file.getvalue()


def in_thread(work):
    """A list that will hold what came out of it, an error included."""
    results = []

    def run():
        try:
            results.append(work())
        except Exception as error:
            results.append(error)

    threading.Thread(target=run, daemon=True).start()
    return results


def hanging(workers, medium, seconds=PLENTY_S):
    """A task whose worker stands still: its process, and the list that will hold the result."""
    workers.start()
    (pid,) = workers.pids
    os.kill(pid, signal.SIGSTOP)
    return pid, in_thread(lambda: workers(task(medium), seconds))


def test_tiles_are_those_that_are_cut_here(workers, tmp_path, picture):
    picture.save(tmp_path / "ü.jpg", exif=exif(6))
    film = Video(gif("red", "green", "blue", "white"), end_s=1.5, num_frames=2)
    frames = Video([png(30, 20), url_of(picture), tmp_path / "ü.jpg"])
    for medium in (url_of(picture), png(70, 300, "L"), tmp_path / "ü.jpg", film, frames):
        there, here = workers(task(medium), PLENTY_S), cut_up(task(medium))
        assert np.array_equal(there.tiles_SCYX, here.tiles_SCYX)
        assert (there.sizes, there.grids, there.is_video) == (here.sizes, here.grids, here.is_video)
        assert np.array_equal(np.concatenate(list(there.tiles())), here.tiles_SCYX)


def exif(orientation):
    data = Pillow.Exif()
    data[0x0112] = orientation
    return data


@pytest.mark.parametrize("resize", ["pil", "torch_uint8"])
def test_a_worker_loads_torch_before_the_first_picture_or_never(resize):
    workers = Workers(1, memory_bytes=2**29, resize=resize)
    try:
        workers.start()
        (pid,) = workers.pids
        for _ in range(2):
            assert ("/libtorch" in Path(f"/proc/{pid}/maps").read_text()) == (resize == "torch_uint8")
            there, here = (cut(task(png(70, 300), resize=resize)) for cut in (lambda t: workers(t, PLENTY_S), cut_up))
            assert np.array_equal(there.tiles_SCYX, here.tiles_SCYX)
        assert workers.pids == [pid]
    finally:
        workers.close()


@pytest.mark.parametrize(
    ("medium", "words"),
    [
        (b"", "empty"),
        (b"<svg xmlns='http://www.w3.org/2000/svg'/>", "which is no picture"),
        (png(100, 100)[:-60], "cannot be decoded"),
        ("data:image/png;base64,AAA", "not valid base64"),
        (Path("/nowhere/x.png"), "does not exist"),
    ],
)
def test_what_is_wrong_with_a_picture_is_told_as_it_is_here(workers, medium, words):
    with pytest.raises(MediaError, match=words) as there:
        workers(task(medium), PLENTY_S)
    with pytest.raises(MediaError) as here:
        cut_up(task(medium))
    assert str(there.value) == str(here.value)
    assert workers.num_lost == 0 and len(workers.pids) == 1


def test_tiles_beyond_the_room_of_the_prompt_are_never_made(workers):
    with pytest.raises(MessageError, match="13 tiles of 256 tokens; the prompt has room for 12"):
        workers(task(png(400, 300), room=12), PLENTY_S)
    assert len(workers(task(png(400, 300), room=13), PLENTY_S).tiles_SCYX) == 13


def test_what_hangs_is_killed_and_the_next_is_served(workers):
    lost = workers.num_lost
    pid, results = hanging(workers, png(40, 40), seconds=0.3)
    eventually(lambda: results)
    assert isinstance(results[0], MediaError) and "more than 0.3 s" in str(results[0])
    assert not Path(f"/proc/{pid}").exists()
    assert len(workers(task(png(40, 40)), PLENTY_S).tiles_SCYX) == 1
    assert workers.num_lost == lost + 1


def test_a_bomb_of_frames_is_ended_in_time(workers):
    """A picture of a billion pixels a second: small, valid, and decoded for minutes if one lets it."""
    bomb = gif(*[random.Random(n).choice(["red", "blue"]) for n in range(2)], size=(4000, 4000))
    bomb = bomb[:-1] + bomb[bomb.rindex(b"\x21\xf9") : -1] * 400 + b";"
    started_s = time.monotonic()
    with pytest.raises(MediaError, match=r"more than 0\.5 s"):
        workers(task(Video(bomb)), 0.5)
    assert time.monotonic() - started_s < 5


def test_a_worker_that_somebody_kills_is_replaced_and_its_task_done_again(workers):
    pid, results = hanging(workers, png(40, 40))
    time.sleep(0.1)
    assert not results
    os.kill(pid, signal.SIGKILL)
    eventually(lambda: results)
    assert len(results[0].tiles_SCYX) == 1
    assert workers.pids != [pid]


def test_a_picture_that_makes_a_decoder_crash_is_not_tried_again(workers):
    lost = workers.num_lost
    pid, results = hanging(workers, png(40, 40))
    os.kill(pid, signal.SIGSEGV)
    os.kill(pid, signal.SIGCONT)
    eventually(lambda: results)
    assert isinstance(results[0], MediaError) and "broke off (status -11)" in str(results[0])
    assert workers.num_lost == lost + 1
    assert len(workers(task(png(40, 40)), PLENTY_S).tiles_SCYX) == 1


def test_a_picture_that_takes_more_memory_than_is_allowed_fails_alone():
    workers = Workers(1, memory_bytes=100 * 2**20)
    try:
        with pytest.raises(MediaError, match=r"memory|decoded"):
            workers(task(png(10_000, 10_000, "RGBA"), max_pixels=10**9), PLENTY_S)
        assert len(workers(task(png(40, 40)), PLENTY_S).tiles_SCYX) == 1
    finally:
        workers.close()


def test_a_worker_knows_no_secrets_and_ends_with_the_server(monkeypatch):
    monkeypatch.setenv("SERVER_KEY", "secret")
    worker = _Worker(2**28)
    try:
        worker.wait_until_ready()
        assert b"secret" not in Path(f"/proc/{worker.process.pid}/environ").read_bytes()
        worker._channel.close()  # as where the server is killed
        assert worker.process.wait(10) == 0
    finally:
        worker.end()


@pytest.mark.parametrize(
    "answer",
    [
        b"[]", b"{]", b"{}", b'"error"', b'{"error": "SystemExit", "message": 1}', b'{"grids": [], "sizes": []}',
        b'{"grids": [[999, 999]], "sizes": [[1, 1]]}', b'{"grids": [[-1, -1]], "sizes": [[1, 1]]}',
        b'{"grids": [[1, 1]], "sizes": [[0, 1]]}', b'{"grids": [[1, 1]], "sizes": []}', b'{"grids": 1, "sizes": null}',
    ],
)  # fmt: skip
def test_a_worker_that_somebody_has_taken_over_is_not_believed(workers, answer):
    """Whatever it sends instead of an answer."""
    workers.start()
    worker = workers._idle.get()
    assert worker is not None
    real = worker._channel
    try:
        worker._channel, theirs = socket.socketpair()
        with theirs, worker._channel:
            theirs.sendall(LENGTH.pack(len(answer)) + answer)
            with pytest.raises(_Lost, match="nonsense"):
                worker.cut_up(task(png(8, 8)), 1.0)
    finally:
        worker._channel = real
        workers._idle.put(worker)


def test_an_answer_that_nobody_fetched_is_not_given_to_the_next(workers, monkeypatch, picture):
    """Here there is no memory for the tiles of one picture, when the worker is about to send them."""
    workers.start()
    real, failures = np.empty, [MemoryError()]
    monkeypatch.setattr(np, "empty", lambda *shape: real(*shape) if not failures else fail(failures))
    with pytest.raises(MemoryError):
        workers(task(png(300, 20)), PLENTY_S)
    assert np.array_equal(workers(task(png(40, 40)), PLENTY_S).tiles_SCYX, cut_up(task(png(40, 40))).tiles_SCYX)


def fail(failures):
    raise failures.pop()


def test_lost_decoders_are_counted_where_prometheus_sees_it(parts):
    service = Service(parts, ServingConfig(port=0, media_workers=1), EngineConfig(cache_bytes=2_000_000))
    workers = service.preparer.workers
    assert workers is not None
    with running(service) as server:

        def lost():
            text = server.client.get("../metrics", cast_to=str)
            return float(dict(line.rsplit(" ", 1) for line in text.splitlines())["cascadevl_decoders_lost_total"])

        assert lost() == 0
        workers(task(png(8, 8)), PLENTY_S)
        (pid,) = workers.pids
        os.kill(pid, signal.SIGKILL)
        workers(task(png(8, 8)), PLENTY_S)
        assert lost() == workers.num_lost == 1


def test_who_waits_for_a_decoder_is_told_when_there_is_none():
    workers = Workers(1, memory_bytes=2**28, wait_s=0.05)
    try:
        pid, results = hanging(workers, png(8, 8))
        eventually(lambda: not workers._idle.qsize())
        with pytest.raises(Refused, match="No decoder was free"):
            workers(task(png(8, 8)), PLENTY_S)
        workers.close()  # and whoever is at it is let go
        eventually(lambda: results)
        assert isinstance(results[0], Refused) and results[0].status == 503
        eventually(lambda: not workers.pids)
        assert not Path(f"/proc/{pid}").exists()
    finally:
        workers.close()
