import base64
import io
import os
import struct
import tracemalloc
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, TiffImagePlugin

from cascadevl.core.errors import ConfigError, MediaError
from cascadevl.preprocessing.image import MediaLimits, open_image

RED, GREEN, BLUE, WHITE, BLACK = (255, 0, 0), (0, 255, 0), (0, 0, 255), (255, 255, 255), (0, 0, 0)
QUAD = np.array([[RED, GREEN, BLUE], [WHITE, BLACK, (10, 20, 30)]], dtype=np.uint8)
"""Two rows of three pixels, all different, so that every turn shows."""


def encoded(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def pixels(source: Any) -> list[list[tuple[int, ...]]]:
    image = open_image(source)
    assert image.mode == "RGB"
    return [[tuple(map(int, pixel)) for pixel in row] for row in np.asarray(image)]


def png(width: int, height: int, bits: int, color_type: int, rows: bytes, *chunks: tuple[bytes, bytes]) -> bytes:
    """A PNG by hand: Pillow cannot write every kind that it reads."""

    def chunk(name: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))

    header = struct.pack(">IIBBBBB", width, height, bits, color_type, 0, 0, 0)
    parts = [(b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(chunk(name, body) for name, body in parts)


QUAD_ROWS = QUAD.tolist()
QUAD_PNG = encoded(Image.fromarray(QUAD))


# ---- where a picture may come from


def test_every_kind_of_source_gives_the_same_pixels(tmp_path: Path) -> None:
    path = tmp_path / "a picture.png"
    path.write_bytes(QUAD_PNG)
    url = "data:image/png;base64," + base64.b64encode(QUAD_PNG).decode()
    sources = [
        path,
        str(path),
        QUAD_PNG,
        bytearray(QUAD_PNG),
        memoryview(QUAD_PNG),
        url,
        "DATA" + url[4:],
        QUAD,
    ]
    sources += [Image.open(path), Image.fromarray(QUAD), url[:40] + "\n" + url[40:], QUAD[::-1][::-1]]
    for source in sources:
        assert np.asarray(open_image(source)).tolist() == QUAD_ROWS


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "PPM", "GIF"])
def test_lossless_formats_keep_every_pixel(kind: str) -> None:
    assert np.asarray(open_image(encoded(Image.fromarray(QUAD), kind))).tolist() == QUAD_ROWS


@pytest.mark.parametrize(
    ("kind", "option"),
    [("JPEG", "optimize"), ("JPEG", "progressive"), ("WEBP", "exact"), ("WEBP", "lossless")],
)
def test_jpeg_and_webp_equal_pillow(kind: str, option: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (37, 53, 3), dtype=np.uint8))
    data = encoded(noise, kind, **{option: True})
    expected = Image.open(io.BytesIO(data)).convert("RGB")
    assert np.array_equal(np.asarray(open_image(data)), np.asarray(expected))


def test_an_upright_rgb_picture_is_returned_itself() -> None:
    image = Image.fromarray(QUAD)
    assert open_image(image) is image


def test_a_picture_of_another_mode_is_left_unchanged() -> None:
    image = Image.new("RGBA", (2, 2), (0, 0, 0, 0))
    assert open_image(image).getpixel((0, 0)) == WHITE
    assert image.mode == "RGBA" and image.getpixel((0, 0)) == (0, 0, 0, 0)


def test_pillow_keeps_its_global_state() -> None:
    from PIL import ImageFile

    before = Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES
    open_image(QUAD_PNG)
    assert (Image.MAX_IMAGE_PIXELS, ImageFile.LOAD_TRUNCATED_IMAGES) == before == (89478485, False)


# ---- modes


def test_gray_one_bit_and_palette() -> None:
    gray = Image.fromarray(np.array([[0, 7, 255]], dtype=np.uint8))
    assert pixels(encoded(gray)) == [[BLACK, (7, 7, 7), WHITE]]
    one_bit = Image.fromarray(np.array([[False, True, True]]))
    assert one_bit.mode == "1" and pixels(encoded(one_bit)) == [[BLACK, WHITE, WHITE]]
    palette = Image.new("P", (2, 1))
    palette.putpalette([*RED, *BLUE])
    palette.putpixel((1, 0), 1)
    assert pixels(encoded(palette)) == [[RED, BLUE]]


def test_transparency_lies_on_white() -> None:
    # 255 - alpha of white and alpha of the colour: 128/255 of red is (255, 127, 127).
    layer = np.array([[(255, 0, 0, 255), (255, 0, 0, 128), (9, 9, 9, 0)]], dtype=np.uint8)
    expected = [[RED, (255, 127, 127), WHITE]]
    assert pixels(layer) == expected
    assert pixels(encoded(Image.fromarray(layer))) == expected
    assert pixels(encoded(Image.fromarray(layer), "WEBP", lossless=True)) == expected
    # 0 on white at 64/255 is 255 × 191/255 = 191.
    assert pixels(encoded(Image.merge("LA", [Image.new("L", (1, 1), 0), Image.new("L", (1, 1), 64)]))) == [
        [(191, 191, 191)]
    ]


def test_transparent_palettes_and_colour_keys_lie_on_white() -> None:
    palette = Image.new("P", (3, 1))
    palette.putpalette([*RED, *GREEN, *BLUE])
    palette.putdata([0, 1, 2])
    assert pixels(encoded(palette, transparency=1)) == [[RED, WHITE, BLUE]]
    assert pixels(encoded(palette, transparency=bytes([255, 0, 128]))) == [[RED, WHITE, (127, 127, 255)]]
    assert pixels(encoded(palette, "GIF", transparency=2)) == [[RED, GREEN, WHITE]]
    assert pixels(encoded(Image.fromarray(QUAD[:1]), transparency=GREEN)) == [[RED, WHITE, BLUE]]


def test_sixteen_bits_are_scaled_not_clipped() -> None:
    # 257 levels of 65536 make one of 256: 128.5 × 257 = 33024.5 rounds up from 33025.
    levels = np.array([[0, 128, 129, 257, 33024, 33025, 65535]], dtype=np.uint16)
    expected = [[(level,) * 3 for level in (0, 0, 1, 1, 128, 129, 255)]]
    assert pixels(png(7, 1, 16, 0, b"\0" + levels.astype(">u2").tobytes())) == expected
    assert pixels(Image.fromarray(levels)) == expected
    assert pixels(encoded(Image.fromarray(levels), "TIFF")) == expected
    assert pixels(Image.fromarray(levels.astype(np.int32))) == expected
    assert pixels(b"P5 7 1 65535\n" + levels.astype(">u2").tobytes()) == expected
    with pytest.raises(MediaError, match=r"integers from -1 to 65536. Expected 0 to 65535"):
        open_image(Image.fromarray(np.array([[-1, 65536]], dtype=np.int32)))


def test_floats_reach_to_one_or_to_255() -> None:
    ones = np.array([[0, 0.5, 1]], dtype=np.float32)
    assert pixels(Image.fromarray(ones)) == [[BLACK, (128,) * 3, WHITE]]
    assert pixels(Image.fromarray(ones * 255)) == [[BLACK, (128,) * 3, WHITE]]
    assert pixels(encoded(Image.fromarray(ones), "TIFF")) == [[BLACK, (128,) * 3, WHITE]]
    for wrong in ([[-0.5, 1]], [[0, 256]], [[np.nan, 1]]):
        with pytest.raises(MediaError, match=r"floats from .* Expected 0 to 1, or 0 to 255"):
            open_image(Image.fromarray(np.array(wrong, dtype=np.float32)))


def test_cmyk_also_of_adobe_jpegs() -> None:
    cyan, black = (255, 0, 0, 0), (0, 0, 0, 255)
    image = Image.new("CMYK", (2, 1), cyan)
    image.putpixel((1, 0), black)
    assert pixels(encoded(image, "TIFF")) == [[(0, 255, 255), BLACK]]
    # Pillow writes CMYK JPEGs inverted and with Adobe's marker, as Photoshop does.
    (row,) = pixels(encoded(Image.new("CMYK", (1, 1), cyan), "JPEG", quality=100, subsampling=0))
    assert np.abs(np.array(row[0]) - (0, 255, 255)).max() <= 3


def test_arrays_of_one_three_and_four_channels() -> None:
    gray_YX = np.array([[0, 9], [99, 255]], dtype=np.uint8)
    expected = [[BLACK, (9, 9, 9)], [(99, 99, 99), WHITE]]
    assert pixels(gray_YX) == pixels(gray_YX[..., None]) == expected
    assert pixels(np.repeat(gray_YX[..., None], 3, 2)) == expected
    assert pixels(np.asfortranarray(np.repeat(gray_YX[..., None], 3, 2))) == expected


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "PNG", "TIFF"])
def test_animations_give_their_first_frame(kind: str) -> None:
    frames = [Image.new("RGB", (4, 4), colour) for colour in (RED, GREEN, BLUE)]
    options = {"lossless": True} if kind == "WEBP" else {}
    data = encoded(frames[0], kind, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3  # type: ignore[attr-defined]
    assert pixels(data) == [[RED] * 4] * 4


# ---- orientation

TURNED = {
    1: QUAD,
    2: QUAD[:, ::-1],
    3: QUAD[::-1, ::-1],
    4: QUAD[::-1],
    5: QUAD.transpose(1, 0, 2),
    6: np.rot90(QUAD),
    7: QUAD.transpose(1, 0, 2)[::-1, ::-1],
    8: np.rot90(QUAD, -1),
}
"""How a camera stores QUAD under each orientation: 6 asks for a turn clockwise, so it lies anti-clockwise."""


@pytest.mark.parametrize("kind", ["PNG", "TIFF", "WEBP"])
@pytest.mark.parametrize("orientation", TURNED)
def test_exif_orientation_is_obeyed(kind: str, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    stored = Image.fromarray(np.ascontiguousarray(TURNED[orientation]))
    options = {"lossless": True, "exact": True} if kind == "WEBP" else {}
    data = encoded(stored, kind, exif=exif, **options)
    assert np.asarray(open_image(data)).tolist() == QUAD_ROWS
    assert np.asarray(open_image(Image.open(io.BytesIO(data)))).tolist() == QUAD_ROWS


def test_a_jpeg_is_turned_and_a_wrong_or_damaged_exif_is_not() -> None:
    wide = Image.new("RGB", (20, 10), RED)
    exif = Image.Exif()
    exif[0x0112] = 6
    assert open_image(encoded(wide, "JPEG", exif=exif)).size == (10, 20)
    exif[0x0112] = 77
    assert open_image(encoded(wide, "JPEG", exif=exif)).size == (20, 10)
    assert open_image(encoded(wide, "JPEG", exif=b"Exif\0\0 nonsense of thirty bytes")).size == (20, 10)


# ---- what is refused


def refused(source: Any, *words: str, limits: MediaLimits | None = None) -> str:
    with pytest.raises(MediaError) as caught:
        open_image(source, limits or MediaLimits())
    message = str(caught.value)
    assert all(word in message for word in words), message
    assert message[0].isupper() or message[0] == "'", message
    return message


def test_paths_that_cannot_be_read(tmp_path: Path) -> None:
    refused(tmp_path / "none.png", "none.png", "does not exist", "Check the path")
    refused("none.png", "'none.png'", os.getcwd())
    refused(tmp_path, "is a folder", str(tmp_path))
    refused("", "does not exist")
    refused("a\0b.png", "cannot be read", "null byte")
    refused("x" * 5000, "cannot be read", "too long")
    os.mkfifo(tmp_path / "pipe.png")
    refused(tmp_path / "pipe.png", "device or a pipe")
    (tmp_path / "empty.png").touch()
    refused(tmp_path / "empty.png", "empty.png", "0 bytes")
    (tmp_path / "text.png").write_text("hello, this is no picture")
    refused(tmp_path / "text.png", "text.png", "hello", "no picture", "PNG, JPEG")
    refused(b"", "0 bytes")


@pytest.mark.parametrize("url", ["http://a.b/c.png", "HTTPS://a.b/c.png", "file:///etc/passwd", "s3://a/b.png"])
def test_addresses_are_not_fetched(url: str) -> None:
    refused(url, "not fetched", url.split(":")[0].lower() + "://", "local path")


def test_data_urls_that_are_none() -> None:
    refused("data:image/png;base64,####", "not valid base64", "Encode")
    refused("data:image/png;base64,abc", "not valid base64")
    refused("data:image/png;base64,", "0 bytes")
    refused("data:image/png,abcd", "data:image/png", "base64,")
    refused("data:", "Expected 'data:image/png;base64,")
    refused("data:text/plain;base64,aGVsbG8=", "hello", "no picture")


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"])
def test_truncated_and_corrupt_files(kind: str) -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    data = encoded(noise, kind)
    for part in (len(data) // 2, len(data) // 10, 14):
        refused(data[:part], "The picture in memory", "cannot be decoded", "download it again")
    if kind != "PPM":  # any bytes are PPM pixels
        refused(data[:12] + bytes(len(data) - 12), "cannot be decoded")


def test_noise_in_a_file_is_refused_or_read_but_never_another_error() -> None:
    generator = np.random.default_rng(0)
    small = Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8))
    limits = MediaLimits(max_pixels=10_000)
    for kind in ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM"):
        original = np.frombuffer(encoded(small, kind), dtype=np.uint8)
        for _ in range(60):
            damaged = original.copy()
            damaged[generator.integers(0, len(damaged), 4)] = generator.integers(0, 256, 4)
            try:
                assert open_image(damaged.tobytes(), limits).mode == "RGB"
            except MediaError as error:
                assert "The picture in memory" in str(error)  # noqa: PT017


HUGE = 50_000
HEADERS: dict[str, Callable[[], bytes]] = {
    "PNG": lambda: png(HUGE, HUGE, 8, 2, b"\0"),
    "GIF": lambda: b"GIF89a" + struct.pack("<HHBBB", HUGE, HUGE, 0, 0, 0) + b"," + bytes(9) + b"\x08\1\0\0;",
    "BMP": lambda: b"BM" + struct.pack("<IHHIIiiHHIIiiII", 99, 0, 0, 54, 40, HUGE, HUGE, 1, 24, *[0] * 6),
    "PPM": lambda: b"P6 50000 50000 255\n" + bytes(99),
    "TIFF": lambda: _tiff_header(HUGE),
    "JPEG": lambda: encoded(Image.new("RGB", (8, 8)), "JPEG").replace(
        struct.pack(">HH", 8, 8), struct.pack(">HH", HUGE, HUGE), 1
    ),
}


def _tiff_header(side: int) -> bytes:
    tags = TiffImagePlugin.ImageFileDirectory_v2()
    values = {256: side, 257: side, 258: (8, 8, 8), 259: 1, 262: 2, 273: 8, 277: 3, 278: side, 279: 99}
    for tag, value in values.items():
        tags[tag] = value
    file = io.BytesIO()
    tags.save(file)
    return file.getvalue()


@pytest.mark.parametrize("kind", HEADERS)
def test_a_bomb_is_refused_from_its_header(kind: str) -> None:
    data = HEADERS[kind]()
    tracemalloc.start()
    refused(data, "50000×50000", "2,500,000,000 pixels", "180,000,000", "Scale it down")
    _, peak_bytes = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak_bytes < 2**20


def test_between_pillows_limit_and_ours_nothing_warns() -> None:
    # More than Image.MAX_IMAGE_PIXELS; one bit a pixel keeps the file small. Warnings are errors here.
    data = b"P4 12000 8000\n" + bytes(12000 * 8000 // 8)
    assert open_image(data).size == (12000, 8000)


def test_the_limits_hold_at_the_pixel_and_at_the_byte(tmp_path: Path) -> None:
    assert open_image(QUAD_PNG, MediaLimits(max_pixels=6, max_bytes=len(QUAD_PNG)))
    for source in (QUAD_PNG, QUAD, Image.fromarray(QUAD)):
        refused(source, "3×2 = 6 pixels", "at most 5", limits=MediaLimits(max_pixels=5))
    tight = MediaLimits(max_bytes=len(QUAD_PNG) - 1)
    path = tmp_path / "a.png"
    path.write_bytes(QUAD_PNG)
    url = "data:image/png;base64," + base64.b64encode(QUAD_PNG).decode()
    for source in (QUAD_PNG, path, url):
        refused(source, f"{len(QUAD_PNG)} bytes", f"at most {len(QUAD_PNG) - 1}", "max_bytes", limits=tight)
    with pytest.raises(ConfigError, match="must be positive"):
        MediaLimits(max_bytes=0)


def test_arrays_and_objects_that_are_no_pictures() -> None:
    refused(np.zeros((4, 4, 3), dtype=np.float32), "float32", "uint8")
    refused(np.zeros((4, 4), dtype=np.uint16), "uint16", "uint8")
    refused(np.zeros((3, 4, 5), dtype=np.uint8), "(3, 4, 5)", "channels come last")
    refused(np.zeros((1, 4, 4, 3), dtype=np.uint8), "(1, 4, 4, 3)")
    refused(np.zeros((0, 4, 3), dtype=np.uint8), "empty", "(0, 4, 3)")
    refused(Image.new("RGB", (0, 5)), "empty", "0×5")
    refused(None, "NoneType", "Expected a path")
    refused([QUAD], "type list is no picture")
    refused(3, "type int is no picture")


def test_a_closed_or_unconvertible_picture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(QUAD_PNG)
    image = Image.open(tmp_path / "a.png")
    image.close()
    refused(image, "The PIL picture", "cannot be decoded")
    refused(Image.new("La", (2, 2)), "cannot be decoded", "La")
