"""Collectives from HLO text: as compiled for TPUs, and for the CPU here."""

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import AxisType, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.cost import hlo

ARRAY = 8 * 128 * 2  # bytes of a bf16[8,128]


# As compiled for TPUs: four iterations of a loop, groups of devices in two notations, layouts.
TPU_PROGRAM = """
%add (a: bf16[], b: bf16[]) -> bf16[] {
  %a = bf16[]{:T(256)} parameter(0)
  %b = bf16[]{:T(256)} parameter(1)
  ROOT %sum = bf16[]{:T(256)} add(%a, %b)
}

%body (carry: (s32[], bf16[8,128])) -> (s32[], bf16[8,128]) {
  %carry = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %x = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%carry), index=1
  %all-reduce.2 = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} all-reduce(%x), channel_id=9, \
replica_groups=mesh['axis_0'=4,'axis_1'=2] {'axis_0'}, to_apply=%add
  %start = (bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}, \
u32[]{:S(2)}) collective-permute-start(%x), channel_id=3, source_target_pairs={{0,1},{1,0}}
  %done = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} collective-permute-done(%start)
  ROOT %tuple = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) tuple(%i, %done)
}

%condition (carry.1: (s32[], bf16[8,128])) -> pred[] {
  %constant.8 = s32[]{:T(128)} constant(4)
  %carry.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) parameter(0)
  %i = s32[]{:T(128)} get-tuple-element(%carry.1), index=0
  ROOT %less = pred[]{:T(512)} compare(%i, %constant.8), direction=LT
}

ENTRY %main (param.1: bf16[8,128]) -> bf16[16,128] {
  %param.1 = bf16[8,128]{1,0:T(8,128)(2,1)} parameter(0)
  %tuple.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) tuple(%zero, %param.1)
  %while.1 = (s32[]{:T(128)}, bf16[8,128]{1,0:T(8,128)(2,1)S(1)}) while(%tuple.1), \
condition=%condition, body=%body
  %y = bf16[8,128]{1,0:T(8,128)(2,1)S(1)} get-tuple-element(%while.1), index=1
  ROOT %gathered = bf16[16,128]{1,0:T(8,128)(2,1)} all-gather(%y), channel_id=2, \
replica_groups=[4,2]<=[8], dimensions={0}
}
"""


def by_kind(program: hlo.Program, num_devices: int) -> dict[str, hlo.Collective]:
    return {collective.kind: collective for collective in program.collectives(num_devices)}


def test_counts_collectives_of_a_tpu_program_in_a_loop():
    collectives = by_kind(hlo.Program(TPU_PROGRAM), 8)
    assert collectives["all-reduce"] == hlo.Collective("all-reduce", 4, 4 * ARRAY * 2 * 3 / 4)
    assert collectives["collective-permute"] == hlo.Collective("collective-permute", 4, 4 * ARRAY)
    assert collectives["all-gather"] == hlo.Collective("all-gather", 1, 2 * ARRAY / 2)


def test_computations_may_follow_the_entry():
    called, entry = TPU_PROGRAM.split("ENTRY")
    reordered = hlo.Program(f"ENTRY{entry}{called}")
    assert by_kind(reordered, 8) == by_kind(hlo.Program(TPU_PROGRAM), 8)


OVERLAPPED = """
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


def test_a_collective_that_overlaps_other_work_counts_once():
    program = hlo.Program(OVERLAPPED)
    assert program.collectives(2) == [hlo.Collective("all-gather", 1, 32 / 2)]


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
def test_group_size(attributes, size):
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


def test_a_compiled_program_gathers_kernels_twice_and_sums_gradients(compiled):
    collectives = by_kind(compiled, 8)
    kernel = 64 * 64 * 4
    assert collectives["all-gather"].count == 2 * 5
    assert collectives["all-gather"].bytes == 2 * 5 * kernel * 3 / 4
    summed = sum(each.bytes for kind, each in collectives.items() if kind != "all-gather")
    assert 5 * kernel * 2 * 3 / 4 <= summed <= 5 * kernel * 2 * 7 / 4
