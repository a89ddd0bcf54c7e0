"""Matrix products with float32 sums, whose gradients are products in the dtype of the factors."""

import functools

import jax
import jax.numpy as jnp

from ctclip_jax.common.shapes import Array, Float


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def float32_einsum(
    subscripts: str, x: Float[Array, "..."], y: Float[Array, "..."]
) -> Float[Array, "..."]:
    """`jnp.einsum` of two arrays of one dtype, to float32.

    jax's own gradient multiplies the float32 cotangent: of bfloat16 factors that are products in
    float32, without tensor cores. Here the cotangent is rounded to the dtype of the factors, as
    fused attention kernels do.
    """
    return jnp.einsum(
        subscripts, x, y, precision=precision_of(x.dtype), preferred_element_type=jnp.float32
    )


def _forward(subscripts, x, y):
    return float32_einsum(subscripts, x, y), (x, y)


def _backward(subscripts, factors, cotangent):
    x, y = factors
    product = functools.partial(jnp.einsum, subscripts, precision=precision_of(x.dtype))
    cotangent = cotangent.astype(x.dtype)
    (x_gradient,) = jax.linear_transpose(lambda x: product(x, y), x)(cotangent)
    (y_gradient,) = jax.linear_transpose(lambda y: product(x, y), y)(cotangent)
    return x_gradient, y_gradient


def precision_of(dtype: jnp.dtype) -> str:
    """Said here, because `default_matmul_precision` of the model does not reach its gradient."""
    return "highest" if dtype == jnp.float32 else "default"


float32_einsum.defvjp(_forward, _backward)
