import json
import re
import tomllib
from pathlib import Path

from cascadevl.cli import doctor


def test_doctor_works_without_torch(command):
    ran = command("doctor", torch=False)
    assert ran.code == 0, ran.err
    assert re.search("^torch +missing", ran.out, re.MULTILINE)
    facts = json.loads(command("doctor", "--json", torch=False).out)
    assert facts["dtype_auto"] is None
    assert facts["cpu"]["cores"] >= 1


def test_doctor_says_what_auto_means_here_and_why():
    facts = doctor.examine()
    assert facts["dtype_auto"]["dtype"] in ("float32", "bfloat16")
    assert facts["dtype_auto"]["reason"]
    assert any(line.startswith("dtype auto") for line in doctor.lines(facts))


def test_the_hub_is_asked_only_on_demand(monkeypatch):
    def refuse(*arguments, **options):
        raise AssertionError("the network was used")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    assert "HF_HUB_OFFLINE" in doctor.hub(network=True)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    assert "--network" in doctor.hub(network=False)


def test_an_unreachable_hub_is_a_line_and_no_error(monkeypatch):
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    assert "not reachable" in doctor.hub(network=True)


def test_every_extra_says_what_it_unlocks():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    assert set(doctor.EXTRAS) == set(project["optional-dependencies"])


def test_a_missing_package_of_an_extra_is_named(monkeypatch):
    monkeypatch.setattr(doctor, "declared_extras", lambda: {"dev": ["pytest", "no-such-package"]})
    assert doctor.extras()["dev"]["missing"] == ["no-such-package"]
    facts = {**doctor.examine(), "extras": doctor.extras()}
    assert any("pip install 'cascadevl[dev]' unlocks" in line for line in doctor.lines(facts))
