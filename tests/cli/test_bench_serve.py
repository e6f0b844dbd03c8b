"""`cascadevl bench serve` as a user meets it, against a server that is not ours."""

import json

import pytest
from PIL import Image

from cascadevl.cli.main import main
from tests.serving.fake_openai import Fake
from tests.serving.fake_openai import running as fake_running


def test_the_command_sweeps_draws_and_writes(command, tmp_path):
    with fake_running(Fake(pause_s=0.002)) as fake:
        words = ["--concurrency", "1", "--requests", "6", "--output-tokens", "3", "--warmup", "2", "--sweep"]
        words += ["--goodput", "ttft:9000", "--json", "out.json", "--plot", "out.png"]
        ran = command("bench", "serve", "--url", fake.url, *words, torch=False)
    assert ran.code == 0, ran.err
    found = json.loads((tmp_path / "out.json").read_text())
    assert [each["load"]["concurrency"] for each in found["loads"][:2]] == [1, 2]
    assert found["model"] == "fake" and found["exact_lengths"] and found["limits_ms"]["ttft"] == 9000
    with Image.open(tmp_path / "out.png") as drawn:
        assert drawn.format == "PNG"
    assert "good requests/s" in ran.out and "TTFT p99, ms" in ran.out and "\x1b" not in ran.out and "━" not in ran.out


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--url", "http://127.0.0.1:9"], "Give --rate"),
        (["--url", "ftp://h", "--rate", "1"], "no address"),
        (["--url", "h", "--rate", "1", "--goodput", "itl:3"], "no limit"),
        (["--url", "h", "--rate", "1", "--extra", "[]"], "JSON object"),
        (["--url", "h", "--rate", "1", "--json", "nowhere/a.json"], "no folder"),
        (["--url", "h", "--rate", "1", "--images-share", "2"], "images_share"),
        (["--url", "http://127.0.0.1:9", "--rate", "1"], "Nobody answers"),
    ],
)
def test_mistakes_are_told(capsys, words, problem):
    try:
        code = main(["bench", "serve", *words])
    except SystemExit as end:  # what is wrong with a single value, tyro tells in a box
        code = end.code
    assert code == 2
    assert problem in " ".join(capsys.readouterr().err.split())
