"""docs/data.md: every row it shows is read as it stands, and its snippets run."""

import contextlib
import io
import json
import re
from pathlib import Path

from PIL import Image

from cascadevl.data.check import Check
from cascadevl.data.conversations import FORMS, find_form
from cascadevl.data.rows import READERS
from cascadevl.data.sources import open_data

PAGE = (Path(__file__).parents[2] / "docs" / "data.md").read_text()
EXAMPLES = [json.loads(text) for text in re.findall(r"^```json\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)]


def test_every_row_of_the_page_is_read_without_a_problem(tmp_path):
    for name in ("cat.jpg", "dog.jpg"):
        Image.linear_gradient("L").resize((40, 20)).save(tmp_path / name)
    (tmp_path / "walk.mp4").write_bytes(gif())  # its first bytes tell what it is
    forms = set()
    for example in EXAMPLES[:-1]:
        (tmp_path / "x.jsonl").write_text(json.dumps(example))
        (checked,) = Check()(open_data(tmp_path / "x.jsonl"))
        assert not checked.problems, checked.problems
        forms.add(find_form(example))
    assert forms == set(FORMS)


def gif() -> bytes:
    """An animation of three seconds."""
    frames = [Image.new("RGB", (20, 20), color) for color in ("red", "green", "blue")]
    file = io.BytesIO()
    frames[0].save(file, "GIF", save_all=True, append_images=frames[1:], duration=1000)
    return file.getvalue()


def test_the_meta_file_and_the_snippets_of_the_page_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("receipts.jsonl").write_text(json.dumps(EXAMPLES[0]))
    Path("meta.json").write_text(json.dumps(EXAMPLES[-1]))
    (dataset,) = open_data("meta.json")
    assert (dataset.repeat, dataset.max_tiles, dataset.augment) == (2, 6, True)
    assert dataset.source[0].conversation.images[0].source.endswith("pictures/cat.jpg")
    for snippet in re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            exec(compile(snippet, "data.md", "exec"), {})
        assert out.getvalue() == "receipts.jsonl:1 ['user', 'assistant']\n"


def test_the_page_tells_every_kind_of_file():
    assert not [suffix for suffix in READERS if f"`{suffix}`" not in PAGE]
