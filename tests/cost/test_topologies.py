"""Devices that are not attached; compiled for where the compilers are installed."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest

from ctclip_jax.cost import topologies
from ctclip_jax.cost.accelerators import accelerator_of
from ctclip_jax.cost.hlo import Program
from ctclip_jax.cost.kernels import kernels_of
from ctclip_jax.cost.topologies import GPU_MEMORY, topology_devices
from data_pipelines.errors import InputError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(
    ("modules", "topology", "extra"),
    [
        (["libtpu"], "v5e:2x2", "tpu"),
        (["jax_plugins.xla_cuda12", "jax_plugins.xla_cuda13"], "h200:8", "cuda"),
    ],
)
def test_a_missing_compiler_is_one_line(monkeypatch, modules, topology, extra):
    for module in modules:
        monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(InputError, match=rf"--topology: .*pip install 'ctclip-jax\[{extra}\]'"):
        topology_devices(topology)


@pytest.mark.parametrize("installed", ["xla_cuda12", "xla_cuda13"])
def test_either_gpu_compiler_will_do(monkeypatch, installed):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name.endswith(installed))
    modules = ("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12")
    topologies._require(*modules, compiler="GPU", extra="cuda")


@pytest.mark.parametrize("topology", ["v5e:3x5x7", "h300", "h200:0"])
def test_an_unknown_topology_is_one_line(topology):
    pytest.importorskip("libtpu")
    with pytest.raises(InputError, match=f"--topology: unknown topology {topology} "):
        topology_devices(topology)


# In a new process: the plugin's compiler may not know the XLA_FLAGS of the tests.
COMPILE = """
import sys
import jax
import jax.numpy as jnp
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from ctclip_jax.cost import topologies

devices = topologies.topology_devices(sys.argv[1])
sharding = NamedSharding(Mesh(devices, "x"), PartitionSpec("x"))
x = jax.ShapeDtypeStruct((4, 256, 256), jnp.bfloat16, sharding=sharding)
options = topologies.compiler_options(devices[0])
print(devices[0].device_kind, len(devices))
print(jax.jit(lambda x: x @ x).lower(x).compile(compiler_options=options).as_text())
"""


@pytest.mark.parametrize("gpu", GPU_MEMORY)
def test_compiles_for_a_gpu_that_is_not_attached(monkeypatch, gpu):
    if importlib.util.find_spec("jax_plugins") is None:
        pytest.skip("no GPU compiler: pip install 'ctclip-jax[cuda]'")
    monkeypatch.delenv("XLA_FLAGS")
    process = subprocess.run(
        [sys.executable, "-c", COMPILE, f"{gpu}:4"], cwd=ROOT, capture_output=True, text=True
    )
    assert process.returncode == 0, process.stderr
    devices, text = process.stdout.split("\n", 1)
    assert devices == f"NVIDIA {gpu.upper()} 4" and accelerator_of(devices).name == gpu.upper()
    (product,) = kernels_of(Program(text))
    assert product.flops == 2 * 256**3 and product.bytes == 2 * 256 * 256 * 2
