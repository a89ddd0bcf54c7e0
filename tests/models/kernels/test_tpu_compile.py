"""The Pallas kernels compile for TPUs that are not attached, at full size and sharded."""

import re

import jax
import jax.numpy as jnp
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.cost.topologies import topology_devices
from ctclip_jax.models.kernels.attention import attention
from ctclip_jax.models.kernels.depthwise_conv import causal_depthwise_conv
from ctclip_jax.models.kernels.placement import use_mesh

pytest.importorskip("libtpu")


def test_a_layer_compiles_and_saves_what_it_should():
    """One call of each kernel, forward and backward: a saved attention does not run again."""
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), devices=list(topology_devices("v5e:2x2")))

    rows, whole = NamedSharding(mesh, P(mesh.axis_names)), NamedSharding(mesh, P())

    def layer(x, kernel, bias):
        with jax.default_matmul_precision("float32"), use_mesh(mesh):
            x = causal_depthwise_conv(x, kernel, kernel[0, 0, 0])
            vectors = x.reshape(-1, 576, 16, 32)[:, :, :8]
            return attention(vectors, vectors, vectors, bias, scale=8.0, implementation="auto")

    layer = jax.checkpoint(
        layer, policy=jax.checkpoint_policies.save_only_these_names("attention", "peg")
    )

    def total(*arguments):
        return jnp.sum(layer(*arguments).astype(jnp.float32) ** 2)

    shapes = ((4, 24, 24, 24, 512), rows), ((3, 3, 3, 512), whole), ((8, 576, 576), whole)
    x, kernel, bias = (
        jax.ShapeDtypeStruct(shape, dtype, sharding=sharding)
        for (shape, sharding), dtype in zip(
            shapes, ("bfloat16", "bfloat16", "float32"), strict=True
        )
    )
    compiled = jax.jit(jax.grad(total, argnums=(0, 1, 2))).lower(x, kernel, bias).compile()
    calls = re.findall(
        r'custom_call_target="tpu_custom_call".*?op_name="([^"]*)"', compiled.as_text()
    )
    names = sorted(re.search(r"(attention|peg)\w*", name)[0] for name in calls)
    assert names == ["attention_backward", "attention_forward", "peg", "peg", "peg", "peg_gradient"]
    assert "all-reduce" in compiled.as_text()  # of the gradients of bias and kernel
