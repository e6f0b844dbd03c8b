import functools
import json
import time

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus.hosted import Hosted, Kept, image_hash
from cascadevl.apps.ocr_consensus.readers import ReaderFailed, Reading, Span
from tests.apps.ocr_consensus.fakes import Fake, Slow, make_broken


def grey(level: int) -> Image.Image:
    return Image.new("RGB", (20, 10), (level, level, level))


def test_a_hosted_reader_reads_hangs_dies_and_reads_again():
    reader = Hosted("slow", "1", functools.partial(Slow, 60), timeout_s=8)
    try:
        assert reader.read(grey(200)) == Reading("level 200")
        with pytest.raises(ReaderFailed, match="RuntimeError: too bright"):
            reader.read(grey(255))
        with pytest.raises(ReaderFailed, match="died with exit code 7"):
            reader.read(grey(0))
        reader.timeout_s = 20
        assert reader.read(grey(201)) == Reading("level 201")
        reader.timeout_s = 0.3
        started = time.monotonic()
        with pytest.raises(ReaderFailed, match=r"killed after 0\.3 s"):
            reader.read(grey(50))
        assert time.monotonic() - started < 10
    finally:
        reader.close()


def test_a_reader_that_cannot_start_says_why():
    reader = Hosted("broken", "1", make_broken, timeout_s=20)
    with pytest.raises(ReaderFailed, match="OSError: no weights here"):
        reader.read(grey(200))
    reader.close()


def test_readings_are_kept_by_picture_and_version(tmp_path):
    fake = Fake("ann", {200: "two words", 201: "other"}, boxes=True)
    kept = Kept(fake, tmp_path)
    first = kept.read(grey(200))
    assert kept.read(grey(200)) == first == fake.read(grey(200))
    assert fake.seen == [200, 200]
    kept.read(grey(201))
    fake.version = "2"
    kept.read(grey(200))
    assert fake.seen == [200, 200, 201, 200]


def test_a_damaged_entry_is_read_again(tmp_path):
    fake = Fake("ann", {200: "text"})
    kept = Kept(fake, tmp_path)
    kept.read(grey(200))
    [path] = tmp_path.rglob("*.json")
    for damaged in ("", "[]", json.dumps({"text": "x", "spans": [{}]})):
        path.write_text(damaged)
        assert kept.read(grey(200)) == Reading("text")


def test_failures_are_not_kept(tmp_path):
    fake = Fake("ann", {200: RuntimeError("no")})
    kept = Kept(fake, tmp_path)
    with pytest.raises(RuntimeError):
        kept.read(grey(200))
    fake.texts[200] = "now"
    assert kept.read(grey(200)) == Reading("now")


def test_kept_readings_come_back_as_they_were(tmp_path):
    class Boxed(Fake):
        def read(self, image):
            return Reading("né\n1", (Span(0, 2, (1.5, 2, 3, 4), None), Span(3, 4, (0, 0, 1, 1), 0.25)))

    kept = Kept(Boxed("b", {}), tmp_path)
    assert kept.read(grey(3)) == kept.read(grey(3))


def test_the_hash_is_of_pixels_and_shape():
    one = grey(9)
    assert image_hash(one) == image_hash(one.copy())
    assert len({image_hash(one), image_hash(grey(8)), image_hash(one.transpose(Image.Transpose.ROTATE_90))}) == 3
