"""Peak arithmetic, memory and interconnect of accelerators, by jax's device kind.

Sources: for TPUs the system architecture pages of the Google Cloud TPU documentation
(cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e), for GPUs NVIDIA's data sheets, both as of 2025.
Arithmetic is that of dense matrix products in bfloat16 with float32 sums, without sparsity. The
interconnect is that of one chip, all its links together, in one direction: the ICI of a TPU (its
pages give bits per second, or both directions), NVLink, or PCI Express where there is none.

The clock of a TPU is its peak over the operations of its matrix units in a cycle: 131,072 of a v5e,
262,144 of a v4 or v5p, 524,288 of a v6e, of which libtpu's estimates for a large product reach 70 %
(v6e) to 90 % (others).
"""

import dataclasses
from collections.abc import Mapping

GIB = 2**30
RESERVED_BY_TPU = GIB // 4  # of a chip's memory, by the compiler
GPU_SHARE = 0.9  # of a GPU's memory, for programs (XLA_PYTHON_CLIENT_MEM_FRACTION; jax's is 0.75)


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Peaks of one chip.

    Attributes:
      bf16_flops: FLOP/s of products in bfloat16.
      memory_bytes: size of its memory.
      memory_bandwidth: bytes/s of its memory.
      link_bandwidth: bytes/s of the interconnect.
      float32_flops: of a GPU: FLOP/s of products in full float32, without tensor cores.
      clock_hz: of a TPU: cycles/s of its cores.
    """

    name: str
    bf16_flops: float
    memory_bytes: float
    memory_bandwidth: float
    link_bandwidth: float
    float32_flops: float | None = None
    clock_hz: float | None = None

    @property
    def usable_bytes(self) -> float:
        """Bytes of its memory that are available to programs."""
        return (
            self.memory_bytes - RESERVED_BY_TPU if self.clock_hz else GPU_SHARE * self.memory_bytes
        )


# (prefix of the device kind, accelerator). The first match counts: longer prefixes come first.
ACCELERATORS = (
    ("TPU v4", Accelerator("TPU v4", 275e12, 32 * GIB, 1228e9, 300e9, clock_hz=1.05e9)),
    ("TPU v5 lite", Accelerator("TPU v5e", 197e12, 16 * GIB, 819e9, 200e9, clock_hz=1.5e9)),
    ("TPU v5", Accelerator("TPU v5p", 459e12, 95 * GIB, 2765e9, 600e9, clock_hz=1.75e9)),
    ("TPU v6 lite", Accelerator("TPU v6e", 918e12, 32 * GIB, 1640e9, 400e9, clock_hz=1.75e9)),
    ("NVIDIA H200", Accelerator("H200", 989e12, 141e9, 4800e9, 450e9, 67e12)),
    ("NVIDIA H100 PCIe", Accelerator("H100 PCIe", 756e12, 80e9, 2000e9, 64e9, 51e12)),
    ("NVIDIA H100 NVL", Accelerator("H100 NVL", 835e12, 94e9, 3900e9, 300e9, 60e12)),
    ("NVIDIA H100", Accelerator("H100", 989e12, 80e9, 3350e9, 450e9, 67e12)),
    (
        "NVIDIA A100-SXM4-40GB",
        Accelerator("A100 40GB", 312e12, 40e9, 1555e9, 300e9, 19.5e12),
    ),
    (
        "NVIDIA A100-PCIE-40GB",
        Accelerator("A100 40GB PCIe", 312e12, 40e9, 1555e9, 32e9, 19.5e12),
    ),
    ("NVIDIA A100 80GB PCIe", Accelerator("A100 80GB PCIe", 312e12, 80e9, 1935e9, 32e9, 19.5e12)),
    ("NVIDIA A100", Accelerator("A100 80GB", 312e12, 80e9, 2039e9, 300e9, 19.5e12)),
    ("NVIDIA L40S", Accelerator("L40S", 362e12, 48e9, 864e9, 32e9, 91.6e12)),
    ("NVIDIA GeForce RTX 4090", Accelerator("RTX 4090", 165e12, 24e9, 1008e9, 32e9, 82.6e12)),
)


def accelerator_of(device_kind: str) -> Accelerator | None:
    """Returns the accelerator of a `jax.Device.device_kind`; None for a CPU or an unknown one."""
    matches = (peaks for prefix, peaks in ACCELERATORS if device_kind.startswith(prefix))
    return next(matches, None)


SI = {1e15: "P", 1e12: "T", 1e9: "G", 1e6: "M", 1e3: "k", 1.0: "", 1e-3: "m", 1e-6: "u", 1e-9: "n"}
BINARY = {2.0**40: "Ti", 2.0**30: "Gi", 2.0**20: "Mi", 2.0**10: "Ki", 1.0: ""}


def with_unit(value: float, unit: str, prefixes: Mapping[float, str] = SI) -> str:
    """Formats a quantity with the prefix that fits it: '21.4 TFLOP', '3.1 ms'; memory is BINARY."""
    factor = next((factor for factor in prefixes if value >= factor), 1.0)
    return f"{value / factor:.4g} {prefixes[factor]}{unit}"
