"""Mesh, sharding rules, and the placement of arrays."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.sharding import (
    MeshConfig,
    local_batch_size,
    make_mesh,
    put_batch,
    spec_of,
    state_shardings,
)
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import InputError


@pytest.fixture(scope="module")
def mesh():
    return make_mesh(MeshConfig(data=-1, fsdp=2))


def test_data_is_the_number_of_devices_over_fsdp(mesh):
    assert dict(mesh.shape) == {"data": 4, "fsdp": 2}


def test_rejects_a_mesh_of_another_number_of_devices():
    with pytest.raises(InputError, match="config.mesh: data=3 x fsdp=1 .* 8"):
        make_mesh(MeshConfig(data=3, fsdp=1))


@dataclasses.dataclass(frozen=True)
class FakeDevice:
    """One of several slices, or hosts of GPUs, which a test cannot have."""

    id: int
    slice_index: int
    platform: str = "gpu"
    device_kind: str = "NVIDIA H100"


def fake_devices(*sizes: int) -> list[FakeDevice]:
    slices = [index for index, size in enumerate(sizes) for _ in range(size)]
    return [FakeDevice(number, index) for number, index in enumerate(slices)]


@pytest.mark.parametrize(("fsdp", "data"), [(1, 16), (4, 4), (8, 2)])
def test_fsdp_stays_inside_a_slice(fsdp, data):
    # jax sorts devices by slice; a list in another order must give the same mesh.
    mixed = sorted(fake_devices(8, 8), key=lambda device: device.id % 8)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp), devices=mixed)
    assert dict(mesh.shape) == {"data": data, "fsdp": fsdp}
    slices = np.vectorize(lambda device: device.slice_index)(mesh.devices)
    np.testing.assert_array_equal(slices, np.repeat([0, 1], data // 2)[:, None] + np.zeros(fsdp))


@pytest.mark.parametrize(
    ("sizes", "fsdp", "message"),
    [
        ((4, 4), 8, "data=1 x fsdp=8: fsdp"),
        ((6, 6), 4, "data=3 x fsdp=4: fsdp"),
        ((8, 4), 4, r"slices of different sizes: \[4, 8\]"),
    ],
)
def test_rejects_slices_that_fsdp_does_not_divide(sizes, fsdp, message):
    with pytest.raises(InputError, match=message):
        make_mesh(MeshConfig(data=-1, fsdp=fsdp), devices=fake_devices(*sizes))


@pytest.mark.parametrize(
    ("name", "shape", "spec"),
    [
        ("params/image_projection/kernel", (64, 6), P("fsdp", None)),
        ("opt/mu/image_projection/kernel", (64, 6), P("fsdp", None)),
        ("ema/image_projection/kernel", (64, 6), P("fsdp", None)),
        ("ema/text/blocks/down/kernel", (2, 12, 8), P(None, None, "fsdp")),
        ("params/image_projection/kernel", (63, 6), P(None, None)),
        ("params/text/blocks/up/kernel", (2, 8, 12), P(None, "fsdp", None)),
        ("params/image/spatial/blocks/peg/kernel", (2, 3, 3, 3, 8), P()),
        ("params/temperature", (), P()),
    ],
)
def test_rules(name, shape, spec, mesh):
    assert spec_of(name, shape, mesh) == spec


def test_most_of_the_full_size_model_is_sharded(mesh):
    variables = CTCLIP(CTCLIPConfig()).abstract_variables()
    shardings = state_shardings(variables, mesh)
    leaves, cuts = jax.tree.leaves(variables["params"]), jax.tree.leaves(shardings["params"])
    cut = sum(
        leaf.size for leaf, cut in zip(leaves, cuts, strict=True) if not cut.is_fully_replicated
    )
    assert cut > 0.97 * sum(leaf.size for leaf in leaves)


def test_batches_are_sharded_over_all_devices(mesh):
    batch = {"image": np.arange(48, dtype=np.int16).reshape(16, 3), "mask": np.ones(16, np.int32)}
    placed = put_batch(batch, mesh)
    assert {shard.data.shape for shard in placed["image"].addressable_shards} == {(2, 3)}
    np.testing.assert_array_equal(placed["image"], batch["image"])


def test_arrays_are_born_sharded(mesh):
    make = lambda: {"image_projection": {"kernel": jnp.ones((8, 4))}}  # noqa: E731
    shardings = state_shardings(jax.eval_shape(make), mesh)
    params = jax.jit(make, out_shardings=shardings)()
    assert params["image_projection"]["kernel"].addressable_shards[0].data.shape == (4, 4)


def test_rejects_a_batch_that_the_devices_do_not_divide(mesh):
    assert local_batch_size(16, mesh) == 16
    with pytest.raises(InputError, match="12 is not divisible by the 8 devices; 16 would"):
        local_batch_size(12, mesh)
