"""What holds for all tests: one thread, no network, no deadline."""

import os

# Before any import that reads them; subprocesses inherit them.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

# No deadline: no timed assertion in this suite. What fails in CI must fail again at home.
settings.register_profile("house", deadline=None, derandomize="CI" in os.environ)
settings.load_profile("house")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
