"""Matrix products with float32 sums, whose gradients are products in the dtype of the factors."""

import functools

import jax
import jax.numpy as jnp
from einops import rearrange

from ctclip_jax.common.shapes import Array, Float


def float32_einsum(
    subscripts: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype, to float32.

    jax's own gradient multiplies the float32 cotangent: of bfloat16 factors that are products in
    float32, without tensor cores. Here the cotangent is rounded to the dtype of the factors, as
    fused attention kernels do.
    """
    if x.dtype == jnp.float32:
        return jnp.einsum(subscripts, x, y)  # as it is, forward mode too
    return _einsum(subscripts, x, y)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def _einsum(subscripts, x, y):
    return jnp.einsum(subscripts, x, y, preferred_element_type=jnp.float32)


def _forward(subscripts, x, y):
    return _einsum(subscripts, x, y), (x, y)


def _backward(subscripts, factors, cotangent):
    x, y = factors
    product = functools.partial(jnp.einsum, subscripts)
    cotangent = cotangent.astype(x.dtype)
    (x_gradient,) = jax.linear_transpose(lambda x: product(x, y), x)(cotangent)
    (y_gradient,) = jax.linear_transpose(lambda y: product(x, y), y)(cotangent)
    return x_gradient, y_gradient


_einsum.defvjp(_forward, _backward)


def blockwise_product(
    x: Float[Array, "b c"], kernel: Float[Array, "c d"], *, block: int
) -> Float[Array, "b d"]:
    """`x @ kernel` to float32, of float32 factors summed within blocks of channels first.

    In one sum over the 294,912 features of the published model a latent is 3e-6 off in a batch of
    one, which XLA sums in another order; by blocks it is 6e-8 off in every batch.
    """
    if x.dtype != jnp.float32:  # rounding of the factors outweighs any order
        return float32_einsum("bc,cd->bd", x, kernel)
    blocks = rearrange(x, "b (g c) -> b g c", c=block)
    kernels = rearrange(kernel, "(g c) d -> g c d", c=block)
    return jnp.einsum("bgc,gcd->gbd", blocks, kernels).sum(axis=0)


def gradient_einsum(
    subscripts: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`jnp.einsum` to float32, for gradients that are written out.

    It says its precision: jax traces gradients outside of the `default_matmul_precision` of the
    model.
    """
    precision = "highest" if x.dtype == jnp.float32 else "default"
    return jnp.einsum(subscripts, x, y, precision=precision, preferred_element_type=jnp.float32)
