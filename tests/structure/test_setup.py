import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]

PRETEND = """
set -euo pipefail
ROOT=$1
. "$2/.ci/setup.sh"
make_venv() { mkdir -p "$ROOT/.venv"; }
install_torch() { :; }
pip() { echo "pip $*"; }
"""


def bash(folder: Path, commands: str) -> list[str]:
    """Lines that `commands` print in a house with these two files, nothing being installed."""
    (folder / "pyproject.toml").write_text("[project]\n")
    (folder / "constraints.txt").write_text("numpy==2\n")
    script = ["bash", "-c", PRETEND + commands, "bash", str(folder), str(ROOT)]
    return subprocess.run(script, capture_output=True, text=True, check=True).stdout.splitlines()


def test_a_matching_stamp_installs_nothing(tmp_path):
    assert len(bash(tmp_path, "prepare dev; prepare dev; prepare")) == 1


def test_more_extras_or_changed_files_install_again(tmp_path):
    lines = bash(tmp_path, 'prepare; prepare dev; echo >> "$ROOT/constraints.txt"; prepare')
    assert [line.rpartition("--editable ")[2] for line in lines] == [str(tmp_path), *[f"{tmp_path}[dev]"] * 2]


def test_a_failed_installation_leaves_no_stamp(tmp_path):
    assert bash(tmp_path, "pip() { echo tried; return 1; }; (prepare) || (prepare) || true") == [
        "tried",
        "tried",
    ]
    assert not (tmp_path / ".venv" / ".cascadevl-stamp").exists()


@pytest.mark.parametrize("script", ["run", "test", ".ci/run"])
def test_scripts_can_be_executed_and_parse(script):
    path = ROOT / script
    assert path.stat().st_mode & 0o111
    subprocess.run(["bash", "-n", str(path)], check=True)
