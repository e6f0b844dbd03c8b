"""What holds for all tests: one thread, no network, no deadline, chance that is the same each time."""

import os
import random

# Before any import that reads them; subprocesses inherit them.
os.environ.update(HF_HUB_OFFLINE="1", OMP_NUM_THREADS="1", TOKENIZERS_PARALLELISM="false")

import numpy
import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)

SEED = int(os.environ.get("CASCADEVL_TEST_SEED", "0"))
"""Another number draws everything anew: no test may hang on its luck. With 0, what fails once fails again."""

# No deadline: no timed assertion in this suite.
settings.register_profile("house", deadline=None, derandomize=SEED == 0)
settings.load_profile("house")


@pytest.fixture(autouse=True)
def _seeds() -> None:
    """The order in which workers meet the tests decides nothing."""
    random.seed(SEED)
    numpy.random.seed(SEED)
    torch.manual_seed(SEED)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU"))
