"""Kernels from HLO text: as compiled for GPUs and TPUs, and for the CPU here."""

import jax
import jax.numpy as jnp

from ctclip_jax.cost.flops import program_flops
from ctclip_jax.cost.hlo import Program
from ctclip_jax.cost.kernels import CostEstimate, Kernel, kernels_of

# As compiled for an H200: a loop of three layers with a product by cuBLAS, whose weight a fusion
# cuts out of a stack, and whose result another one writes into a stack. One fusion is asynchronous.
GPU_PROGRAM = """
%sliced (stack: f32[3,64,32], i: s32[]) -> bf16[64,32] {
  %stack = f32[3,64,32]{2,1,0} parameter(0)
  %i = s32[] parameter(1)
  %slice = f32[1,64,32]{2,1,0} dynamic-slice(%stack, %i), dynamic_slice_sizes={1,64,32}
  ROOT %narrow = bf16[64,32]{1,0} convert(%slice), metadata={op_name="jit(f)/text/convert"}
}

%stacked (stack.1: bf16[3,8,32], update: bf16[8,32], i.1: s32[]) -> bf16[3,8,32] {
  %stack.1 = bf16[3,8,32]{2,1,0} parameter(0)
  %update = bf16[8,32]{1,0} parameter(1)
  %i.1 = s32[] parameter(2)
  %bitcast.1 = bf16[1,8,32]{2,1,0} bitcast(%update)
  ROOT %dus = bf16[3,8,32]{2,1,0} dynamic-update-slice(%stack.1, %bitcast.1, %i.1)
}

%body (carry: (s32[], bf16[8,64], f32[3,64,32], bf16[3,8,32])) -> (s32[], bf16[8,64]) {
  %carry = (s32[], bf16[8,64]{1,0}, f32[3,64,32]{2,1,0}, bf16[3,8,32]{2,1,0}) parameter(0)
  %n = s32[] get-tuple-element(%carry), index=0
  %x = bf16[8,64]{1,0} get-tuple-element(%carry), index=1
  %weights = f32[3,64,32]{2,1,0} get-tuple-element(%carry), index=2
  %results = bf16[3,8,32]{2,1,0} get-tuple-element(%carry), index=3
  %start = ((f32[3,64,32], s32[]), bf16[64,32]{1,0}, u32[]) fusion-start(%weights, %n), \
kind=kLoop, calls=%sliced
  %weight = bf16[64,32]{1,0} fusion-done(%start)
  %gemm = (bf16[8,32]{1,0}, s8[4096]{0}) custom-call(%x, %weight), \
custom_call_target="__cublas$lt$matmul", metadata={op_name="jit(f)/text/attention/dot_general"}, \
backend_config={"gemm_backend_config":{"dot_dimension_numbers":{\
"lhs_contracting_dimensions":["1"],"rhs_contracting_dimensions":["0"]}}}
  %y = bf16[8,32]{1,0} get-tuple-element(%gemm), index=0
  %write = bf16[3,8,32]{2,1,0} fusion(%results, %y, %n), kind=kLoop, calls=%stacked
  ROOT %tuple = (s32[], bf16[8,64]{1,0}) tuple(%n, %x)
}

%condition (carry.1: (s32[], bf16[8,64])) -> pred[] {
  %carry.1 = (s32[], bf16[8,64]{1,0}) parameter(0)
  ROOT %less = pred[] constant(true)
}

ENTRY %main (a: bf16[4,2,64,32]) -> bf16[4,2,64,32] {
  %a = bf16[4,2,64,32]{3,2,1,0} parameter(0)
  %loop = (s32[], bf16[8,64]{1,0}) while(%a), condition=%condition, body=%body, \
backend_config={"known_trip_count":{"n":"3"}}
  ROOT %fmha = (bf16[4,2,64,32]{3,2,1,0}, f32[4,2,64]{2,1,0}, u8[512]{0}) custom-call(%a, %a, %a), \
custom_call_target="__cudnn$fmhaSoftmax", backend_config={"cudnn_fmha_backend_config": \
{"intermediate_tensor_shape": {"element_type": "BF16", "dimensions": ["4", "2", "64", "64"]}}}
}
"""

# As compiled for a TPU: eight products as one convolution over a dilated batch, whose result stays
# on the chip (S(1)); a Pallas kernel; an asynchronous copy.
TPU_PROGRAM = """
%product (left: f32[8,128,64], right: f32[8,64,256]) -> f32[8,128,256] {
  %left = f32[8,128,64]{2,1,0:T(8,128)} parameter(0)
  %right = f32[8,64,256]{2,1,0:T(8,128)} parameter(1)
  ROOT %convolution = f32[8,128,256]{2,1,0:T(8,128)} convolution(%left, %right), \
window={size=8 stride=7 lhs_dilate=8}, dim_labels=0bf_0io->0bf
}

ENTRY %main (a: f32[8,128,64], b: f32[8,64,256]) -> f32[8,128,256] {
  %a = f32[8,128,64]{2,1,0:T(8,128)} parameter(0)
  %b = f32[8,64,256]{2,1,0:T(8,128)} parameter(1)
  %copy-start = (f32[8,64,256]{2,1,0:T(8,128)S(1)}, f32[8,64,256]{2,1,0:T(8,128)}, u32[]{:S(2)}) \
copy-start(%b), backend_config={"estimated_cycles":"99"}
  %copy-done = f32[8,64,256]{2,1,0:T(8,128)S(1)} copy-done(%copy-start)
  %fusion = f32[8,128,256]{2,1,0:T(8,128)S(1)} fusion(%a, %copy-done), kind=kOutput, \
calls=%product, metadata={op_name="jit(f)/dot"}, backend_config={"estimated_cycles":"1200"}
  ROOT %kernel = f32[8,128,256]{2,1,0:T(8,128)} custom-call(%fusion), \
custom_call_target="tpu_custom_call", backend_config={"custom_call_config":{"cost_estimate":\
{"flops":"123","transcendentals":"789","bytes_accessed":"456","remote_bytes_transferred":"0"}}}
}
"""


def by_name(text: str) -> dict[str, Kernel]:
    return {kernel.name: kernel for kernel in kernels_of(Program(text))}


def test_a_gpu_program_launches_the_kernels_of_a_loop_in_every_round():
    kernels = by_name(GPU_PROGRAM)
    assert {name: kernel.runs for name, kernel in kernels.items()} == {
        "start": 3,
        "gemm": 3,
        "write": 3,
        "fmha": 1,
    }
    assert kernels["start"].op_name == "jit(f)/text/convert"
    assert kernels["gemm"].op_name == "jit(f)/text/attention/dot_general"


def test_of_a_stack_only_the_slice_is_traffic_and_a_workspace_is_none():
    kernels = by_name(GPU_PROGRAM)
    index, weight, result = 4, 64 * 32 * 2, 8 * 32 * 2
    assert kernels["start"].bytes == 64 * 32 * 4 + index + weight
    assert kernels["gemm"].bytes == 8 * 64 * 2 + weight + result
    assert kernels["write"].bytes == result + index + result
    heads = 4 * 2 * 64
    assert kernels["fmha"].bytes == 2 * heads * 32 * 2 + heads * 4


def test_products_of_libraries_have_flops():
    kernels = by_name(GPU_PROGRAM)
    assert kernels["gemm"].flops == 2 * 8 * 64 * 32 and not kernels["gemm"].is_float32
    assert kernels["fmha"].flops == 2 * 2 * (4 * 2 * 64 * 64 * 32)
    backward = GPU_PROGRAM.replace("fmhaSoftmax", "fmhaSoftmaxBackward")
    assert by_name(backward)["fmha"].flops == 5 * 2 * (4 * 2 * 64 * 64 * 32)


def test_a_tpu_program_has_cycles_and_on_chip_memory():
    kernels = by_name(TPU_PROGRAM)
    left, right, result = 8 * 128 * 64 * 4, 8 * 64 * 256 * 4, 8 * 128 * 256 * 4
    assert {name: (kernel.bytes, kernel.cycles) for name, kernel in kernels.items()} == {
        "copy-start": (right, None),
        "fusion": (left, 1200),
        "kernel": (result, None),
    }
    assert kernels["kernel"].cost_estimate == CostEstimate(123, 789, 456)
    assert kernels["kernel"].flops == 123
    assert kernels["fusion"].cost_estimate is None


def test_a_pallas_kernel_without_an_estimate_is_still_one():
    text = TPU_PROGRAM.replace("cost_estimate", "other")
    assert by_name(text)["kernel"].cost_estimate == CostEstimate(0, 0, 0)


def test_a_compiled_program_has_the_flops_of_its_traced_one():
    def loss(kernels, x):
        def layer(x, kernel):
            return jnp.tanh(x @ kernel), None

        with jax.named_scope("text"):
            return jax.lax.scan(jax.checkpoint(layer), x, kernels)[0].sum()

    kernels, x = jnp.ones((5, 64, 64)), jnp.ones((4, 256, 64))
    traced = jax.jit(jax.grad(loss)).trace(kernels, x)
    compiled = kernels_of(Program(traced.lower().compile().as_text()))
    assert sum(kernel.runs * kernel.flops for kernel in compiled) == program_flops(traced.jaxpr)
    products = [kernel for kernel in compiled if kernel.flops]
    assert {kernel.runs for kernel in products} == {5}
    assert all("text" in kernel.op_name for kernel in products)
