"""docs/serving.md does what it says, on the model it names."""

import contextlib
import io
import json
import re
from pathlib import Path

import cascadevl
from cascadevl.engine.config import EngineConfig
from cascadevl.serving.app import Service
from cascadevl.serving.bodies import ChatBody
from cascadevl.serving.config import ServingConfig
from tests.serving.conftest import running

PAGE = Path(__file__).parents[2] / "docs" / "serving.md"


def test_every_snippet_of_the_page_runs():
    snippets = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.DOTALL | re.MULTILINE)
    assert len(snippets) == 7
    service = Service(cascadevl.load("nano"), ServingConfig(port=0), EngineConfig(cache_bytes=50_000_000))
    names: dict = {}
    printed = []
    with running(service) as server:
        for snippet in snippets:
            code = snippet.replace("http://127.0.0.1:8000", server.url)
            with contextlib.redirect_stdout(io.StringIO()) as out:
                exec(compile(code, str(PAGE), "exec"), names)
            printed.append(out.getvalue())
        names["client"].close()
    _, asked, streamed, formed, called, responded, counted = printed
    assert service.parts.spec.hash in asked
    assert streamed.endswith(" tokens\n")
    assert 0 <= json.loads(formed)["total"] <= 999
    assert called.startswith('book {"total": ')
    assert re.search(r"\d+\n$", responded)
    assert re.fullmatch(r"\d+ \d+ \d+\n", counted)


def test_the_page_tells_every_field_and_route():
    text = PAGE.read_text()
    fields = set(ChatBody.model_fields) - {"model", "messages", "stream_options"}
    assert not [field for field in fields if f"`{field}`" not in text]
    service = Service(cascadevl.load("nano"), ServingConfig(port=0), EngineConfig(cache_bytes=50_000_000))
    with running(service) as server:
        paths = server.client.get("../openapi.json", cast_to=dict)["paths"]
    assert not [path for path in paths if path.partition("/{")[0] not in text]
