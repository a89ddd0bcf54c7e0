"""A whole tower with the TPU kernel, sharded and rematerialized, equals the plain tower."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.models import nnx_bridge
from ctclip_jax.models.ct_vit import CTViT
from ctclip_jax.models.kernels.placement import use_mesh
from ctclip_jax.models.layers import Execution


@pytest.mark.skipif(jax.default_backend() == "gpu", reason="interpreted on CPUs only")
def test_a_sharded_tower_with_the_tpu_kernel_equals_the_plain_one(tiny):
    model, variables, batch = tiny
    # One layer of each transformer: the interpreted kernels compile slowly.
    config = dataclasses.replace(model.config.image, spatial_depth=1, temporal_depth=1)
    params = dict(variables["params"]["image"])
    for name in ("spatial", "temporal"):
        first = jax.tree.map(lambda leaf: leaf[:1], params[name]["blocks"])
        params[name] = {**params[name], "blocks": first}
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rng = np.random.default_rng(0)
    volumes = jnp.asarray(rng.uniform(-1, 1, (8, *batch["image"].shape[1:])), jnp.float32)
    volumes = jax.device_put(volumes, NamedSharding(mesh, P(mesh.axis_names)))

    def loss_and_gradients(attention):
        def init(rngs):
            return CTViT(config, rngs, Execution("float32", "dots", attention, scan=False))

        def loss(params, volumes):
            with use_mesh(mesh), jax.default_matmul_precision("float32"):
                return jnp.mean(jnp.sin(nnx_bridge.bind(init, params)(volumes)))

        return jax.jit(jax.value_and_grad(loss))(params, volumes)

    kernel, plain = (jax.tree.leaves(loss_and_gradients(name)) for name in ("pallas", "xla"))
    # The gradient of a bias that the softmax ignores is only rounding.
    rounding = 1e-6 * max(np.linalg.norm(leaf) for leaf in plain)
    for a, b in zip(kernel, plain, strict=True):
        assert np.linalg.norm(a - b) <= 1e-5 * np.linalg.norm(b) + rounding
