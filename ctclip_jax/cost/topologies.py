"""Devices to compile for that are not attached: TPU slices by libtpu, NVIDIA GPUs by XLA:GPU."""

import contextlib
import importlib.util
import os
import re

import jax
from jax.experimental import topologies

from data_pipelines.errors import InputError

# bytes/s and bytes of the memory of the GPUs that programs can be compiled for (SXM modules).
GPU_MEMORY = {
    "h100": (3_352_320_000_000, 84_942_979_072),
    "h200": (4_800_000_000_000, 151_397_597_184),
}
# A GpuTargetConfigProto as XLA describes these cards (xla/backends/gpu/target_config/specs).
HOPPER = """
gpu_device_info {{
  name: "NVIDIA {name}" device_vendor: "NVIDIA Corporation" device_address_bits: 64
  platform_version: "Compute Capability 9.0a"
  cuda_compute_capability {{ major: 9 feature_extension: ACCELERATED_FEATURES }}
  core_count: 132 fpus_per_core: 128 clock_rate_ghz: 1.98 l2_cache_size: 52428800
  memory_bandwidth: {bandwidth} device_memory_size: {memory} ecc_enabled: true
  pcie_bandwidth: 34359738368
  threads_per_warp: 32 threads_per_block_limit: 1024 threads_per_core_limit: 2048
  thread_dim_limit_x: 1024 thread_dim_limit_y: 1024 thread_dim_limit_z: 64
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448
  shared_memory_per_core: 233472
  registers_per_block_limit: 65536 registers_per_core_limit: 65536
  driver_version: "13.0.0" runtime_version: "13.0.0" compile_time_toolkit_version: "13.0.0"
  dnn_version: "9.10.0"
}}
platform_name: "CUDA" device_description_str: "NVIDIA {name}"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
"""
# Autotuning runs kernels on a device, and Triton's products need it; cuBLAS chooses for itself.
GPU_COMPILER_OPTIONS = {"xla_gpu_autotune_level": 0, "xla_gpu_enable_triton_gemm": False}

HOST_WITHOUT_TPU = {
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_ACCELERATOR_TYPE": "v5litepod-8",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def topology_devices(topology: str) -> list[jax.Device]:
    """Returns devices that need not be attached.

    `topology` is a TPU slice, such as 'v5p:2x2x1', or the GPUs of one host: 'h200', 'h200:8'.
    """
    gpu = re.fullmatch(rf"({'|'.join(GPU_MEMORY)})(?::([1-9]\d*))?", topology)
    if gpu:
        _require("jax_plugins.xla_cuda13", "jax_plugins.xla_cuda12", compiler="GPU", extra="cuda")
        options = {
            "topology_name": "",
            "target_config": _target_config(gpu[1]),
            "topology": f"1x1x{gpu[2] or 1}",  # slices x hosts x GPUs
        }
    else:
        _require("libtpu", compiler="TPU", extra="tpu")
        # There is no TPU: libtpu must not look for one, warn that there is none, or lock it.
        for name, value in HOST_WITHOUT_TPU.items():
            os.environ.setdefault(name, value)
        options = {"topology_name": topology}
    # This process compiles and runs nothing: it must not take devices that are here, and the CUDA
    # plugin must not look for a driver.
    jax.config.update("jax_platforms", "cpu")
    try:
        return topologies.get_topology_desc(platform="cuda" if gpu else "tpu", **options).devices
    except (jax.errors.JaxRuntimeError, NotImplementedError, ValueError) as error:
        cause = str(error).strip().splitlines()[0]
        raise InputError(
            f"--topology: unknown topology {topology} ({cause}); expected a TPU slice like v5e:4x4,"
            f" or GPUs of one host like {' or '.join(GPU_MEMORY)}:8"
        ) from error


def compiler_options(device: jax.Device) -> dict | None:
    """Returns XLA's options for a device of `topology_devices`; None: its defaults."""
    return GPU_COMPILER_OPTIONS if device.platform == "gpu" else None


def _require(*modules: str, compiler: str, extra: str) -> None:
    """Raises InputError if none of `modules` is installed."""
    for module in modules:
        # find_spec raises an error if the parent is missing.
        with contextlib.suppress(ImportError):
            if importlib.util.find_spec(module):
                return
    raise InputError(
        f"--topology: the {compiler} compiler is missing: pip install 'ctclip-jax[{extra}]'"
    )


def _target_config(gpu: str) -> str:
    bandwidth, memory = GPU_MEMORY[gpu]
    return HOPPER.format(name=gpu.upper(), bandwidth=bandwidth, memory=memory)
