"""Implementations of attention: equal values and gradients, also of the bias; who runs where."""

import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.models.kernels import attention_tpu
from ctclip_jax.models.kernels.attention import (
    attention,
    choose,
    relative_to_largest,
)
from ctclip_jax.models.kernels.placement import use_mesh
from ctclip_jax.models.layers import l2_normalize, l2_normalize_heads

GROUPS, TOKENS, HEADS, SIZE = 8, 16, 8, 32
SCALE = 8.0
on_cpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="interpreted on CPUs only")
PALLAS = pytest.param("pallas", marks=on_cpu)


@pytest.fixture(scope="module")
def inputs():
    """Query, key and value of unit length, and a bias: two blocks of 128 lanes of heads."""
    keys = jax.random.split(jax.random.key(0), 4)
    vectors = (jax.random.normal(key, (GROUPS, TOKENS, HEADS, SIZE)) for key in keys[:3])
    return *map(l2_normalize, vectors), jax.random.normal(keys[3], (HEADS, TOKENS, TOKENS))


def value_and_gradients(attend, inputs):
    def total(inputs):
        mixed = attend(*inputs)
        return jnp.sum(jnp.sin(3 * mixed.astype(jnp.float32))), mixed

    return jax.tree.leaves(jax.jit(jax.grad(total, has_aux=True))(inputs))


def jax_attention(query, key, value, bias):
    """jax's own attention, through the function whose cuDNN implementation we use."""
    return jax.nn.dot_product_attention(
        query, key, value, bias[None], scale=SCALE, implementation="xla"
    )


def our_attention(implementation):
    return functools.partial(attention, scale=SCALE, implementation=implementation)


def rounded_to_bfloat16(inputs):
    *vectors, bias = inputs
    return *(x.astype(jnp.bfloat16) for x in vectors), bias


def exact_value_and_gradients(inputs):
    """In float64, of the same numbers."""

    def attend(query, key, value, bias):
        logits = SCALE * jnp.einsum("gihc,gjhc->ghij", query, key) + bias[None]
        return jnp.einsum("ghij,gjhc->gihc", jax.nn.softmax(logits), value)

    with jax.enable_x64():
        exact = tuple(jnp.asarray(np.asarray(x, np.float64)) for x in inputs)

        def total(inputs):
            mixed = attend(*inputs)
            return jnp.sum(jnp.sin(3 * mixed)), mixed

        return [np.asarray(x) for x in jax.tree.leaves(jax.grad(total, has_aux=True)(exact))]


def relative_errors(leaves, exact):
    return [
        np.linalg.norm(np.asarray(a, np.float64) - b) / np.linalg.norm(b)
        for a, b in zip(leaves, exact, strict=True)
    ]


def test_attention_equals_jax(inputs):
    ours, theirs = (value_and_gradients(f, inputs) for f in (our_attention("xla"), jax_attention))
    for a, b in zip(ours, theirs, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("implementation", ["xla", PALLAS])
def test_float32_is_exact_to_its_rounding(inputs, implementation):
    ours = value_and_gradients(our_attention(implementation), inputs)
    errors = relative_errors(ours, exact_value_and_gradients(inputs))
    assert max(errors) < 1e-6, errors


@on_cpu
def test_the_kernel_in_bfloat16_is_as_accurate_as_the_plain_form(inputs):
    rounded = rounded_to_bfloat16(inputs)
    exact = exact_value_and_gradients(rounded)
    plain, kernel = (
        relative_errors(value_and_gradients(our_attention(name), rounded), exact)
        for name in ("xla", "pallas")
    )
    # dk and dq round the same gradient of the logits: equal but for luck, some percent.
    assert all(a <= 1.05 * b for a, b in zip(kernel, plain, strict=True)), (kernel, plain)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize("rows", [8, 6])
@pytest.mark.parametrize("implementation", ["xla", PALLAS])
def test_sharded_equals_unsharded(inputs, implementation, rows, has_bias):
    """Six rows do not divide eight devices: each computes them all."""
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    whole = NamedSharding(mesh, P())
    by_row = whole if rows % mesh.size else NamedSharding(mesh, P(mesh.axis_names))
    *vectors, bias = inputs
    vectors, biases = [x[:rows] for x in vectors], [bias] if has_bias else []
    sharded = (*jax.device_put(vectors, by_row), *jax.device_put(biases, whole))

    def attend(query, key, value, bias=None):
        return our_attention(implementation)(query, key, value, bias)

    def attend_on_mesh(*inputs):
        with use_mesh(mesh):
            return attend(*inputs)

    alone = value_and_gradients(attend, (*vectors, *biases))
    assert max(relative_errors(value_and_gradients(attend_on_mesh, sharded), alone)) < 1e-6


@pytest.mark.parametrize("implementation", ["xla", PALLAS])
def test_attention_without_a_bias_has_a_bias_of_zero(inputs, implementation):
    *vectors, bias = inputs
    attend = our_attention(implementation)
    with_zero = value_and_gradients(attend, (*vectors, 0 * bias))
    without = value_and_gradients(lambda *x: attend(*x, None), vectors)
    # without a gradient of the bias
    assert max(relative_errors(without, [*with_zero[:3], with_zero[-1]])) < 1e-6


def test_masked_keys_have_no_weight(inputs):
    query, key, value, _ = inputs
    lengths = np.arange(GROUPS) + 3
    mask = jnp.asarray(np.arange(TOKENS)[None] < lengths[:, None])
    masked = attention(query, key, value, None, scale=SCALE, implementation="xla", mask=mask)
    for row, length in enumerate(lengths):
        part = [x[row : row + 1, :length] for x in (key, value)]
        alone = our_attention("xla")(query[row : row + 1], *part, None)
        np.testing.assert_allclose(masked[row : row + 1], alone, rtol=1e-5, atol=1e-6)
    with pytest.raises(ValueError, match="mask"):
        attention(query, key, value, None, scale=SCALE, implementation="pallas", mask=mask)


@pytest.mark.parametrize("implementation", ["cudnn", "pallas"])
def test_a_fused_kernel_that_is_asked_for_takes_no_dropout(inputs, implementation):
    with pytest.raises(ValueError, match=f"'{implementation}' takes no dropout"):
        our_attention(implementation)(*inputs, dropout=lambda weights: weights)


def test_dropout_is_applied_to_the_weights(inputs):
    attend = functools.partial(our_attention("auto"), dropout=lambda weights: 2 * weights)
    np.testing.assert_allclose(attend(*inputs), 2 * our_attention("xla")(*inputs), rtol=1e-6)


def test_the_tpu_kernel_is_not_interpreted_on_a_gpu(inputs):
    with use_mesh(abstract_mesh("gpu")), pytest.raises(ValueError, match="'pallas' is for TPUs"):
        our_attention("pallas")(*inputs)


def test_no_product_of_the_gradient_is_float32(inputs):
    """A float32 product of a bfloat16 model runs without tensor cores, ten times slower."""

    def total(inputs):
        return jnp.sum(our_attention("xla")(*inputs).astype(jnp.float32))

    jaxpr = jax.make_jaxpr(jax.grad(total))(rounded_to_bfloat16(inputs))
    products = [x for x in jaxpr.jaxpr.eqns if x.primitive.name == "dot_general"]
    assert len(products) == 5
    assert all(v.aval.dtype == jnp.bfloat16 for x in products for v in x.invars)


def test_cudnn_bias_is_relative_to_the_largest_of_its_row():
    """The guard against NaN changes neither values nor gradients, and bounds the log-sum-exp."""
    rng = np.random.default_rng(0)
    with jax.enable_x64():
        similarity = jnp.asarray(SCALE * rng.uniform(-1, 1, (HEADS, TOKENS, TOKENS)))
        bias = jnp.asarray(rng.uniform(-300, -100, (HEADS, TOKENS, TOKENS)))
        weights = jnp.asarray(rng.normal(size=bias.shape))

        def total(bias, guard):
            return jnp.sum(weights * jax.nn.softmax(similarity + guard(bias)))

        plain, guarded = (
            jax.value_and_grad(total)(bias, guard) for guard in (lambda x: x, relative_to_largest)
        )
        np.testing.assert_allclose(guarded[0], plain[0], rtol=1e-12)
        np.testing.assert_allclose(guarded[1], plain[1], rtol=1e-9, atol=1e-14)
        lse = [jax.nn.logsumexp(similarity + x, axis=-1) for x in (bias, relative_to_largest(bias))]
        assert lse[0].max() < -88.7
        assert lse[1].min() >= -SCALE


KINDS = {"cpu": "cpu", "gpu": "NVIDIA H100 80GB HBM3", "tpu": "TPU v5 lite"}


def abstract_mesh(platform, kind=None):
    device = jax.sharding.AbstractDevice(kind or KINDS[platform], 1, platform)
    return jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)


@pytest.mark.parametrize(
    ("platform", "dtype", "tokens", "has_bias", "expected"),
    [
        ("gpu", "bfloat16", 576, True, "cudnn"),
        ("gpu", "bfloat16", 24, False, "xla"),
        ("gpu", "bfloat16", 577, True, "xla"),
        ("gpu", "float32", 576, True, "xla"),
        ("tpu", "bfloat16", 576, True, "pallas"),
        ("tpu", "float32", 576, True, "pallas"),
        ("tpu", "bfloat16", 24, False, "pallas"),
        ("tpu", "bfloat16", 1536, False, "xla"),  # too large a plane
        ("cpu", "bfloat16", 576, True, "xla"),
    ],
)
def test_auto_is_the_implementation_of_the_platform(platform, dtype, tokens, has_bias, expected):
    query = jax.ShapeDtypeStruct((24, tokens, HEADS, SIZE), jnp.dtype(dtype))
    bias = jax.ShapeDtypeStruct((HEADS, tokens, tokens), jnp.float32) if has_bias else None
    with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
        assert choose(query, query, bias, None) == expected


@pytest.mark.parametrize(
    ("platform", "has_bias", "expected"),
    [("gpu", False, "cudnn"), ("gpu", True, "xla"), ("tpu", False, "xla"), ("cpu", False, "xla")],
)
def test_auto_with_a_mask(platform, has_bias, expected):
    """cuDNN takes a bias or a mask, and the TPU kernel no mask."""
    assert choose_for(abstract_mesh(platform), has_bias=has_bias, has_mask=True) == expected


@pytest.mark.parametrize(
    ("platform", "kind", "expected"),
    [
        ("tpu", "TPU v4", "xla"),  # has less VMEM
        ("tpu", "TPU v5", "pallas"),
        ("gpu", "Tesla V100-SXM2-16GB", "xla"),
        ("gpu", "AMD Instinct MI300X", "xla"),
    ],
)
def test_auto_knows_the_kind_of_the_device(platform, kind, expected):
    assert choose_for(abstract_mesh(platform, kind)) == expected


@pytest.mark.parametrize(("capability", "expected"), [("7.5", "xla"), ("10.0", "cudnn")])
def test_auto_asks_a_gpu_that_is_here(monkeypatch, capability, expected):
    kind = "NVIDIA GeForce RTX"
    device = types.SimpleNamespace(device_kind=kind, compute_capability=capability)
    monkeypatch.setattr(jax, "devices", lambda: [device])
    assert choose_for(abstract_mesh("gpu", kind)) == expected


def choose_for(mesh, *, has_bias=True, has_mask=False):
    """The choice for the spatial attention of the published model, or with a mask."""
    query = jax.ShapeDtypeStruct((24, 576, HEADS, SIZE), jnp.bfloat16)
    bias = jax.ShapeDtypeStruct((HEADS, 576, 576), jnp.float32) if has_bias else None
    mask = jax.ShapeDtypeStruct((24, 576), jnp.bool_) if has_mask else None
    with use_mesh(mesh):
        return choose(query, query, bias, mask)


def test_the_norm_of_heads_is_the_same_on_a_tpu():
    rng = np.random.default_rng(0)
    x, cotangent = (jnp.asarray(rng.normal(size=(2, 5, 64)), jnp.float32) for _ in range(2))
    x = x.at[0, 0].set(0.0)

    def compute(platform):
        @jax.jit
        def value_and_gradient(x):
            with jax.sharding.use_abstract_mesh(abstract_mesh(platform)):
                out, pull_back = jax.vjp(lambda x: l2_normalize_heads(x, 4), x)
            return out, *pull_back(cotangent)

        return value_and_gradient(x)

    for a, b in zip(compute("tpu"), compute("cpu"), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_models_of_other_widths_do_not_fit_the_tpu_kernel():
    assert attention_tpu.fits(24, 576, 8, 32, has_bias=True)
    assert not attention_tpu.fits(24, 576, 3, 32, has_bias=True)
    assert not attention_tpu.fits(24, 576, 8, 48, has_bias=True)
    assert not attention_tpu.fits(24, 36, 8, 32, has_bias=True)
    assert not attention_tpu.fits(3, 24, 8, 32, has_bias=False)  # 72 tokens


@pytest.mark.parametrize(("heads", "size"), [(6, 32), (3, 48), (8, 48), (1, 192)])
def test_heads_that_fill_no_blocks_are_refused(heads, size):
    query = jnp.zeros((2, TOKENS, heads, size))
    with pytest.raises(ValueError, match=f"{heads} heads of {size}: heads must fill blocks of 128"):
        our_attention("pallas")(query, query, query, None)


needs_gpu = pytest.mark.skipif(
    jax.default_backend() != "gpu", reason="cuDNN needs a GPU: JAX_PLATFORMS=cuda pytest ..."
)


@needs_gpu
@pytest.mark.parametrize("shift", [0.0, -100.0])
def test_fused_attention_is_as_accurate_as_ours(inputs, shift):
    """Also where every bias is strongly negative, for 576 tokens: 576 % 128 is 64."""
    keys = jax.random.split(jax.random.key(0), 4)
    vectors = (jax.random.normal(key, (2, 576, HEADS, SIZE)) for key in keys[:3])
    bias = shift + jax.random.normal(keys[3], (HEADS, 576, 576))
    rounded = rounded_to_bfloat16((*map(l2_normalize, vectors), bias))
    exact = exact_value_and_gradients(rounded)
    ours, fused = (
        relative_errors(value_and_gradients(our_attention(name), rounded), exact)
        for name in ("xla", "cudnn")
    )
    assert all(a <= 2 * b for a, b in zip(fused, ours, strict=True)), (ours, fused)
