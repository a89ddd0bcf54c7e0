"""Device mesh and sharding rules: which axis of an array is sharded over which mesh axis."""

import collections
import dataclasses

import jax
import numpy as np
from jax.experimental import mesh_utils
from jax.sharding import AxisType, Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common import trees
from ctclip_jax.common.configs import PositiveInt
from data_pipelines.errors import InputError

# The first match counts; without one an array is replicated. Kernels are (in, out), those of blocks
# have a leading layer axis. Patterns are searched in the whole name, so that Adam's moments
# ("opt/mu/...") are sharded like their parameters.
RULES = (
    (r"image_projection/kernel$", P("fsdp", None)),
    (r"text/embed/word/embedding$", P(None, "fsdp")),
    (r"blocks/peg/kernel$", P()),
    (r"blocks/.*down/kernel$", P(None, None, "fsdp")),
    (r"blocks/.*kernel$", P(None, "fsdp", None)),
)


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Sizes of the mesh axes: `data` shards the batch, `fsdp` the batch and the large kernels.

    `data` = -1 is the number of devices divided by `fsdp`.
    """

    data: int
    fsdp: PositiveInt


def make_mesh(config: MeshConfig, *, devices: list[jax.Device] | None = None) -> Mesh:
    """Returns the ('data', 'fsdp') mesh over `devices` (default: all of them).

    With several slices of TPUs (or hosts of GPUs, which jax calls slices too), `data` spans the
    slices and `fsdp`, which sends more, stays inside one.
    """
    devices = jax.devices() if devices is None else devices
    data = len(devices) // config.fsdp if config.data == -1 else config.data
    axes = f"config.mesh: data={data} x fsdp={config.fsdp}"
    if data * config.fsdp != len(devices):
        raise InputError(f"{axes} is not the number of devices, {len(devices)}")
    sizes = collections.Counter(getattr(device, "slice_index", 0) for device in devices)
    if len(set(sizes.values())) > 1:
        raise InputError(f"config.mesh: slices of different sizes: {sorted(sizes.values())}")
    if sizes[min(sizes)] % config.fsdp:
        raise InputError(f"{axes}: fsdp does not divide the {sizes[min(sizes)]} devices of a slice")
    # Auto axes: XLA propagates shardings from the arguments. jax's default is Explicit.
    auto = {"axis_names": ("data", "fsdp"), "axis_types": (AxisType.Auto,) * 2}
    if len(sizes) == 1:
        return jax.make_mesh((data, config.fsdp), **auto, devices=devices)
    slices = (len(sizes), 1)
    inside = (data // len(sizes), config.fsdp)
    grid = mesh_utils.create_hybrid_device_mesh(
        inside, slices, devices, allow_split_physical_axes=True
    )
    return Mesh(grid, **auto)


def spec_of(name: str, shape: tuple[int, ...], mesh: Mesh) -> P:
    """Returns the PartitionSpec of an array; axes that the mesh does not divide stay whole."""
    spec = trees.match_rules(RULES, [name], default=P())[name]
    cuts = zip(spec, shape, strict=False)
    return P(*(axis if axis and size % mesh.shape[axis] == 0 else None for axis, size in cuts))


def state_shardings(state: dict, mesh: Mesh) -> dict:
    """Returns the NamedSharding of every array, or abstract array, of a tree."""

    def sharding(path, leaf) -> NamedSharding:
        name = jax.tree_util.keystr(path, simple=True, separator="/")
        return NamedSharding(mesh, spec_of(name, leaf.shape, mesh))

    return jax.tree_util.tree_map_with_path(sharding, state)


def with_shardings(abstract: dict, shardings: dict) -> dict:
    """Returns a tree of abstract arrays with `shardings`."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        abstract,
        shardings,
    )


def shardings_of(tree: dict) -> dict:
    """Returns the shardings of a tree of arrays."""
    return jax.tree.map(lambda leaf: leaf.sharding, tree)


def all_gather_params(params: dict, mesh: Mesh) -> dict:
    """Returns parameters replicated on every device, for the forward pass; under jit.

    With sharded kernels XLA prefers to shard activations along channels, which puts the whole batch
    on every device.
    """
    whole = NamedSharding(mesh, P())
    return jax.tree.map(lambda leaf: jax.lax.with_sharding_constraint(leaf, whole), params)


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """Returns the sharding of a batch: rows over all devices."""
    return NamedSharding(mesh, P(mesh.axis_names))


def put_batch(batch: dict[str, np.ndarray | jax.Array], mesh: Mesh) -> dict[str, jax.Array]:
    """Returns global arrays, sharded over all devices, from the rows of this process.

    Arrays that are on the devices already stay as they are."""
    sharding = batch_sharding(mesh)
    # With several processes jax's transfer guard takes this explicit transfer for an implicit one.
    with jax.transfer_guard_host_to_device("allow"):
        return {
            name: array
            if isinstance(array, jax.Array)
            else jax.make_array_from_process_local_data(sharding, array)
            for name, array in batch.items()
        }


def local_batch_size(batch_size: int, mesh: Mesh, *, name: str = "config.batch_size") -> int:
    """Returns this process's rows of the global batch; every device has the same number."""
    if batch_size % mesh.size:
        fitting = -(-batch_size // mesh.size) * mesh.size
        raise InputError(
            f"{name}: {batch_size} is not divisible by the {mesh.size} devices; {fitting} would be"
        )
    return batch_size // jax.process_count()
