"""Settings of every test: eight simulated CPU devices, no silent rank promotion, no deadlines.

The first two are environment variables, set before jax is imported, so that programs that a test
starts inherit them.
"""

import atexit
import contextlib
import importlib.metadata
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path

import hypothesis
import pytest

# An example may take a second on a busy machine.
hypothesis.settings.register_profile("no deadline", deadline=None)
hypothesis.settings.load_profile("no deadline")

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ["JAX_NUMPY_RANK_PROMOTION"] = "raise"
# A program that a test starts takes twice as long where it must compile what it imports.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
# Most of the suite's time is compilation: LLVM's optimizations double it, fusion emitters triple
# it.
flags = ["--xla_force_host_platform_device_count=8", "--xla_backend_optimization_level=0"]
with contextlib.suppress(importlib.metadata.PackageNotFoundError):  # Beam's environment
    if importlib.metadata.version("jaxlib").startswith("0.10."):  # 0.11 does not know it and aborts
        flags.append("--xla_cpu_use_fusion_emitters=false")
os.environ["XLA_FLAGS"] = " ".join(flags)
# One cache for this process, the workers of pytest-xdist and all programs that tests start: a test
# compiles nothing that another one has compiled.
if "JAX_COMPILATION_CACHE_DIR" not in os.environ:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="compiled_")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"
    atexit.register(shutil.rmtree, os.environ["JAX_COMPILATION_CACHE_DIR"], ignore_errors=True)


# Modules that start programs, train, or compile the real model: `make test-fast` leaves them out.
SLOW_MODULES = (
    "benchmarks/",
    "checkpoints/test_run.py",
    "cost/test_dry_run.py",
    "demo/",
    "evaluation/metrics/test_bootstrap.py",
    "inference/",
    "models/test_ct_clip.py",
    "models/test_ct_vit.py",
    "models/test_vit.py",
    "programs/",
    "test_configs.py",
    "test_quickstart.py",
    "training/test_evaluation.py",
    "training/test_processes.py",
    "training/test_step.py",
    "training/test_train.py",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Marks the tests of SLOW_MODULES `slow`."""
    root = Path(__file__).parent
    for item in items:
        if item.path.relative_to(root).as_posix().startswith(SLOW_MODULES):
            item.add_marker("slow")


@pytest.fixture(scope="session")
def golden_dir() -> Path:
    """The folder of golden numbers."""
    return Path(__file__).parent / "golden"


@pytest.fixture
def full_disk(monkeypatch) -> Callable[[int], list[str]]:
    """What to put before a command so that no file grows beyond some KiB, as on a full disk.

    Nor does it write bytecode: Python would leave it torn, for every later program.
    """
    monkeypatch.setenv("PYTHONDONTWRITEBYTECODE", "1")
    return lambda size: ["bash", "-c", f'ulimit -f {size} && exec "$@"', "full_disk"]


@pytest.fixture(scope="session")
def golden_metrics(golden_dir) -> dict:
    """Labels, scores and latents, with the metrics that the published scripts make of them."""
    import numpy as np

    with np.load(golden_dir / "metrics.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def golden(golden_dir) -> dict:
    """The tiny published model: its state dict, inputs, and every output (tiny.json says more)."""
    import numpy as np

    with np.load(golden_dir / "tiny.npz") as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def tiny(golden):
    """The tiny published model as (model, variables, batch)."""
    from ctclip_jax.checkpoints.torch_convert import import_weights
    from ctclip_jax.checkpoints.torch_geometry import Geometry
    from ctclip_jax.models.ct_clip import CTCLIP

    state = {name[6:]: value for name, value in golden.items() if name.startswith("state/")}
    geometry = Geometry(image_size=40, patch_size=10, frames=20, text_heads=2)
    imported = import_weights(state, source="tiny.npz", geometry=geometry)
    batch = {
        "image": golden["in/volume"][:, 0],
        "input_ids": golden["in/input_ids"],
        "attention_mask": golden["in/attention_mask"],
    }
    return CTCLIP(imported.config), imported.variables, batch
