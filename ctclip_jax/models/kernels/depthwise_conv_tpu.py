"""Causal depthwise 3x3x3 convolution as a Pallas TPU kernel.

A program holds 128 channels of a whole (t, h, w) grid in VMEM. t and h are no tiled axes, so their
shifts are free; the three shifts along w, which is, are made of three sums, not of every plane.
"""

import functools

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh

from ctclip_jax.common.shapes import Array, Float
from ctclip_jax.models.kernels.placement import (
    LANES,
    ROWS,
    WHOLE,
    is_interpreted,
    on_each_device,
    tpu_parameters,
    vmem_bytes,
)


def fits(t: int, h: int, w: int, d: int, dtype: jnp.dtype) -> bool:
    """Whether the kernel takes such grids: whole tiles, and two grids twice that fit VMEM."""
    grid = t * h * (-(-w // 16) * 16) * LANES * jnp.dtype(dtype).itemsize
    vmem = vmem_bytes(jax.sharding.get_abstract_mesh())
    return d % LANES == 0 and w % 8 == 0 and 5 * grid <= vmem


def causal_depthwise_conv(
    x: Float[Array, "b t h w d"], kernel: Float[Array, "3 3 3 d"], bias: Float[Array, " d"]
) -> Float[Array, "b t h w d"]:
    """The function of depthwise_conv.py; interpreted on CPUs, for tests."""
    taps = jnp.concatenate([kernel.reshape(27, -1), bias[None]])
    return _conv(x, taps, jax.sharding.get_abstract_mesh(), is_interpreted())


def _shift(x: Float[Array, "h w d"], by: int, axis: int) -> Float[Array, "h w d"]:
    """x moved by -1, 0 or 1 along an axis: out[n] = x[n + by], zero outside."""
    if by == 0:
        return x
    inside = jax.lax.slice_in_dim(x, max(by, 0), x.shape[axis] + min(by, 0), axis=axis)
    zero = jnp.zeros_like(jax.lax.slice_in_dim(x, 0, 1, axis=axis))
    return jnp.concatenate([zero, inside] if by < 0 else [inside, zero], axis=axis)


def _plane(x, t) -> Float[Array, "h w d"]:
    """Plane t of a block (1 t h w d), zeros outside."""
    depth = x.shape[1]
    plane = x[0, jnp.clip(t, 0, depth - 1)].astype(jnp.float32)
    return jnp.where((t >= 0) & (t < depth), plane, 0.0)


def _conv_kernel(x, taps, out, *, first):
    """`taps`: the 27 of the kernel, and the bias; `first`: offset along t of the first tap."""

    def tap(n):
        return taps[n].astype(jnp.float32)[None, None]

    def step(t, _):
        zero = jnp.zeros(out.shape[2:], jnp.float32)
        sums = [zero, zero + tap(27), zero]
        for i in range(3):
            plane = _plane(x, t + first + i)
            for j in range(3):
                rows = _shift(plane, j - 1, axis=0)
                for k in range(3):
                    sums[k] += rows * tap((i * 3 + j) * 3 + k)
        total = _shift(sums[0], -1, axis=1) + sums[1] + _shift(sums[2], 1, axis=1)
        out[0, t] = total.astype(out.dtype)
        return 0

    jax.lax.fori_loop(0, out.shape[1], step, 0)


def _gradient_of_taps(x, grad, out):
    """Sums over t and h for each tap and the bias; those over w and the batch are left to XLA."""
    out[...] = jnp.zeros_like(out)

    def step(t, _):
        plane = grad[0, t].astype(jnp.float32)
        # x[w + k - 1] grad[w] = x[w] grad[w - (k - 1)]: three shifts of grad, none of x.
        shifted = [_shift(plane, 1 - k, axis=1) for k in range(3)]
        out[0, 27] += jnp.sum(plane, axis=0)
        for i in range(3):
            source = _plane(x, t - 2 + i)
            for j in range(3):
                rows = _shift(source, j - 1, axis=0)
                for k in range(3):
                    out[0, (i * 3 + j) * 3 + k] += jnp.sum(rows * shifted[k], axis=0)
        return 0

    jax.lax.fori_loop(0, x.shape[1], step, 0)


def _call(name, kernel, out_shape, *args, mesh, interpret):
    """pallas_call over (batch, blocks of channels) on arrays (b ... d) and taps (28, d)."""

    def spec(shape):
        block = (*shape[:-1], min(LANES, shape[-1]))
        if len(shape) == 2:
            return pl.BlockSpec(block, lambda b, c: (0, c))
        return pl.BlockSpec((1, *block[1:]), lambda b, c: (b, *(0,) * (len(shape) - 2), c))

    b, *_, d = args[0].shape
    return pl.pallas_call(
        kernel,
        grid=(b, d // min(LANES, d)),
        in_specs=[spec(x.shape) for x in args],
        out_specs=spec(out_shape.shape),
        out_shape=out_shape,
        compiler_params=tpu_parameters(mesh, "parallel", "parallel"),
        # 27 taps are a multiply-add each, in the vector unit.
        cost_estimate=pl.CostEstimate(
            flops=54 * args[0].size,
            bytes_accessed=sum(x.size * x.dtype.itemsize for x in (*args, out_shape)),
            transcendentals=0,
        ),
        interpret=interpret,
        name=name,
    )(*args)


def _correlate(x, taps, first, mesh, interpret):
    def run(x, taps):
        body = functools.partial(_conv_kernel, first=first)
        out_shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
        return (_call("peg", body, out_shape, x, taps, mesh=mesh, interpret=interpret),)

    return on_each_device(run, mesh, in_specs=(ROWS, WHOLE), out_specs=(ROWS,))(x, taps)[0]


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _conv(x, taps, mesh: AbstractMesh, interpret: bool):
    return _correlate(x, taps, -2, mesh, interpret)


def _conv_forward(x, taps, mesh, interpret):
    return _conv(x, taps, mesh, interpret), (x, taps)


def _conv_backward(mesh, interpret, residuals, grad):
    x, taps = residuals

    def run(x, grad):
        b, _, _, w, d = x.shape
        shape = jax.ShapeDtypeStruct((b, 28, w, d), jnp.float32)
        call = functools.partial(_call, mesh=mesh, interpret=interpret)
        parts = call("peg_gradient", _gradient_of_taps, shape, x, grad)
        return (parts.sum(axis=(0, 2)),)

    mirrored = jnp.concatenate([taps[26::-1], jnp.zeros_like(taps[27:])])
    grad_x = _correlate(grad, mirrored, 0, mesh, interpret)
    (grad_taps,) = on_each_device(run, mesh, in_specs=(ROWS, ROWS), out_specs=(WHOLE,))(x, grad)
    return grad_x, grad_taps.astype(taps.dtype)


_conv.defvjp(_conv_forward, _conv_backward)
