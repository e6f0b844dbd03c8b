import http.server
import json
import threading
from typing import Any

import pytest
from PIL import Image

from cascadevl.apps.ocr_consensus import readers
from cascadevl.apps.ocr_consensus.choose import Choice
from cascadevl.apps.ocr_consensus.hosted import Kept
from cascadevl.apps.ocr_consensus.models import Endpoint, ModelReader, ModelSpec, model_version, open_endpoint, parse
from cascadevl.apps.ocr_consensus.readers import ReaderFailed
from cascadevl.core.errors import CheckpointNotFound, ConfigError, MissingExtra
from cascadevl.core.generation import Generation, Sampling

PAGE = Image.new("RGB", (12, 8), "white")


class Scripted:
    """A Generator that says one thing and keeps what it was asked."""

    def __init__(self, text: str, error: Exception | None = None) -> None:
        self.text, self.error, self.asked = text, error, []

    def generate(self, conversations, sampling):
        self.asked += conversations
        return [Generation(text=self.text, error=self.error) for _ in conversations]


def reader(generator, **changes) -> ModelReader:
    return ModelReader(name="m", version="1", generator=generator, sampling=Sampling(), **changes)


def test_a_model_reads_the_page_it_is_shown():
    model = Scripted("hello 12")
    assert reader(model).read(PAGE).text == "hello 12"
    assert model.asked[0].images[0].source is PAGE


def test_an_expert_is_shown_all_readings_and_the_consensus():
    model = Scripted("the truth")
    assert reader(model).review(PAGE, ["one 1", "one 7"], "one 1").text == "the truth"
    question = model.asked[0].turns[0].text
    assert all(part in question for part in ("Reading 1:\none 1", "Reading 2:\none 7", "came to:\none 1"))


def test_an_answer_that_failed_raises_what_went_wrong():
    with pytest.raises(ValueError, match="too long"):
        reader(Scripted("", ValueError("too long"))).read(PAGE)


@pytest.fixture
def endpoint():
    """A server that speaks OpenAI's form; `replies` are what it says next."""
    seen, replies = [], []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            seen.append((self.path, self.headers["Authorization"], body))
            status, answer = replies.pop(0)
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, format, *args):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/v1", seen, replies
        server.shutdown()


def test_an_address_is_asked_in_openais_form(endpoint):
    url, seen, replies = endpoint
    replies.append((200, {"choices": [{"message": {"content": "read 5"}}]}))
    spec = ModelSpec(f"{url}#big", sample=4)
    found = open_endpoint(spec, Sampling(max_new_tokens=9), "secret", 5)
    assert (found.name, found.read(PAGE).text) == ("big~4", "read 5")
    [(path, key, body)] = seen
    assert (path, key) == ("/v1/chat/completions", "Bearer secret")
    assert (body["model"], body["max_tokens"], body["seed"], body["temperature"]) == ("big", 9, 4, 0.7)
    picture, text = body["messages"][0]["content"]
    assert picture["image_url"]["url"].startswith("data:image/png;base64,") and text["type"] == "text"


@pytest.mark.parametrize("reply", [(500, {}), (200, {"choices": []}), (200, [])])
def test_an_address_that_answers_otherwise_is_a_failed_reader(endpoint, reply):
    url, _, replies = endpoint
    replies.append(reply)
    with pytest.raises(ReaderFailed, match="did not answer as expected"):
        reader(Endpoint(url, "big", 5)).read(PAGE)


def test_samples_have_seeds_and_names_of_their_own():
    specs = parse("some/folder/nano*3")
    assert [(spec.name, spec.of(Sampling()).seed) for spec in specs] == [("nano~0", 0), ("nano~1", 1), ("nano~2", 2)]
    assert all(spec.of(Sampling()).temperature == 0.7 for spec in specs)
    assert parse("nano")[0].of(Sampling()) == Sampling()
    assert len({model_version(spec) for spec in [*parse("nano*2"), *parse("nano")]}) == 3
    with pytest.raises(ConfigError, match="2 to 32"):
        parse("nano*99")


@pytest.mark.parametrize(
    ("readers", "error", "message"),
    [
        (("nano",), ConfigError, "nobody to disagree with"),
        (("nano", "nano"), ConfigError, "Two readers are called 'nano'"),
        (("nano", "no/such/model/here"), CheckpointNotFound, "no/such"),
        (("nano", "http://host/v1"), ConfigError, "an address and a model"),
        (("nano", "ftp://host/v1#m"), ConfigError, "an address and a model"),
        (("nano", "clean:nano"), ConfigError, "clean: goes before one of"),
    ],
)
def test_a_choice_that_cannot_work_is_refused_before_anything_is_loaded(readers, error, message):
    with pytest.raises(error, match=message):
        Choice(readers=readers)


def test_easyocr_reads_the_lines_of_rapidocr_whose_page_is_read_once(tmp_path, monkeypatch):
    for package in ("rapidocr", "onnxruntime", "easyocr_en_models"):
        pytest.importorskip(package, reason=f"{package} is not installed")
    desk = Choice(readers=("easyocr", "rapidocr", "clean:rapidocr")).desk(tmp_path)
    staff: list[Any] = list(desk.readers)
    easyocr, rapidocr, clean = (each.reader for each in staff)
    assert isinstance(easyocr, readers.OnLines) and isinstance(clean, readers.Cleaned)
    assert isinstance(easyocr.where, Kept) and easyocr.where.reader is rapidocr is clean.reader
    assert [each.name for each in desk.readers] == ["easyocr", "rapidocr", "clean:rapidocr"]


def test_the_expert_is_one_model():
    for expert in ("tesseract", "nano*3"):
        with pytest.raises(ConfigError, match="must be one model"):
            Choice(readers=("nano*2",), expert=expert)


def test_nothing_installed_is_told_with_the_ways_out(monkeypatch):
    monkeypatch.setenv("PATH", "")
    monkeypatch.setattr(readers, "MODULES", {"rapidocr": ("no_such_module",), "easyocr": ("no_such_module",)})
    with pytest.raises(MissingExtra, match=r"apt install tesseract-ocr.*or name models"):
        Choice(readers=("auto",))


def test_nano_reads_in_a_process_of_its_own(tmp_path):
    desk = Choice(readers=("nano", "nano*2"), max_new_tokens=4, timeout_s=100).desk(tmp_path)
    try:
        texts = [each.read(PAGE).text for each in desk.readers[:1]]
        assert [each.name for each in desk.readers] == ["nano", "nano~0", "nano~1"]
        assert len(texts) == 1 and isinstance(texts[0], str)
        assert len(list(tmp_path.rglob("*.json"))) == 1
    finally:
        desk.close()
