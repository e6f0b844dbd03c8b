"""Bodies and media that nobody should send to a server, made from seeds."""

import base64
import contextlib
import copy
import io
import json
import random
import struct
import zlib
from typing import Any

from PIL import Image

CHAT = "/v1/chat/completions"


def hello(max_tokens: int = 4, **more: Any) -> dict[str, Any]:
    return {"messages": [{"role": "user", "content": "Hello"}], "max_tokens": max_tokens, **more}


def about(url: str, kind: str = "image_url") -> dict[str, Any]:
    content = [{"type": kind, kind: {"url": url}}, {"type": "text", "text": "What is it?"}]
    return {"messages": [{"role": "user", "content": content}], "max_tokens": 2, "max_tiles": 2}


# Malformed


VALID: dict[str, dict[str, Any]] = {  # for each route of the OpenAPI document that takes a body
    CHAT: {
        **hello(2), "temperature": 0.5, "top_p": 0.9, "seed": 1, "stop": ["x"], "n": 1, "logprobs": True,
        "top_logprobs": 2, "stream": False, "deadline_s": 5.0, "response_format": {"type": "text"},
    },
    "/v1/completions": {"prompt": "Hello", "max_tokens": 2, "deadline_s": 5.0},
    "/v1/responses": {
        "input": [
            {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "Hello"}]},
            {"type": "function_call", "call_id": "a", "name": "add", "arguments": "{}"},
            {"type": "function_call_output", "call_id": "a", "output": "3"},
        ],
        "instructions": "Be brief.", "max_output_tokens": 2, "temperature": 0.5, "top_logprobs": 2, "deadline_s": 5.0,
        "include": ["message.output_text.logprobs"], "text": {"format": {"type": "text"}}, "tool_choice": "none",
        "tools": [{"type": "function", "name": "add", "parameters": {"type": "object"}}], "stream": False,
    },
    "/tokenize": {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hello"}]}], "max_tiles": 2},
}  # fmt: skip
JUNK: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, 10**400, 2**63, "", "\ud800", "\x00", "a" * 10_000, [], {}, [[]], [None] * 50, {"": 0},
    {"type": "image_url"}, {"role": "user"}, "data:image/png;base64,", "<img><IMG_CONTEXT></img>",
)  # fmt: skip


def mutated(number: int) -> tuple[str, bytes]:
    """A body that was valid before something happened to it."""
    rng = random.Random(number)
    path = rng.choice(list(VALID))
    body = json.loads(json.dumps(VALID[path]))
    for _ in range(rng.randint(1, 3)):
        place: Any = body
        while isinstance(place, dict | list) and place:
            key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
            if not isinstance(place[key], dict | list) or rng.random() < 0.5:
                place[key] = copy.deepcopy(rng.choice(JUNK))
                break
            place = place[key]
        if rng.random() < 0.2:
            body[rng.choice(["tempereture", "tools", "messages", "", "stream_options"])] = copy.deepcopy(
                rng.choice(JUNK)
            )
    data = json.dumps(body).encode()
    match rng.randrange(8):
        case 0:
            data = data[: rng.randrange(len(data))]
        case 1:
            data = bytes(byte ^ (rng.random() < 0.01) * rng.randrange(256) for byte in data)
        case 2:
            data = rng.choice([b"[" * 100_000, b'{"messages":' * 20_000, b"NaN", b"\xff\xfe", b"", b"null", b"[]"])
    return path, data


def generated(document: dict[str, Any], num: int) -> list[tuple[str, bytes]]:
    """Bodies that schemathesis makes of the OpenAPI document; none where it is not installed."""
    try:
        import hypothesis.errors
        import schemathesis  # pyright: ignore[reportMissingImports]
        from hypothesis import HealthCheck as Check
    except ImportError:
        return []
    schema = schemathesis.openapi.from_dict(document)
    wishes = [(path, mode) for path in VALID for mode in schemathesis.GenerationMode]
    settings = hypothesis.settings(
        max_examples=num // len(wishes) + 1,
        deadline=None,
        database=None,
        suppress_health_check=[Check.too_slow, Check.filter_too_much, Check.data_too_large],
        phases=[hypothesis.Phase.generate],
    )
    found: list[tuple[str, bytes]] = []
    for path, mode in wishes:
        cases: list[Any] = []

        def gather(case: Any) -> None:
            cases.append(case)  # noqa: B023

        strategy = schema[path]["POST"].as_strategy(generation_mode=mode)
        with contextlib.suppress(hypothesis.errors.Unsatisfiable):
            hypothesis.seed(0)(settings(hypothesis.given(strategy)(gather)))()
        for case in cases:
            with contextlib.suppress(TypeError, ValueError):  # a case without a body, or with one that is no JSON
                found.append((path, json.dumps(case.body).encode()))
    return found[:num]


# Media


def data_url(data: bytes, kind: str = "image/png") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def png(width: int, height: int, rows: bytes = b"") -> bytes:
    """One that promises a size and holds these rows."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    head = chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + head + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def saved(format: str, size: tuple[int, int] = (120, 90), frames: int = 1, **options: Any) -> bytes:
    pictures = [Image.effect_noise(size, 60 + n % 50).convert("RGB") for n in range(frames)]
    several = {"save_all": True, "append_images": pictures[1:], "duration": 100} if frames > 1 else {}
    pictures[0].save(file := io.BytesIO(), format, **several, **options)
    return file.getvalue()


def frame_bomb() -> bytes:
    """A GIF of 300 frames of 16 million pixels each."""
    red, blue = (Image.new("RGB", (4000, 4000), color) for color in ("red", "blue"))
    red.save(file := io.BytesIO(), "GIF", save_all=True, append_images=[blue], duration=10)
    two = file.getvalue()
    return two[:-1] + two[two.rindex(b"\x21\xf9") : -1] * 300 + b";"


def distinct(number: int) -> dict[str, Any]:
    rng = random.Random(number)
    size = (rng.randint(40, 200), rng.randint(40, 200))
    picture = Image.frombytes("RGB", (8, 8), rng.randbytes(192)).resize(size)
    picture.save(file := io.BytesIO(), rng.choice(["PNG", "JPEG", "WEBP"]))
    return about(data_url(file.getvalue()))


def bad_media() -> list[dict[str, Any]]:
    """Bodies with pictures and videos that promise too much, hold too much, or end too early."""
    bad = [about(data_url(each)) for each in (png(50_000, 50_000), png(2**31 - 1, 1), png(7000, 7000), b"<svg/>", b"")]
    for format in ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP"):
        whole = saved(format)
        bad += [about(data_url(whole[: len(whole) * part // 4], f"image/{format.lower()}")) for part in (1, 3)]
    for format in ("GIF", "PNG", "WEBP"):
        whole = saved(format, (60, 60), 200)
        film = about(data_url(whole, f"image/{format.lower()}"), "video_url")
        film["messages"][0]["content"][0]["num_frames"] = 150
        bad.append(film)
    bad.append(about(data_url(frame_bomb(), "image/gif"), "video_url"))
    bad.append(about(data_url(b"\x00\x00\x00\x18ftypmp42" + bytes(5000), "video/mp4"), "video_url"))
    bad.append({**about(""), "messages": [{"role": "user", "content": about(data_url(png(1, 1)))["messages"]}]})
    return bad


def private_addresses(port: int) -> list[str]:
    """This machine and its neighbours, in plain and in disguise."""
    hosts = (
        "127.0.0.1", "localhost", "[::1]", "[::ffff:127.0.0.1]", "2130706433", "0177.0.0.1", "0x7f000001", "127.1", "0",
        "169.254.169.254", "10.0.0.1", "192.168.0.1", "100.100.100.200", "[fd00:ec2::254]", "[64:ff9b::7f00:1]",
        "[2002:7f00:1::]", "metadata.google.internal", "user:word@127.0.0.1", "127.0.0.1:22",
    )  # fmt: skip
    urls = [f"{scheme}://{host}/health" for host in hosts for scheme in ("http", "https")]
    urls += [f"http://127.0.0.1:{port}/health", "file:///etc/passwd", "ftp://127.0.0.1/", "gopher://127.0.0.1:1/"]
    return urls
