"""The reader of HLO text: on lines as TPUs and CPUs have them, and on programs compiled here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.cost import hlo

ARRAY = 8 * 128 * 2  # bytes of a bf16[8,128]


@pytest.fixture(scope="module")
def tpu(golden_dir):
    """Four rounds of a loop, with arrays in on-chip memory, S(1), and outside of it."""
    return hlo.Program((golden_dir / "tpu_program.hlo").read_text())


def test_collectives_of_a_tpu_program_are_counted_as_often_as_they_run(tpu):
    found = {each.kind: each for each in tpu.collectives(8)}
    assert found["all-reduce"] == hlo.Collective("all-reduce", 4, 4 * ARRAY * 2 * 3 / 4)
    assert found["collective-permute"] == hlo.Collective("collective-permute", 4, 4 * ARRAY)
    assert found["all-gather"] == hlo.Collective("all-gather", 1, 2 * ARRAY / 2)


def test_traffic_is_of_arguments_updates_and_results_outside_of_on_chip_memory(tpu):
    argument, updates, result = ARRAY, 4 * ARRAY, 2 * ARRAY
    assert tpu.traffic() == argument + 2 * (updates + result)


PIECES = """
%piece (param_0: f32[4], param_1: f32[8]) -> (f32[8], f32[4], f32[2]) {
  %param_0 = f32[4]{0} parameter(0)
  %all-gather.1 = f32[8]{0} all-gather(%param_0), channel_id=7, replica_groups={{0,1}}
  %work = f32[2]{0} slice(%param_0), slice={[0:2]}
  ROOT %tuple = (f32[8]{0}, f32[4]{0}, f32[2]{0}) tuple(%all-gather.1, %param_0, %work)
}

ENTRY %main (x: f32[4]) -> f32[2] {
  %x = f32[4]{0} parameter(0)
  %one = (f32[8]{0}, f32[4]{0}, f32[2]{0}) fusion(%x), kind=kCustom, calls=%piece
  %two = (f32[8]{0}, f32[4]{0}, f32[2]{0}) fusion(%x), kind=kCustom, calls=%piece
  ROOT %result = f32[2]{0} get-tuple-element(%two), index=2
}
"""


def test_a_collective_that_runs_along_other_work_counts_once():
    program = hlo.Program(PIECES)
    assert program.collectives(2) == [hlo.Collective("all-gather", 1, 32 / 2)]
    argument, work = 16, 8
    assert program.traffic() == argument + 2 * 2 * work


@pytest.mark.parametrize(
    ("attributes", "size"),
    [
        ("replica_groups={{0,1,2},{3,4,5}}, to_apply", 3),
        ("replica_groups=[2,4]<=[4,2]T(1,0), to_apply", 4),
        ("replica_groups=mesh['a'=4,'b'=3] {'a','b'}, to_apply", 12),
        ("replica_groups=mesh['a'=4,'b'=3] {'a':(1)2}, to_apply", 2),
        ("replica_groups=mesh['a'=4,'b'=2], device_ids=([2,4]T(1,0)) {'b'}, to_apply", 2),
        ("replica_groups={}, to_apply", 8),
    ],
)
def test_sizes_of_groups(attributes, size):
    assert hlo._group_size(attributes, 8) == size


@pytest.fixture(scope="module")
def compiled():
    """Five layers, kernels cut over 4 of 8 devices, summed over all; recomputed backward."""
    mesh = jax.make_mesh((2, 4), ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2)

    def loss(kernels, x):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        return jax.lax.scan(jax.checkpoint(layer), x, kernels)[0].sum()

    def abstract(shape, *spec):
        return jax.ShapeDtypeStruct(shape, jnp.float32, sharding=NamedSharding(mesh, P(*spec)))

    kernels, x = abstract((5, 64, 64), None, "fsdp"), abstract((2048, 64), ("data", "fsdp"))
    gradient = jax.jit(jax.grad(loss), out_shardings=kernels.sharding)
    return hlo.Program(gradient.lower(kernels, x).compile().as_text())


def test_a_program_compiled_here_gathers_kernels_twice_and_sums_gradients(compiled):
    found = {each.kind: each for each in compiled.collectives(8)}
    kernel = 64 * 64 * 4
    assert found["all-gather"].count == 2 * 5
    assert found["all-gather"].bytes == 2 * 5 * kernel * 3 / 4
    summed = sum(found[kind].bytes for kind in found if kind != "all-gather")
    assert 5 * kernel * 2 * 3 / 4 <= summed <= 5 * kernel * 2 * 7 / 4
