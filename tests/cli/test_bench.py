"""`cascadevl bench`: its table, its sums, its mistakes."""

import json
import typing

import pytest

from cascadevl.cli.bench import DTYPES, KV, BenchOrder, row
from cascadevl.cli.main import main
from cascadevl.core.precision import WEIGHT_FORMATS
from cascadevl.engine.bench import Work
from cascadevl.ops.formats import FORMATS
from cascadevl.ops.kv_formats import KVFormat


def test_the_formats_told_are_those_of_the_tables():
    assert tuple(FORMATS) == WEIGHT_FORMATS and not set(WEIGHT_FORMATS) & set(DTYPES)
    assert ("auto", *typing.get_args(KVFormat)) == KV


def test_a_row_is_the_median_and_its_share_of_the_bound():
    def told(prefill_s, decode_s, peak):
        return {
            "prefill_s": prefill_s, "decode_s": decode_s, "decoded": 36, "decode_cpu_s": 6.0,
            "first_token_s": prefill_s / 2, "prefill_cpu_s": 1.0, "peak_bytes": peak,
        }  # fmt: skip

    rounds = [told(100, 100, 5e6), told(2, 9, 7e6), told(4, 18, 8e6), told(30, 90, 9e6)]
    bounds = {"prefill": {"seconds": 1.0, "by": "operations"}, "decode": {"seconds": 0.5, "by": "bytes"}}
    found = row(Work(batch=4, prompt=100, tokens=10), rounds, bounds)
    assert found["prefill_tokens_per_s"] == 100 and found["ttft_ms"] == 2000  # the first round warms up
    assert found["decode_tokens_per_s"] == 2 and found["ms_per_token"] == 2000
    assert found["decode_tokens_per_cpu_s"] == 6 and found["peak_mb"] == 5
    assert found["bounds"]["prefill"]["share"] == 0.25 and found["bounds"]["prefill"]["per_s"] == 400
    assert found["bounds"]["decode"]["share"] == 0.25 and found["bounds"]["decode"]["per_s"] == 8


@pytest.mark.slow
def test_a_tiny_model_is_measured_in_two_precisions(command, tiny, tmp_path):
    words = ["--weights", "float32", "int8", "--batch", "2", "--prompt", "12", "--tokens", "3", "--rounds", "1"]
    ran = command("bench", "--model", tiny(), *words, "--images", "1", "--tiles", "1", "--json", "out.json")
    assert ran.code == 0, ran.err
    assert "float32" in ran.out and "int8" in ran.out and "of its bound" in ran.out and "━" not in ran.out
    found = json.loads((tmp_path / "out.json").read_text())
    assert [told["weights"] for told in found["rows"]] == ["float32", "int8"]
    whole, few = (told["bounds"]["decode"]["num_bytes"] for told in found["rows"])
    assert few < whole
    for told in found["rows"]:
        assert told["prefill_tokens_per_s"] > 0 and told["decode_tokens_per_s"] > 0 and told["tiles_per_s"] > 0
        assert set(told["bounds"]) == {"prefill", "decode", "tower"}


@pytest.mark.parametrize(
    ("words", "problem"),
    [
        (["--weights", "int5"], "'int5' is no format"),
        (["--kv", "int2"], "'int2' is no format"),
        (["--tokens", "1"], "tokens must be at least 2"),
        (["--prompt", "0"], "prompt must be at least 1"),
        (["--batch", "0"], "batch must be at least 1"),
        (["--batch", "2", "2"], "values that differ"),
        (["--threads", "4096"], "threads: this process may use"),
        (["--images", "-1"], "images must be at least 0"),
        (["--json", "nowhere/a.json"], "no folder"),
        (["--model", "nobody"], "nobody"),
    ],
)
def test_mistakes_are_told(capsys, words, problem):
    try:
        code = main(["bench", *words])
    except SystemExit as end:  # what is wrong with a single value, tyro tells in a box
        code = end.code
    assert code == 2
    assert problem in " ".join(capsys.readouterr().err.split())


def test_a_mistake_is_found_without_torch(command):
    ran = command("bench", "--weights", "int5", torch=False)
    assert ran.code == 2 and "int4-g64" in ran.err


@pytest.mark.slow
def test_a_precision_that_cannot_be_loaded_ends_all(command, tiny):
    # The tiny model's rows cannot be cut into groups of 128.
    ran = command("bench", "--model", tiny(), "--weights", "int4-g128", "--rounds", "1")
    assert ran.code == 2 and "Traceback" not in ran.err and "groups" in ran.err


def test_the_defaults_are_what_the_tables_of_engines_compare():
    order = BenchOrder()
    assert (order.prompt, order.tokens, order.batch) == (512, 128, (1, 8))
