"""The container and the systemd unit: what can be told of them without building or starting them."""

import configparser
import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import tyro

from cascadevl.cli.serve import Serve

ROOT = Path(__file__).parents[2]
DOCKERFILE = ROOT / "deploy" / "Dockerfile"
UNIT = ROOT / "deploy" / "cascadevl.service"


def instructions():
    """(name, arguments) of each line of the Dockerfile, continued lines joined."""
    lines = [line for line in DOCKERFILE.read_text().splitlines() if not line.lstrip().startswith("#")]
    text = "\n".join(lines).replace("\\\n", " ")
    return [(name, rest) for name, _, rest in (line.partition(" ") for line in text.splitlines() if line.strip())]


def last_stage():
    found = instructions()
    start = max(number for number, (name, _) in enumerate(found) if name == "FROM")
    return found[start:]


def listed(text):
    """The exec form, which is JSON."""
    return json.loads(text)


def served(command):
    """What `cascadevl serve` would make of these arguments."""
    assert command[:1] == ["cascadevl"] or command[0].endswith("/cascadevl")
    assert command[1] == "serve"
    return tyro.cli(Serve, args=command[2:], config=(tyro.conf.FlagCreatePairsOff,))


def test_everything_that_is_copied_into_the_image_is_there():
    copied = [shlex.split(arguments) for name, arguments in instructions() if name == "COPY"]
    sources = [each for words in copied if not words[0].startswith("--from") for each in words[:-1]]
    assert sources
    assert not [source for source in sources if not (ROOT / source).exists()]


def test_the_image_installs_extras_that_exist_and_the_torch_that_is_tested():
    text = DOCKERFILE.read_text()
    (extras,) = re.findall(r'"\.\[([\w,]+)\]"', text)
    known = (ROOT / "pyproject.toml").read_text()
    assert not [extra for extra in extras.split(",") if not re.search(rf"^{extra} = \[", known, re.MULTILINE)]
    (tested,) = re.findall(r'TESTED_TORCH="(.*)"', (ROOT / ".ci" / "setup.sh").read_text())
    assert f"ARG TORCH={tested}\n" in text
    assert "whl/cpu" in dict(line.split("=", 1) for name, line in instructions() if name == "ARG")["TORCH_INDEX"]


def test_the_container_is_run_by_nobody_in_particular_and_asks_the_engine_for_its_health():
    stage = last_stage()
    users = [arguments for name, arguments in stage if name == "USER"]
    assert users and all(int(user.split(":")[0]) > 0 for user in users)
    names = [name for name, _ in stage]
    assert names.index("USER") < names.index("ENTRYPOINT")
    (check,) = [arguments for name, arguments in stage if name == "HEALTHCHECK"]
    words = listed(check[check.index("CMD") + 3 :])
    assert "/health'" in words[-1]
    compile(words[-1], "HEALTHCHECK", "exec")


def test_the_container_serves_and_wants_a_key():
    stage = dict(last_stage())
    order = served(listed(stage["ENTRYPOINT"]) + listed(stage["CMD"]))
    assert order.api_key_env and not order.server.open_to_all
    with pytest.raises(ValueError, match="no key"):
        order.server.check_key(None)
    assert f":{order.server.port}/health" in stage["HEALTHCHECK"]
    assert stage["EXPOSE"] == str(order.server.port)


class Unit(configparser.ConfigParser):
    """A unit file, whose keys are as they are written and may stand twice."""

    def optionxform(self, optionstr):
        return optionstr


def unit():
    parser = Unit(strict=False, interpolation=None)
    parser.read(UNIT)
    return parser


def test_the_unit_serves_without_rights_and_lets_answers_finish():
    service = unit()["Service"]
    order = served(shlex.split(service["ExecStart"]))
    assert order.api_key_env and order.server.loopback
    assert service["DynamicUser"] == service["NoNewPrivileges"] == service["ProtectHome"] == "yes"
    assert service["ProtectSystem"] == "strict"
    assert service["KillMode"] == "mixed"
    assert int(service["TimeoutStopSec"]) > order.server.drain_s
    assert service["MemoryMax"].endswith("G")


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="systemd-analyze knows the unit's language")
def test_systemd_understands_the_unit(tmp_path):
    text = UNIT.read_text().replace(shlex.split(unit()["Service"]["ExecStart"])[0], sys.executable)
    (tmp_path / "cascadevl.service").write_text(text)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(tmp_path / "cascadevl.service")], capture_output=True, text=True
    )
    complaints = [line for line in done.stderr.splitlines() if "cascadevl.service" in line]
    assert (done.returncode, complaints) == (0, [])
