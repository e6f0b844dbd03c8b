import json
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from cascadevl.cli import batch
from cascadevl.core.errors import ConfigError, MediaError, MessageError
from cascadevl.core.generation import Sampling
from tests.cli.scripted import Scripted

DEFAULTS = batch.Defaults(model="nano", sampling=Sampling(max_new_tokens=7))


def row(custom_id: str, question: str = "What?", **body) -> dict:
    body = {"messages": [{"role": "user", "content": question}], **body}
    return {"custom_id": custom_id, "method": "POST", "url": batch.URL, "body": body}


def write(path: Path, rows: list) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def answer(bundle: Scripted, source: Path, target: Path) -> list[dict]:
    """`answer_file` with a scripted bundle in place of a loaded one."""
    rows = batch.read_rows(source)
    answered, whole_bytes = batch.read_answers(target, rows)
    waiting = [row for row in rows if row.custom_id not in answered]
    with source.open("rb") as questions, target.open("ab") as answers:
        answers.truncate(whole_bytes)
        batch.answer_rows(bundle, questions, answers, waiting, DEFAULTS)  # type: ignore[arg-type]
    return read(target)


def test_rows_become_chat_completions_in_order(tmp_path):
    source = write(tmp_path / "in.jsonl", [row("a"), row("b", temperature=0.5, max_tokens=3, stop=["x"])])
    bundle = Scripted(["One.", "Two words."])
    first, second = answer(bundle, source, tmp_path / "out.jsonl")
    assert (first["custom_id"], second["custom_id"]) == ("a", "b")
    assert first["error"] is None
    assert first["response"]["status_code"] == 200
    body = second["response"]["body"]
    assert body["object"] == "chat.completion"
    assert body["choices"][0]["message"] == {"role": "assistant", "content": "Two words."}
    assert body["usage"]["total_tokens"] == 9 + 2
    assert body["spec_hash"] == "0123456789abcdef"
    assert bundle.asked[0][1] == Sampling(max_new_tokens=7)
    assert bundle.asked[1][1] == Sampling(max_new_tokens=3, temperature=0.5, stop=("x",))


def test_a_bad_row_never_stops_its_neighbours(tmp_path, capsys):
    rows = [row("fine"), row("mistake"), row("ours"), row("fine too")]
    source = write(tmp_path / "in.jsonl", rows)
    bundle = Scripted(["Yes.", MediaError("no picture."), RuntimeError("broken"), "Yes."])
    found = answer(bundle, source, tmp_path / "out.jsonl")
    assert [line["response"]["status_code"] for line in found] == [200, 400, 500, 200]
    assert found[1]["error"] == {
        "type": "invalid_request_error",
        "code": "MediaError",
        "message": "no picture.",
    }
    assert found[2]["error"]["message"] == "broken"
    assert "RuntimeError" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("bad", "said"),
    [
        (row("a", temprature=1), "Did you mean 'temperature'?"),
        (row("a", zzz=1), "Known: model, messages"),
        (row("a", temperature="hot"), "'temperature' must be int or float, got 'hot'"),
        (row("a", max_tokens=True), "'max_tokens' must be int"),
        (row("a", stop=[1]), "'stop' must be str or list"),
        (row("a", top_p=7), "top_p must lie in"),
        (row("a", model="other"), "--model"),
        (row("a", messages=[{"role": "robot", "content": "x"}]), "Unknown role 'robot'"),
        ({**row("a"), "url": "/v1/embeddings"}, "'url' must be"),
        ({**row("a"), "method": "GET"}, "'method' must be"),
        ({"custom_id": "a"}, "'body' with 'messages'"),
        ({"custom_id": "a", "body": {}}, "'body' with 'messages'"),
    ],
)
def test_what_a_body_may_not_say_is_refused_with_a_hint(bad, said):
    status, body = batch.answer_row(Scripted(["x"]), bad, "batch_req_0", DEFAULTS)  # type: ignore[arg-type]
    assert status == 400
    assert said in body["error"]["message"]


def test_null_in_a_body_means_not_given():
    _, sampling = batch.read_body(row("a", temperature=None, seed=None), DEFAULTS)
    assert sampling == DEFAULTS.sampling


@pytest.mark.parametrize(
    ("lines", "said"),
    [
        (['{"custom_id": "a"}', '{"custom_id": "b"', '{"custom_id": "c"}'], "line 2 is not JSON"),
        (['{"custom_id": "a"}', "", '{"custom_id": "a"}'], "lines 1 and 3"),
        (['{"id": "a"}'], "line 1: expected an object with a text 'custom_id'"),
        (["[1]"], "line 1"),
        (["[" * 100_000], "line 1"),
        (["", ""], "holds no rows"),
    ],
)
def test_a_bad_input_file_is_refused_by_line_before_anything_starts(lines, said, tmp_path):
    source = tmp_path / "in.jsonl"
    source.write_text("\n".join(lines))
    with pytest.raises(MessageError, match=said):
        batch.read_rows(source)


def test_resumed_equals_uninterrupted(tmp_path):
    source = write(tmp_path / "in.jsonl", [row(name) for name in "abcd"])
    whole = answer(Scripted(["1", "2", "3", "4"]), source, tmp_path / "whole.jsonl")

    class Interrupted(Scripted):
        def generate(self, messages, sampling=None, *, max_tiles=None):
            if len(self.asked) == 2:
                raise KeyboardInterrupt
            return super().generate(messages, sampling, max_tiles=max_tiles)

    parts = tmp_path / "parts.jsonl"
    with pytest.raises(KeyboardInterrupt):
        answer(Interrupted(["1", "2"]), source, parts)
    assert len(read(parts)) == 2
    resumed = answer(Scripted(["3", "4"]), source, parts)
    for line in (*whole, *resumed):
        line["response"]["body"].pop("created")
    assert resumed == whole


def test_a_torn_last_line_is_answered_again(tmp_path):
    source = write(tmp_path / "in.jsonl", [row("a"), row("b")])
    target = tmp_path / "out.jsonl"
    answer(Scripted(["1", "2"]), source, target)
    lines = target.read_bytes().splitlines(keepends=True)
    for cut in (1, len(lines[1]) // 2, len(lines[1]) - 1):
        target.write_bytes(lines[0] + lines[1][:cut])
        found = answer(Scripted(["again"]), source, target)
        assert [line["custom_id"] for line in found] == ["a", "b"]
        assert found[1]["response"]["body"]["choices"][0]["message"]["content"] == "again"


def test_what_was_answered_survives_a_kill(tmp_path):
    source = write(tmp_path / "in.jsonl", [row(str(i)) for i in range(50)])
    target = tmp_path / "out.jsonl"
    script = """
        import sys, time
        from pathlib import Path
        from tests.cli.scripted import Scripted
        from tests.cli.test_batch import answer

        class Slow(Scripted):
            def generate(self, *arguments, **options):
                print(len(self.asked), flush=True)
                time.sleep(0.02)
                return super().generate(*arguments, **options)

        answer(Slow(["x"] * 50), Path(sys.argv[1]), Path(sys.argv[2]))
    """
    process = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(script), str(source), str(target)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout
    for line in process.stdout:
        if line == "3\n":
            process.send_signal(signal.SIGKILL)
            break
    process.stdout.close()
    process.wait()
    done = len(target.read_text().splitlines())
    assert 3 <= done < 50
    bundle = Scripted(["y"] * 50)
    assert [line["custom_id"] for line in answer(bundle, source, target)] == [str(i) for i in range(50)]
    assert len(bundle.asked) == 50 - done


def test_an_output_of_other_questions_is_left_alone(tmp_path):
    source = write(tmp_path / "in.jsonl", [row("a"), row("b")])
    target = tmp_path / "out.jsonl"
    answer(Scripted(["1", "2"]), source, target)
    before = target.read_bytes()
    write(source, [row("a", "Changed?"), row("b")])
    with pytest.raises(ConfigError, match="line 1: not an answer"):
        answer(Scripted(["1"]), source, target)
    with pytest.raises(ConfigError, match="not an answer"):
        batch.read_answers(source, batch.read_rows(source))
    assert target.read_bytes() == before


def test_text_that_utf8_cannot_hold_survives(tmp_path):
    source = write(tmp_path / "in.jsonl", [row("\ud800")])
    found = answer(Scripted(["é\ud800"]), source, tmp_path / "out.jsonl")
    assert found[0]["custom_id"] == "\ud800"
    assert found[0]["response"]["body"]["choices"][0]["message"]["content"] == "é\ud800"


def test_batch_from_the_command_line(command, tiny, picture, tmp_path):
    parts = [{"type": "image_url", "image_url": {"url": str(picture)}}, {"type": "text", "text": "What?"}]
    rows = [row("text"), row("picture", messages=[{"role": "user", "content": parts}]), row("bad", zzz=1)]
    write(tmp_path / "in.jsonl", rows)
    words = ("ask", "--model", tiny(), "--max-new-tokens", "3", "--batch", "in.jsonl", "out.jsonl")
    ran = command(*words)
    assert ran.code == 0, ran.err
    assert ran.out == ""
    assert "2 answered, 1 refused, 0 failed" in ran.err
    found = read(tmp_path / "out.jsonl")
    assert [line["response"]["status_code"] for line in found] == [200, 200, 400]
    assert found[1]["response"]["body"]["usage"]["visual_tokens"] > 0
    again = command(*words, torch=False)
    assert again.code == 0, again.err
    assert "All 3 rows" in again.err


@pytest.mark.parametrize(
    ("lines", "target", "said"),
    [
        (['{"custom_id": "a"}'] * 2, "out.jsonl", "lines 1 and 2"),
        (['{"custom_id": "a"}'], "no/out.jsonl", "does not exist"),
        (['{"custom_id": "a"}'], "in.jsonl", "not an answer"),
    ],
)
def test_batch_mistakes_exit_with_2_and_write_nothing(lines, target, said, command, tmp_path):
    (tmp_path / "in.jsonl").write_text("".join(line + "\n" for line in lines))
    ran = command("ask", "--batch", "in.jsonl", target, torch=False)
    assert ran.code == 2, ran.err
    assert said in ran.err
    assert [path.name for path in tmp_path.iterdir()] == ["in.jsonl"]
