"""Where a kernel runs: the platform and the mesh of the context.

Code that shards a batch wraps the model in `use_mesh`, inside jit or around the jitted call: when
the model is traced, the kernels then know the devices that a program is compiled for, which a dry
run does not have, and run on each device's rows.
"""

import contextlib
from collections.abc import Callable

import jax
from jax.experimental.layout import Layout, with_layout_constraint
from jax.experimental.pallas import tpu as pltpu
from jax.sharding import AbstractMesh, Mesh
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.shapes import Array

ROWS, WHOLE = "rows", "whole"
LANES = 128  # of a TPU's vector registers; widths of matrix units are multiples of it


def use_mesh(mesh: Mesh | AbstractMesh) -> contextlib.AbstractContextManager:
    """The context in which kernels are placed on `mesh`, the batch sharded over all its axes."""
    return jax.sharding.use_abstract_mesh(mesh.abstract_mesh)


def platform() -> str:
    """Returns 'cpu', 'gpu' or 'tpu': of the mesh of the context, or of the devices here."""
    return _device(jax.sharding.get_abstract_mesh()).platform


def is_interpreted() -> bool:
    """Whether the Pallas kernels for TPUs are interpreted: on CPUs, for tests."""
    here = platform()
    if here == "gpu":
        raise ValueError("'pallas' is for TPUs; got a GPU")
    return here == "cpu"


def vmem_bytes(mesh: AbstractMesh) -> int:
    """VMEM that a kernel may fill on a core of `mesh`, or of the devices here.

    Cores up to a TPU v4's have 16 MiB, and those since at least 64.
    """
    is_small = _device(mesh).device_kind.startswith(("TPU v2", "TPU v3", "TPU v4"))
    return (16 if is_small else 64) * 2**20


def tpu_parameters(mesh: AbstractMesh, *semantics: str) -> pltpu.CompilerParams:
    """Parameters of a TPU kernel: whether each axis of its grid is 'parallel' or 'arbitrary'."""
    return pltpu.CompilerParams(dimension_semantics=semantics, vmem_limit_bytes=vmem_bytes(mesh))


def has_fused_attention() -> bool:
    """Whether cuDNN has its fused attention here: an NVIDIA GPU of compute capability 8.0 or more.

    Only a device that is here tells its capability; one to compile for is recent by assumption.
    """
    kind = _device(jax.sharding.get_abstract_mesh()).device_kind
    here = next((device for device in jax.devices() if device.device_kind == kind), None)
    # V100 and T4 are called "Tesla".
    return kind.startswith("NVIDIA") and float(getattr(here, "compute_capability", 8.0)) >= 8.0


def _device(mesh: AbstractMesh) -> jax.sharding.AbstractDevice | jax.Device:
    return mesh.abstract_device or jax.devices()[0]


def row_major(x: Array) -> Array:
    """The array, in the memory of a GPU in the order of its axes; rows are sharded.

    XLA otherwise spreads the order that one transposed product prefers over a whole tower, which
    then transposes its tokens before and after every other operation.
    """
    if platform() != "gpu":
        return x
    layout = Layout(tuple(range(x.ndim)))
    # Within each device: XLA would gather the array, if it had to partition the constraint.
    place = on_each_device(
        lambda x: (with_layout_constraint(x, layout),),
        jax.sharding.get_abstract_mesh(),
        in_specs=(ROWS,),
        out_specs=(ROWS,),
    )
    return place(x)[0]


def on_each_device(
    function: Callable[..., tuple],
    mesh: AbstractMesh,
    *,
    in_specs: tuple[str, ...],
    out_specs: tuple[str, ...],
) -> Callable[..., tuple]:
    """Returns `function` on each device's rows; XLA cannot partition a Pallas call by itself.

    ROWS are sharded along their first axis. Every device has the WHOLE arguments, and WHOLE results
    are summed over the devices.
    """
    if mesh.empty or mesh.size == 1:
        return function

    def sharded(*args):
        sizes = [x.shape[0] for x, spec in zip(args, in_specs, strict=True) if spec == ROWS]
        # Rows that do not divide are computed on every device.
        axes = () if any(size % mesh.size for size in sizes) else mesh.axis_names
        specs = {ROWS: P(axes), WHOLE: P()}

        def local(*args):
            results = zip(function(*args), out_specs, strict=True)
            return tuple(x if spec == ROWS else jax.lax.psum(x, axes) for x, spec in results)

        return jax.shard_map(
            local,
            mesh=mesh,
            in_specs=tuple(specs[spec] for spec in in_specs),
            out_specs=tuple(specs[spec] for spec in out_specs),
            check_vma=False,  # a Pallas call does not say over which axes its results vary
        )(*args)

    return sharded
