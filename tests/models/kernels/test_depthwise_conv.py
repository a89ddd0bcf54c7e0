"""The depthwise convolution equals the grouped convolution, gradients included."""

import jax
import jax.numpy as jnp
import numpy as np

from ctclip_jax.models.kernels.depthwise_conv import causal_depthwise_conv


def test_causal_depthwise_conv_is_the_grouped_convolution():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 3, 5, 4, 6)), jnp.float32)
    kernel = jnp.asarray(rng.normal(size=(3, 3, 3, 6)), jnp.float32)

    def grouped(x, kernel):
        return jax.lax.conv_general_dilated(
            x,
            kernel[..., None, :],
            window_strides=(1, 1, 1),
            padding=((2, 0), (1, 1), (1, 1)),
            dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
            feature_group_count=6,
        )

    ours, theirs = (
        jax.value_and_grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1))(x, kernel)
        for f in (causal_depthwise_conv, grouped)
    )
    for a, b in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-4)
