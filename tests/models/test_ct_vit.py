"""CT-ViT: every stage against the golden tiny model, and mistakes that the goldens catch."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from einops import rearrange
from flax import nnx

from ctclip_jax.models import nnx_bridge, vector_quantizer
from ctclip_jax.models.ct_vit import Block, CTViT
from ctclip_jax.models.kernels.depthwise_conv import causal_depthwise_conv
from ctclip_jax.models.layers import Execution
from ctclip_jax.models.patch_embed import PatchEmbedding, normalize_intensity
from data_pipelines.patches import patchify

TOKEN = 1e-4


def largest_difference(actual, expected):
    return float(np.abs(np.asarray(actual) - expected).max())


@pytest.fixture(scope="module")
def tower(tiny):
    model, variables, batch = tiny
    tower = nnx_bridge.bind(
        lambda rngs: CTViT(
            model.config.image, rngs, Execution("float32", "none", "xla", scan=True)
        ),
        variables["params"]["image"],
    )
    return tower, batch["image"]


@pytest.fixture(scope="module")
def stages(tower, golden):
    """The output of every branch before its residual addition, as (b t h w d)."""
    tower, volume = tower
    _, _, h, w, _ = golden["out/patch_emb"].shape
    patterns = {
        "spatial": ("b t h w d -> b t (h w) d", "b t (h w) d -> b t h w d"),
        "temporal": ("b t h w d -> b (h w) t d", "b (h w) t d -> b t h w d"),
    }
    outputs = {
        "patch_emb": tower.patch_embed(patchify(volume, tower.patch)),
        "spatial_bias": tower.position_bias(h, w),
    }
    x = outputs["patch_emb"]
    for name, (to_groups, to_grid) in patterns.items():
        transformer = getattr(tower, name)
        bias = outputs["spatial_bias"] if name == "spatial" else None
        x = rearrange(x, to_groups)
        for layer in range(2):
            block = jax.tree.map(lambda leaf, layer=layer: leaf[layer], transformer.blocks)
            for branch, run in (
                ("peg", block.encode_position),
                ("attn", partial(block.attend, bias=bias)),
                ("ff", block.ff),
            ):
                out = run(x)
                outputs[f"layers/{name}{layer}_{branch}"] = rearrange(out, to_grid, h=h, w=w)
                x = x + out
        x = rearrange(transformer.norm(x), to_grid, h=h, w=w)
        outputs[f"{name}_out"] = x
    return outputs


def test_every_stage(stages, golden):
    tolerances = {"patch_emb": 5e-5, "spatial_bias": 1e-5}
    assert len(stages) == 16
    for name, value in stages.items():
        difference = largest_difference(value, golden[f"out/{name}"])
        assert difference < tolerances.get(name, TOKEN), f"{name} is off by {difference}"


def test_scanned_tower_and_quantizer(tower, tiny, golden):
    tower, volume = tower
    codebook = tiny[1]["codebook"]
    tokens = jax.jit(tower)(volume)
    assert largest_difference(tokens, golden["out/temporal_out"]) < TOKEN
    indices = vector_quantizer.nearest(tokens, codebook)
    np.testing.assert_array_equal(indices, golden["out/vq_indices"])
    quantized = vector_quantizer.quantize(tokens, codebook)
    np.testing.assert_array_equal(quantized, golden["out/vq_tokens"])
    pooled = rearrange(quantized.mean(axis=1), "b h w d -> b (h w d)")
    assert largest_difference(pooled, golden["out/enc_image_pooled"]) < 2e-6


def test_patches_of_air(tower, golden):
    embedded = tower[0].patch_embed(patchify(golden["extra/air_volume"][:, 0], tower[0].patch))
    assert largest_difference(embedded, golden["extra/air_patch_emb"]) < 8e-5


@pytest.mark.parametrize(("epsilon", "fast_variance"), [(1e-6, False), (1e-5, True)])
def test_goldens_catch_flax_layer_norm_defaults(tower, golden, epsilon, fast_variance):
    graph, state = nnx.split(tower[0].patch_embed)
    wrong: PatchEmbedding = nnx.merge(graph, state)
    for norm in (wrong.norm_in, wrong.norm_out):
        norm.epsilon, norm.use_fast_variance = epsilon, fast_variance
    patches = patchify(golden["extra/air_volume"][:, 0], tower[0].patch)
    embedded = wrong.norm_out(wrong.proj(wrong.norm_in(patches)))
    assert largest_difference(embedded, golden["extra/air_patch_emb"]) > 5e-4


def first_block(tower) -> Block:
    return jax.tree.map(lambda leaf: leaf[0], tower.spatial.blocks)


def wrong_gelu(block, x):
    value, gate = jnp.split(block.ff.up(block.ff.norm(x)), 2, axis=-1)
    return block.ff.down(jax.nn.gelu(gate, approximate=True) * value)


def swapped_halves(block, x):
    gate, value = jnp.split(block.ff.up(block.ff.norm(x)), 2, axis=-1)
    return block.ff.down(jax.nn.gelu(gate, approximate=False) * value)


def flipped_kernel(block, x):
    kernel = block.peg.kernel[...][::-1, ::-1, ::-1]
    x = x.reshape(-1, *block.grid, x.shape[-1])
    return causal_depthwise_conv(x, kernel, block.peg.bias[...])


def transposed_kernel(block, x):
    kernel = block.peg.kernel[...].transpose(0, 2, 1, 3)
    x = x.reshape(-1, *block.grid, x.shape[-1])
    return causal_depthwise_conv(x, kernel, block.peg.bias[...])


def normalized_keys(block, x, bias):
    attn = block.attn
    from_raw = attn.key_value
    attn.key_value = lambda raw: from_raw(attn.norm(raw))
    return block.attend(x, bias)


@pytest.mark.parametrize(
    ("branch", "mistake"),
    [
        ("ff", wrong_gelu),
        ("ff", swapped_halves),
        ("peg", flipped_kernel),
        ("peg", transposed_kernel),
        ("attn", normalized_keys),
    ],
)
def test_goldens_catch_usual_mistakes(tower, stages, golden, branch, mistake):
    block = first_block(tower[0])
    x = rearrange(golden["out/patch_emb"], "b t h w d -> b t (h w) d")
    inputs = {"peg": (x,)}
    x = x + rearrange(golden["out/layers/spatial0_peg"], "b t h w d -> b t (h w) d")
    inputs["attn"] = (x, golden["out/spatial_bias"])
    x = x + rearrange(golden["out/layers/spatial0_attn"], "b t h w d -> b t (h w) d")
    inputs["ff"] = (x,)
    expected = golden[f"out/layers/spatial0_{branch}"]
    wrong = mistake(block, *inputs[branch]).reshape(expected.shape)
    assert largest_difference(wrong, expected) > 2 * TOKEN


def test_goldens_catch_a_temporal_peg_on_the_true_grid(tower, golden):
    block = jax.tree.map(lambda leaf: leaf[0], tower[0].temporal.blocks)
    wrong = block.peg(golden["out/spatial_out"])
    assert largest_difference(wrong, golden["out/layers/temporal0_peg"]) > 0.01


@pytest.mark.parametrize("window", [(-1000.0, 1000.0), (-1350.0, 150.0)])
def test_the_window_of_integer_volumes_becomes_minus_one_to_one(window):
    low, high = window
    steps = jnp.array([16 * low, 8 * (low + high), 16 * high], jnp.int16)
    np.testing.assert_array_equal(normalize_intensity(steps, window), [-1, 0, 1])
    already = jnp.array([-1.0, 0.25], jnp.float32)
    np.testing.assert_array_equal(normalize_intensity(already, window), already)
