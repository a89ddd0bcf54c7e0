"""Causal depthwise 3x3x3 convolution, the position encoding (PEG) of CT-ViT, by platform."""

import functools
from itertools import product
from typing import Literal

import jax
import jax.numpy as jnp

from ctclip_jax.common.shapes import Array, Float
from ctclip_jax.models.kernels import depthwise_conv_tpu
from ctclip_jax.models.kernels.placement import platform, row_major
from ctclip_jax.models.kernels.products import gradient_einsum

ConvImplementation = Literal["auto", "xla", "padded", "pallas"]


def causal_depthwise_conv(
    x: Float[Array, "b t h w d"],
    kernel: Float[Array, "3 3 3 d"],
    bias: Float[Array, " d"],
    *,
    implementation: ConvImplementation = "auto",
) -> Float[Array, "b t h w d"]:
    """Depthwise cross-correlation plus bias, zero-padded; causal along t: two steps back, no more.

    "xla", for CPUs, is 27 shifted multiply-adds: equal to the grouped convolution and many times
    faster. "padded" is for GPUs, "pallas" for TPUs (depthwise_conv_tpu.py). "auto" is that of the
    platform, if it fits.
    """
    if implementation == "auto":
        fits_tpu = depthwise_conv_tpu.fits(*x.shape[1:], x.dtype)
        fused = {"gpu": "padded", "tpu": "pallas" if fits_tpu else "xla"}
        implementation = fused.get(platform(), "xla")
    if implementation == "pallas":
        return depthwise_conv_tpu.causal_depthwise_conv(x, kernel, bias)
    bias = bias[None, None, None, None]
    if implementation == "padded":
        return row_major(_convolve(row_major(x), kernel, True) + bias)
    return _convolve(x, kernel, False) + bias


@functools.partial(jax.custom_vjp, nondiff_argnums=(2,))
def _convolve(
    x: Float[Array, "b t h w d"], kernel: Float[Array, "3 3 3 d"], is_padded: bool
) -> Float[Array, "b t h w d"]:
    """The gradient is written out because the automatic one stores every shifted copy."""
    return _weighted_sum(x, kernel, time_padding=(2, 0), is_padded=is_padded)


def _windows(
    x: Float[Array, "b t h w d"], *, time_padding: tuple[int, int], is_padded: bool
) -> list[Float[Array, "b t h w d"]]:
    """The 27 shifts of x under a 3x3x3 kernel, in the kernel's row-major order.

    `is_padded`: of a padded copy in memory. XLA would fuse the padding into the sum, and check the
    bounds of every tap of every element: on a GPU 1.0 ms where the bytes take 0.1.
    """
    _, t, h, w, _ = x.shape
    padded = jnp.pad(x, ((0, 0), time_padding, (1, 1), (1, 1), (0, 0)))
    if is_padded:
        padded = jax.lax.optimization_barrier(padded)
    return [padded[:, i : i + t, j : j + h, k : k + w] for i, j, k in product(range(3), repeat=3)]


def _weighted_sum(
    x: Float[Array, "b t h w d"],
    kernel: Float[Array, "3 3 3 d"],
    *,
    time_padding: tuple[int, int],
    is_padded: bool,
) -> Float[Array, "b t h w d"]:
    windows = _windows(x, time_padding=time_padding, is_padded=is_padded)
    dtype = jnp.float32 if is_padded else x.dtype
    taps = kernel.astype(dtype).reshape(27, 1, 1, 1, 1, -1)
    pairs = zip(windows, taps, strict=True)
    return sum(window.astype(dtype) * tap for window, tap in pairs).astype(x.dtype)


def _convolve_forward(x, kernel, is_padded):
    return _convolve(x, kernel, is_padded), (x, kernel)


def _convolve_backward(is_padded, residuals, grad):
    x, kernel = residuals
    mirrored = kernel[::-1, ::-1, ::-1]
    grad_x = _weighted_sum(grad, mirrored, time_padding=(0, 2), is_padded=is_padded)
    kernel_gradient = _banded_kernel_gradient if is_padded else _kernel_gradient
    return grad_x, kernel_gradient(x, grad).astype(kernel.dtype)


_convolve.defvjp(_convolve_forward, _convolve_backward)


def _kernel_gradient(
    x: Float[Array, "b t h w d"], grad: Float[Array, "b t h w d"]
) -> Float[Array, "3 3 3 d"]:
    """The sums over positions, a pass for each tap."""
    sums = [
        gradient_einsum("bthwd,bthwd->d", window, grad)
        for window in _windows(x, time_padding=(2, 0), is_padded=False)
    ]
    return jnp.stack(sums).reshape(3, 3, 3, -1)


def _banded_kernel_gradient(
    x: Float[Array, "b t h w d"], grad: Float[Array, "b t h w d"]
) -> Float[Array, "3 3 3 d"]:
    """The sums over positions as matrix products, which read x 3 times instead of 27 times.

    For each channel and each tap along t a product of rows: of x under the three taps along h
    (3 w) with the gradient (w). Of its three (w, w) parts, three diagonals count.
    """
    b, t, h, w, d = x.shape
    x = jnp.pad(x, ((0, 0), (0, 0), (1, 1), (0, 0), (0, 0)))
    x = jnp.concatenate([x[:, :, j : j + h] for j in range(3)], axis=3)
    # x[t + i - 2] grad[t] = x[t] grad[t - (i - 2)]: it is the gradient that is shifted.
    grad = jnp.pad(grad, ((0, 0), (0, 2), (0, 0), (0, 0), (0, 0)))
    shifted = [grad[:, 2 - i : 2 - i + t] for i in range(3)]
    # As arrays in memory: the product would otherwise read them through their transposition.
    rows, *grad_rows = jax.lax.optimization_barrier(
        [jnp.swapaxes(array, 3, 4).reshape(b * t * h, d, -1) for array in (x, *shifted)]
    )
    bands = [
        gradient_einsum("ndv,ndw->dvw", rows, array).reshape(d, 3, w, w) for array in grad_rows
    ]
    # x[w + k - 1] grad[w]: the diagonal v = w + k - 1.
    taps = [jnp.trace(jnp.stack(bands), offset=1 - k, axis1=3, axis2=4) for k in range(3)]
    return jnp.stack(taps).transpose(1, 3, 0, 2)
