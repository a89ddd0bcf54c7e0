"""Peak arithmetic, memory size and interconnect of accelerators, by jax's device kind.

Sources: for TPUs the system architecture pages of the Google Cloud TPU documentation
(cloud.google.com/tpu/docs/v4, /v5e, /v5p, /v6e), for GPUs NVIDIA's data sheets, both as of 2025.
Arithmetic is that of dense matrix products in bfloat16 with float32 sums, without sparsity. The
interconnect is that of one chip, all its links together, in one direction: the ICI of a TPU (its
pages give bits per second, or both directions), NVLink, or PCI Express where there is none.
"""

import dataclasses

GIB = 2**30


@dataclasses.dataclass(frozen=True)
class Accelerator:
    """Peaks of one chip: FLOP/s in bfloat16, bytes of memory, and bytes/s of the interconnect."""

    name: str
    bf16_flops: float
    memory_bytes: float
    link_bandwidth: float


# (prefix of the device kind, accelerator). The first match counts: longer prefixes come first.
ACCELERATORS = (
    ("TPU v4", Accelerator("TPU v4", 275e12, 32 * GIB, 300e9)),
    ("TPU v5 lite", Accelerator("TPU v5e", 197e12, 16 * GIB, 200e9)),
    ("TPU v5", Accelerator("TPU v5p", 459e12, 95 * GIB, 600e9)),
    ("TPU v6 lite", Accelerator("TPU v6e", 918e12, 32 * GIB, 400e9)),
    ("NVIDIA H200", Accelerator("H200", 989e12, 141e9, 450e9)),
    ("NVIDIA H100 PCIe", Accelerator("H100 PCIe", 756e12, 80e9, 64e9)),
    ("NVIDIA H100 NVL", Accelerator("H100 NVL", 835e12, 94e9, 300e9)),
    ("NVIDIA H100", Accelerator("H100", 989e12, 80e9, 450e9)),
    ("NVIDIA A100-SXM4-40GB", Accelerator("A100 40GB", 312e12, 40e9, 300e9)),
    ("NVIDIA A100-PCIE-40GB", Accelerator("A100 40GB PCIe", 312e12, 40e9, 32e9)),
    ("NVIDIA A100 80GB PCIe", Accelerator("A100 80GB PCIe", 312e12, 80e9, 32e9)),
    ("NVIDIA A100", Accelerator("A100 80GB", 312e12, 80e9, 300e9)),
    ("NVIDIA L40S", Accelerator("L40S", 362e12, 48e9, 32e9)),
    ("NVIDIA GeForce RTX 4090", Accelerator("RTX 4090", 165e12, 24e9, 32e9)),
)


def accelerator_of(device_kind: str) -> Accelerator | None:
    """Returns the accelerator of a `jax.Device.device_kind`; None for a CPU or an unknown one."""
    matches = (peaks for prefix, peaks in ACCELERATORS if device_kind.startswith(prefix))
    return next(matches, None)
