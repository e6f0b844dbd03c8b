"""`cascadevl serve` as a process: what it says, what it refuses, how it ends."""

import json
import os
import re
import signal
import subprocess
import sys
import urllib.request

import pytest

from cascadevl.cli.serve import read_key
from cascadevl.core.errors import ConfigError


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--host", "0.0.0.0"], "--api-key-env"),
        (["--api-key-env", "NO_SUCH_VARIABLE"], "holds no key"),
        (["--port", "70000"], "0 to 65535"),
        (["--host", "203.0.113.7", "--open-to-all"], "Cannot listen"),
        (["--media-folder", "nowhere"], "no such folder"),
        (["--max-tiles", "0"], "must be positive"),
        (["--dtype", "int8"], "bfloat16"),
        (["--device", "tpu"], "cuda:N"),
        (["--cache-bytes", "4"], "expected bytes"),
        (["--vision-bytes", "-1"], "vision_bytes is -1"),
        (["--host", ""], "host is empty"),
        (["--model", "no/such/folder"], "no/such/folder"),
        (["--adapter", "a", "one", "--adapter", "b", "other"], "--adapter once"),
    ],
)
def test_mistakes_are_found_before_torch(command, words, said):
    ran = command("serve", *words, torch=False)
    assert ran.code == 2, ran.err
    assert said in ran.err


@pytest.mark.parametrize("key", ["ключ", "a\nb", "a\u00a0b"])
def test_a_key_that_no_header_can_hold_is_refused(key, monkeypatch):
    monkeypatch.setenv("KEY", key)
    with pytest.raises(ConfigError, match="cannot send in a header"):
        read_key("KEY")


def test_help_needs_no_torch(command):
    ran = command("serve", "--help", torch=False)
    assert ran.code == 0
    assert "--cache-bytes" in ran.out


def test_it_says_where_it_is_answers_and_ends_with_sigterm(tiny):
    words = [sys.executable, "-m", "cascadevl", "serve", "--model", str(tiny(0)), "--port", "0"]
    environment = {**os.environ, "KEY": "secret"}
    with subprocess.Popen(
        [*words, "--api-key-env", "KEY"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    ) as process:
        assert process.stdout is not None
        try:
            line = process.stdout.readline()
            found = re.fullmatch(r"cascadevl serves (\S+) at (http://127\.0\.0\.1:\d+)/v1 \(spec (\w+)\)\n", line)
            assert found, line
            request = urllib.request.Request(f"{found[2]}/v1/models", headers={"Authorization": "Bearer secret"})
            with urllib.request.urlopen(request, timeout=60) as response:
                (model,) = json.load(response)["data"]
            assert (model["id"], model["spec_hash"]) == (found[1], found[3])
        finally:
            process.send_signal(signal.SIGTERM)
            _, err = process.communicate(timeout=60)
        assert process.returncode == 0, err
        assert "Traceback" not in err
