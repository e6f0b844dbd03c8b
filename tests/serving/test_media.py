"""What is refused of pictures and videos before anybody decodes them, and what a request may take of everything."""

import base64
import dataclasses
import io
import struct
import time
import tracemalloc
import zlib
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image as Pillow

from cascadevl.core.errors import ConfigError, MediaError, MessageError
from cascadevl.core.messages import Conversation, Image, Text, Turn, Video
from cascadevl.preprocessing.processor import Processor
from cascadevl.serving.config import ServingConfig
from cascadevl.serving.decode import Cut, cut_up
from cascadevl.serving.media import Viewer
from cascadevl.serving.prepare import Preparer
from tests.serving.conftest import url_of


@pytest.fixture
def prepared(parts):
    """Inputs of one question with media, prepared in threads here; settings may be given."""
    made = []

    def prepare(*media, max_tiles=None, **config):
        settings: Any = {"media_isolation": "thread", **config}
        made.append(Preparer(parts, ServingConfig(**settings)))
        shown = [each if isinstance(each, Image | Video) else Image(each) for each in media]
        return made[-1].chat(Conversation((Turn("user", (*shown, Text("What?"))),)), max_tiles)

    yield prepare
    for preparer in made:
        preparer.close()


def data_url(data, kind="image/png"):
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png_header(width, height):
    """A picture that promises to be large and is a few bytes."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", head) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def animation(format, num_frames, size=(32, 32), duration=100):
    frames = [Pillow.new("RGB", size, (n % 256, 0, 0)) for n in range(num_frames)]
    frames[0].save(file := io.BytesIO(), format, save_all=True, append_images=frames[1:], duration=duration)
    return file.getvalue()


@pytest.mark.parametrize("isolation", ["thread", "process"])
def test_inputs_are_those_of_a_processor_without_a_server(parts, prepared, picture, isolation):
    film = Video(data_url(animation("GIF", 6), "image/gif"), num_frames=3)
    media = [Image(url_of(picture), max_tiles=2), film, Image(url_of(picture, "JPEG"))]
    inputs = prepared(*media, max_tiles=4, media_isolation=isolation)
    expected = Processor(parts.spec, parts.tokenizer)(
        Conversation((Turn("user", (*media, Text("What?"))),)), max_tiles=4
    )
    assert torch.equal(inputs.tiles, expected.tiles) and torch.equal(inputs.token_ids, expected.token_ids)
    assert (inputs.grids, inputs.sizes) == (expected.grids, expected.sizes)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (png_header(50_000, 50_000), "2,500,000,000 pixels"),
        (png_header(2**31 - 1, 1), "pixels; at most"),
        (b"BM" + bytes(16) + struct.pack("<ii", 60_000, 60_000) + b"\x01\x00\x18\x00" + bytes(24), "pixels|decoded"),
        (b"<svg xmlns='http://www.w3.org/2000/svg' width='9' height='9'/>", "which is no picture"),
        (b"%PDF-1.7\n", "which is no picture"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "which is no picture"),
        (b"\x00\x00\x00\x0cjP  \r\n\x87\n", "which is no picture"),
        (b"", "empty"),
    ],
    ids=["png", "line", "bmp", "svg", "pdf", "eps", "jpeg 2000", "nothing"],
)
def test_bombs_and_what_is_no_picture_are_refused_without_being_decoded(prepared, data, words):
    tracemalloc.start()
    started_s = time.perf_counter()
    try:
        with pytest.raises(MediaError, match=words):
            prepared(data_url(data))
        assert tracemalloc.get_traced_memory()[1] < 2**20
        assert time.perf_counter() - started_s < 5  # to decode them would take minutes
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF"])
def test_truncated_pictures_are_refused_and_not_filled_with_grey(prepared, picture, format):
    noise = Pillow.effect_noise((90, 70), 90).convert("RGB")
    noise.save(file := io.BytesIO(), format)
    whole = file.getvalue()
    assert len(prepared(data_url(whole)).tiles)
    with pytest.raises(MediaError, match="cannot be decoded"):
        prepared(data_url(whole[: len(whole) * 2 // 3]))


@pytest.mark.parametrize("format", ["GIF", "WEBP", "PNG"])
def test_frames_and_length_of_animations_are_bounded(prepared, format):
    url = data_url(animation(format, 40), f"image/{format.lower()}")
    assert len(prepared(Video(url, num_frames=4)).sizes) == 4
    with pytest.raises(MediaError, match="at most 8 are allowed"):
        prepared(Video(url, num_frames=9), max_frames=8)
    with pytest.raises(MediaError, match="at most 2 s are looked at"):
        prepared(Video(url, num_frames=4), max_video_s=2.0)
    assert len(prepared(url).sizes) == 1  # as a picture, its first frame


def test_bytes_pixels_and_number_are_bounded(prepared, picture):
    with pytest.raises(MediaError, match="at most 60 are allowed"):
        prepared(url_of(picture), max_body_bytes=60)
    with pytest.raises(MediaError, match="at most 19,999 are"):
        prepared(url_of(picture), max_image_pixels=19_999)
    with pytest.raises(MediaError, match="at most 10,000 are"):
        prepared(url_of(picture), url_of(picture), max_request_pixels=30_000)
    with pytest.raises(MediaError, match="more than 20,000 pixels"):
        prepared(url_of(picture), url_of(picture), max_request_pixels=20_000)
    with pytest.raises(MediaError, match="3 pictures and videos; at most 2"):
        prepared(*[url_of(picture)] * 3, max_images=2)
    with pytest.raises(MediaError, match="cuts a picture into 40"):
        prepared(Image(url_of(picture), max_tiles=41))


def test_pictures_of_a_prompt_have_the_room_that_those_before_left(parts, picture):
    """Tiles that no prompt has room for are not even made: a line of pixels asks for many."""
    asked = []

    def cut(task, seconds):
        asked.append(task.room)
        return cut_up(task)

    viewer = Viewer(ServingConfig(), parts.spec, room=20, cut=cut, fetch=None)
    line = Image(url_of(Pillow.new("RGB", (40, 1))), max_tiles=12)
    conversation = Conversation((Turn("user", (line, line, Text("What?"))),))
    with pytest.raises(MessageError, match="has room for 7"):
        viewer.look(conversation, parts.processor.tiling)
    assert asked == [20, 7]


def test_all_media_of_a_request_have_so_many_seconds(parts, picture):
    given = []

    def cut(task, seconds):
        given.append(seconds)
        time.sleep(0.4)  # which is for a free worker and does not count
        return Cut([(1, 1)], [(1, 1)], np.zeros((1, 3, 8, 8), np.uint8), False, took_s=0.2)

    config = ServingConfig(media_s=0.3)
    viewer = Viewer(config, parts.spec, room=20, cut=cut, fetch=None)
    conversation = Conversation((Turn("user", (*[Image(url_of(picture))] * 3, Text("What?"))),))
    with pytest.raises(MediaError, match=r"more than 0\.3 s"):
        viewer.look(conversation, parts.processor.tiling)
    assert given == [0.3, pytest.approx(0.1)]


@pytest.mark.parametrize("source", ["x.png", "/etc/passwd", "javascript:1", "file:///etc/passwd", "file://[", 7, None])
def test_nothing_of_the_server_is_read_by_default(prepared, source):
    with pytest.raises(MediaError):
        prepared(Image(source))


@pytest.mark.parametrize("name", ["media_workers", "media_memory_bytes", "media_s", "fetch_s"])
def test_bounds_that_bound_nothing_are_refused(name):
    with pytest.raises(ConfigError, match=name):
        dataclasses.replace(ServingConfig(), **{name: 0})
