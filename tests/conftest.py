"""Settings of every test: eight simulated CPU devices, and no silent rank promotion.

They are environment variables, set before jax is imported, so that programs that a test starts
inherit them.
"""

import os
from pathlib import Path

import pytest

os.environ["JAX_PLATFORMS"] = "cpu"
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden numbers."""
    return Path(__file__).parent / "golden"
