"What every test shares."
import os
from pathlib import Path

import pytest

# Two pytest workers on two cores: one thread each is faster than two that fight. Set before anything imports torch.
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("MPLBACKEND", "agg")

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def root() -> Path:
    "The top folder of the project"
    return ROOT
