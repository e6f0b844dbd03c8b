"""What is loaded when: the light parts stay light."""

import subprocess
import sys
from pathlib import Path

import pytest

import cascadevl

ROOT = Path(__file__).parents[2]


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(
    "module",
    [
        "cascadevl",
        "cascadevl.cli.main",
        "cascadevl.cli.ask",
        "cascadevl.cli.doctor",
        "cascadevl.core.generation",
        "cascadevl.preprocessing.image",
        "cascadevl.preprocessing.spec_file",
        "cascadevl.checkpoints.layouts",
    ],
)
def test_light_modules_load_without_torch(module):
    ran = run(f"import sys, {module}; assert not {{'torch', 'transformers'}} & set(sys.modules), 'heavy'")
    assert ran.returncode == 0, ran.stderr


def test_help_loads_the_table_and_nothing_else():
    heavy = ("torch", "numpy", "tyro", "rich", "PIL", "huggingface_hub", "dataclasses")
    code = f"""
import sys
from cascadevl.cli.main import main
assert main(["--help"]) == 0
loaded = set({heavy!r}) & set(sys.modules)
assert not loaded, loaded
"""
    ran = run(code)
    assert ran.returncode == 0, ran.stderr


def test_library_loads_without_the_packages_of_command_line_and_extras():
    blocked = ("tyro", "rich", "av", "transformers", "pytest", "psutil")
    code = f"""
import sys
sys.modules.update(dict.fromkeys({blocked!r}))
import cascadevl
cascadevl.load, cascadevl.Bundle
"""
    ran = run(code)
    assert ran.returncode == 0, ran.stderr


def test_every_public_name_exists_and_is_documented():
    for name in cascadevl.__all__:
        assert getattr(cascadevl, name).__doc__, name
    assert set(cascadevl.__all__) <= set(dir(cascadevl))
    with pytest.raises(AttributeError, match="Egnine"):
        cascadevl.Egnine  # noqa: B018


def test_every_error_is_public():
    from cascadevl.core import errors

    ours = {name for name, kind in vars(errors).items() if isinstance(kind, type)}
    assert ours <= set(cascadevl.__all__)
