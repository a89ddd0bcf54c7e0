"""Model FLOPs against the compiler's count and the specification's; a program's own FLOPs."""

import dataclasses
import math
from pathlib import Path

import jax
import jax.numpy as jnp
import pytest
from jax.experimental import pallas as pl

from configs import ct_clip
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.cost.flops import (
    float32_products,
    program_flops,
    search_flops,
    step_flops,
    text_flops,
    volume_flops,
)
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from tests.tiny_run import tiny_config

# One layer each: XLA counts the body of a loop once. Wide, so that matrix products are most of it;
# the feed-forward layer of 528 needs no padding, which XLA counts, and the model FLOPs do not.
WIDE = CTCLIPConfig(
    image=CTViTConfig(
        dim=528,
        image_size=(64, 64),
        patch_size=(16, 16),
        frames=128,
        temporal_patch_size=8,
        spatial_depth=1,
        temporal_depth=1,
        codebook_size=512,
    ),
    text=BertConfig(vocab_size=100, hidden_size=512, num_layers=1, num_heads=8),
)
LENGTH = 64


def test_the_full_size_is_that_of_the_specification():
    full = CTCLIPConfig()
    assert volume_flops(full) + search_flops(full) == pytest.approx(0.79e12, rel=0.01)
    assert text_flops(full.text, 512) == pytest.approx(0.09e12, rel=0.1)


def test_the_forward_is_what_the_compiler_counts_but_for_small_operations():
    """XLA counts norms, activations, position bias and encoding too: within 3 % at this size."""
    model = CTCLIP(WIDE)
    volume = jax.ShapeDtypeStruct((1, 128, 64, 64), jnp.float32)
    tokens = jax.ShapeDtypeStruct((1, LENGTH), jnp.int32)
    variables = model.abstract_variables()
    image = jax.jit(model.encode_image).lower(variables, volume).cost_analysis()["flops"]
    text = jax.jit(model.encode_text).lower(variables, tokens, tokens).cost_analysis()["flops"]
    for name, counted, ours in (
        ("image", image, volume_flops(WIDE) + search_flops(WIDE)),
        ("text", text, text_flops(WIDE.text, LENGTH)),
    ):
        assert 0.97 < ours / counted <= 1.0, name


def test_a_vit_is_what_the_compiler_counts_and_half_of_it_where_half_is_left_out():
    tower = ViTConfig(
        dim=384,
        depth=1,
        heads=6,
        image_size=(64, 64),
        patch_size=(8, 8),
        frames=64,
        temporal_patch_size=8,
        patch_dropout=0.5,
    )
    config = dataclasses.replace(WIDE, image=tower)
    model = CTCLIP(config)
    volume = jax.ShapeDtypeStruct((1, 64, 64, 64), jnp.float32)
    lowered = jax.jit(model.encode_image).lower(model.abstract_variables(), volume)
    assert 0.97 < volume_flops(config) / lowered.cost_analysis()["flops"] <= 1.0
    # Attention among half of the tokens is a quarter.
    products = 2 * 2 * 384 * tower.num_tokens**2
    assert volume_flops(config) / 2 - volume_flops(config, train=True) == pytest.approx(
        products / 4, rel=0.05
    )


def test_a_step_is_three_forwards_and_one_search():
    config = tiny_config(Path("shards"), batch_size=16, **{"data.texts_per_volume": 2})
    text = text_flops(config.model.text, 24)
    text += 2 * config.model.text.hidden_size * config.model.dim_latent
    image, search = volume_flops(config.model), search_flops(config.model)
    assert step_flops(config) == 16 * (3 * image + search + 2 * 3 * text)


@pytest.mark.parametrize(("frozen", "share"), [("^text", 1 / 3), ("^text/blocks", 1.0)])
def test_a_tower_that_is_frozen_as_a_whole_has_no_backward(frozen, share):
    free = from_dict(TrainConfig, ct_clip.get_config("smoke").to_dict())
    optim = dataclasses.replace(free.optim, rules=((frozen, 0.0), ("text_projection", 0.0)))
    locked = dataclasses.replace(free, optim=optim)
    image = 8 * (3 * volume_flops(free.model) + search_flops(free.model))
    assert step_flops(locked) - image == pytest.approx(share * (step_flops(free) - image))


def count(function, *shapes) -> float:
    arguments = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    return program_flops(jax.jit(function).trace(*arguments).jaxpr)


def test_a_program_counts_its_loops_its_recomputation_and_its_dearest_branch():
    product = 2.0 * 4 * 8 * 8

    def layer(x, kernel):
        return jnp.tanh(x @ kernel), None

    def forward(x, kernels):
        return jax.lax.scan(layer, x, kernels)[0].sum()

    def recomputing(x, kernels):
        return jax.lax.scan(jax.checkpoint(layer), x, kernels)[0].sum()

    def branch(x, kernel):
        return jax.lax.cond(x[0, 0] > 0, lambda: x @ kernel @ kernel, lambda: x)

    shapes = (4, 8), (5, 8, 8)
    assert count(forward, *shapes) == 5 * product
    assert count(jax.grad(forward, argnums=(0, 1)), *shapes) == 3 * 5 * product
    assert count(jax.grad(recomputing, argnums=(0, 1)), *shapes) == 4 * 5 * product
    assert count(branch, (4, 8), (8, 8)) == 2 * product
    batched = jax.vmap(jnp.matmul)
    assert count(batched, (3, 4, 8), (3, 8, 8)) == 3 * product


def test_a_mapped_program_counts_for_every_device():
    mesh = jax.make_mesh((8,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    rows = jax.sharding.PartitionSpec("data")
    mapped = jax.shard_map(lambda x: x @ x.T @ x, mesh=mesh, in_specs=rows, out_specs=rows)
    flops = 8 * (2.0 * math.prod((2, 4, 2)))
    assert count(mapped, (16, 4)) == 2 * flops
    traced = jax.jit(mapped).trace(jax.ShapeDtypeStruct((16, 4), jnp.float32)).jaxpr
    assert [x.flops for x in float32_products(traced, above=flops - 1)] == [flops] * 2


def test_a_pallas_kernel_counts_for_every_program_of_its_grid():
    def kernel(x, y, out):
        out[...] = x[...] @ y[...]

    def rows(x, y):
        return pl.pallas_call(
            kernel,
            out_shape=jax.ShapeDtypeStruct((32, 16), jnp.float32),
            grid=(4,),
            in_specs=[
                pl.BlockSpec((8, 16), lambda i: (i, 0)),
                pl.BlockSpec((16, 16), lambda i: (0, 0)),
            ],
            out_specs=pl.BlockSpec((8, 16), lambda i: (i, 0)),
        )(x, y)

    assert count(rows, (32, 16), (16, 16)) == 2.0 * 32 * 16 * 16


def test_float32_products_are_listed_with_their_scope_and_runs():
    def forward(kernels, x):
        def layer(x, kernel):
            with jax.named_scope("attention"):
                product = jnp.matmul(x, kernel, preferred_element_type=jnp.float32)
            return jnp.tanh(product).astype(jnp.bfloat16), None

        with jax.named_scope("text"):
            return jax.lax.scan(layer, x, kernels)[0].sum()

    kernels = jax.ShapeDtypeStruct((5, 64, 64), jnp.bfloat16)
    x = jax.ShapeDtypeStruct((32, 64), jnp.bfloat16)
    flops = 2.0 * 32 * 64 * 64
    assert not list(float32_products(jax.jit(forward).trace(kernels, x).jaxpr, above=0))
    gradient = jax.jit(jax.grad(forward, argnums=(0, 1))).trace(kernels, x).jaxpr
    products = list(float32_products(gradient, above=flops - 1))
    # The cotangent of a float32 product is float32.
    assert [(product.flops, product.runs) for product in products] == [(flops, 5)] * 2
    assert all("text" in product.op_name for product in products)
    assert all(product.op_name.endswith("attention") for product in products)
    assert all("f32[32,64]" in product.operands for product in products)
    assert not list(float32_products(gradient, above=flops))


def test_a_step_in_bfloat16_has_no_large_float32_product():
    """At full size, 8 volumes. Whoever adds one casts its operands, or its cotangent in a VJP.

    Only the position bias is float32, as published: 1.2 GFLOP of a step's 20,000.
    """
    config = ct_clip.get_config()
    config.model.dtype, config.evaluation.every = "bfloat16", 0
    config = from_dict(TrainConfig, config.to_dict())
    mesh = make_mesh(config.mesh, devices=jax.devices()[:1])
    train_step = make_train_step(config, CTCLIP(config.model), mesh)
    (traced,) = train_step.trace(abstract_batch(config, mesh)).values()
    products = list(float32_products(traced.jaxpr, above=1e9))
    others = [product for product in products if "position_bias" not in product.op_name]
    assert not others, "\n".join(f"{x.runs} x {x.operands} {x.op_name}" for x in others)
    assert all(product.flops < 1.2e9 for product in products)
