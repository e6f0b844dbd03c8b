"""Every case of the kernels under Triton's interpreter, in a process of its own: importing Triton settles it."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cascadevl.ops.triton import available
from tests.ops.triton_kernels.cases import CASES

pytestmark = pytest.mark.skipif(not available(), reason="Triton is not installed: pip install triton")


@pytest.fixture(scope="module")
def found() -> dict[str, str | None]:
    """Names of cases -> what went wrong."""
    # Numpy warns of NaN, which some cases are about.
    command = [sys.executable, "-W", "ignore::RuntimeWarning", "-m", "tests.ops.triton_kernels.cases", "cpu"]
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(command, env=environment, cwd=root, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr
    return dict(map(json.loads, done.stdout.splitlines()))


@pytest.mark.parametrize("name", CASES)
def test_the_kernels_are_what_torch_computes(name: str, found: dict[str, str | None]) -> None:
    assert found[name] is None, found[name]
