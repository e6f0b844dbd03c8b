"""`cascadevl data check`: what a user sees, and the copy it writes."""

import json
from pathlib import Path

import pytest

from cascadevl.data.sources import open_data

QUESTION = {"from": "human", "value": "<image>\nWhat?"}
ANSWER = {"from": "gpt", "value": "A gradient."}


@pytest.fixture
def rows(tmp_path: Path, picture: Path) -> Path:
    """One good row, two that can be mended, one that cannot."""
    path = tmp_path / "rows.jsonl"
    fields = [
        {"id": "a", "image": "picture.png", "conversations": [QUESTION, ANSWER]},
        {"id": "b", "images": "picture.png", "conversations": [QUESTION, ANSWER]},
        {"id": "a", "image": "/elsewhere/picture.png", "conversations": [QUESTION, ANSWER]},
        {"id": "c", "image": "nowhere.png", "conversations": [QUESTION, ANSWER]},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in fields))
    return path


def test_problems_are_told_by_kind_with_rows_and_fixes_and_exit_with_2(command, rows):
    ran = command("data", "check", rows, torch=False)
    assert ran.code == 2, ran.err
    assert not ran.err
    for words in ("images are no list", "rows.jsonl:2", "id twice", "rows.jsonl:3", "missing picture", "rows.jsonl:4"):
        assert words in ran.out
    assert "4 rows: 1 good, 3 bad, 2 can be mended." in ran.out
    assert "75.00% are bad: training stops above 1.00%." in ran.out


def test_the_limit_decides_whether_training_would_stop(command, rows):
    ran = command("data", "check", rows, "--limit-share", "0.8", torch=False)
    assert ran.code == 2
    assert "75.00% are bad: training leaves them out and writes them down." in ran.out


def test_the_converted_copy_has_the_good_and_the_mended_rows(command, rows, tmp_path):
    ran = command("data", "check", rows, "--fixed", "fixed.jsonl", torch=False)
    assert ran.code == 2
    assert "fixed.jsonl has 3 rows, 2 of them mended; 1 are left out." in ran.out
    (dataset,) = open_data(tmp_path / "fixed.jsonl")
    found = [dataset.source[index].conversation for index in range(len(dataset.source))]
    assert found == [open_data(rows)[0].source[0].conversation] * 3
    written = [json.loads(line) for line in (tmp_path / "fixed.jsonl").read_text().splitlines()]
    assert [row.get("id") for row in written] == ["a", "b", None]
    assert written[2]["messages"][0]["content"][0] == {"type": "image_url", "image_url": {"url": "picture.png"}}
    again = command("data", "check", "fixed.jsonl", torch=False)
    assert again.code == 0, again.out
    assert again.out == "3 rows: 3 good, 0 bad, 0 can be mended.\n"


def test_facts_as_json(command, rows):
    ran = command("data", "check", rows, "--json", torch=False)
    facts = json.loads(ran.out)
    assert (facts["rows"], facts["good"], facts["bad"], facts["mendable"]) == (4, 1, 3, 2)
    assert facts["training_would_stop"] is True
    kinds = {problem["kind"]: problem for problem in facts["problems"]}
    assert kinds["picture elsewhere"]["first"] == kinds["id twice"]["first"] == ["rows.jsonl:3"]
    assert (kinds["missing picture"]["rows"], kinds["missing picture"]["mendable"]) == (1, 0)
    assert all(problem["problem"] and problem["fix"] for problem in facts["problems"])


def test_tokens_are_counted_as_a_model_does(command, rows, tiny):
    ran = command("data", "check", rows, "--model", tiny(), "--max-tokens", "10", "--json")
    assert ran.code == 2, ran.err
    kinds = {problem["kind"]: problem for problem in json.loads(ran.out)["problems"]}
    assert kinds["too long"]["first"] == ["rows.jsonl:1", "rows.jsonl:2", "rows.jsonl:3"]


def test_the_copy_never_takes_the_place_of_what_is_checked(command, rows):
    before = rows.read_bytes()
    for words in (("--fixed", rows), ("--fixed", "copy.parquet"), ("--fixed", "nowhere/copy.jsonl")):
        ran = command("data", "check", rows, *words, torch=False)
        assert ran.code == 2
        assert ran.err.startswith("error: --fixed")
    assert rows.read_bytes() == before


def test_schemas_are_printed(command):
    ran = command("data", "schema", "messages", torch=False)
    assert ran.code == 0
    assert json.loads(ran.out)["required"] == ["messages"]
