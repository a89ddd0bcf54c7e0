"""Every form of the depthwise convolution is the grouped convolution, gradients included."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.extend.core import jaxprs_in_params
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.models.kernels.depthwise_conv import causal_depthwise_conv
from ctclip_jax.models.kernels.placement import use_mesh

HIGHEST = jax.lax.Precision.HIGHEST
on_cpu = pytest.mark.skipif(jax.default_backend() == "gpu", reason="interpreted on CPUs only")
FORMS = ["xla", "padded", pytest.param("pallas", marks=on_cpu)]


@pytest.fixture(scope="module")
def inputs():
    """x, kernel, bias, and the cotangent of the result; two blocks of 128 channels."""
    rng = np.random.default_rng(0)
    shapes = (8, 3, 5, 4, 256), (3, 3, 3, 256), (256,), (8, 3, 5, 4, 256)
    return tuple(jnp.asarray(rng.normal(size=shape), jnp.float32) for shape in shapes)


def value_and_gradients(conv, inputs):
    def compute(*inputs):
        *arguments, cotangent = inputs
        out, pull_back = jax.vjp(conv, *arguments)
        return out, *pull_back(cotangent)

    return jax.jit(compute)(*inputs)


def form(implementation):
    return functools.partial(causal_depthwise_conv, implementation=implementation)


def grouped(x, kernel, bias):
    convolved = jax.lax.conv_general_dilated(
        x,
        kernel[..., None, :],
        window_strides=(1, 1, 1),
        padding=((2, 0), (1, 1), (1, 1)),
        dimension_numbers=("NDHWC", "DHWIO", "NDHWC"),
        feature_group_count=x.shape[-1],
    )
    return convolved + bias[None, None, None, None]


def relative_errors(arrays, exact):
    pairs = zip(arrays, exact, strict=True)
    pairs = ((np.asarray(a, np.float64), np.asarray(b, np.float64)) for a, b in pairs)
    return [np.linalg.norm(a - b) / np.linalg.norm(b) for a, b in pairs]


@pytest.mark.parametrize("implementation", FORMS)
def test_it_is_the_grouped_convolution(inputs, implementation):
    # Few channels: the gradient of a grouped convolution is slow on a CPU.
    few = inputs if implementation == "pallas" else tuple(x[..., :6] for x in inputs)
    ours, theirs = (value_and_gradients(f, few) for f in (form(implementation), grouped))
    assert max(relative_errors(ours, theirs)) < 1e-6


def test_the_tpu_kernel_is_not_interpreted_on_a_gpu(inputs):
    device = jax.sharding.AbstractDevice("NVIDIA H100", 1, "gpu")
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    with use_mesh(mesh), pytest.raises(ValueError, match="'pallas' is for TPUs"):
        form("pallas")(*inputs[:3])


@pytest.mark.parametrize("implementation", FORMS[1:])
def test_bfloat16_is_as_accurate_as_the_plain_form(inputs, implementation):
    rounded = [x.astype(jnp.bfloat16) for x in inputs]
    exact = value_and_gradients(form("xla"), [x.astype(jnp.float32) for x in rounded])
    plain, other = (
        relative_errors(value_and_gradients(form(name), rounded), exact)
        for name in ("xla", implementation)
    )
    # The gradient of the kernel is the same sum in another order, rounded once.
    assert all(a <= 1.01 * b for a, b in zip(other, plain, strict=True)), (other, plain)


@pytest.mark.parametrize("implementation", FORMS[:2])
def test_float32_products_of_the_gradient_have_a_precision(inputs, implementation):
    """The precision of the model's context does not reach the gradient."""
    jaxpr = jax.make_jaxpr(functools.partial(value_and_gradients, form(implementation)))(inputs)
    products = [x for x in equations(jaxpr.jaxpr) if x.primitive.name == "dot_general"]
    assert products
    assert all(set(x.params["precision"] or [None]) == {HIGHEST} for x in products)


def equations(jaxpr):
    for equation in jaxpr.eqns:
        yield equation
        for inner in jaxprs_in_params(equation.params):
            yield from equations(inner)


@pytest.mark.parametrize("implementation", FORMS)
def test_sharded_equals_unsharded(inputs, implementation):
    mesh = make_mesh(MeshConfig(data=4, fsdp=2))
    rows, whole = NamedSharding(mesh, P(mesh.axis_names)), NamedSharding(mesh, P())

    def conv(*arguments):
        with use_mesh(mesh):
            return form(implementation)(*arguments)

    sharded = jax.device_put(inputs, (rows, whole, whole, rows))
    alone = value_and_gradients(form(implementation), inputs)
    assert max(relative_errors(value_and_gradients(conv, sharded), alone)) < 1e-6


@pytest.mark.parametrize(
    ("platform", "kind", "shape", "primitive"),
    [
        ("gpu", "NVIDIA H100", (1, 2, 2, 8, 512), "optimization_barrier"),
        ("tpu", "TPU v5 lite", (1, 2, 2, 8, 512), "pallas_call"),
        ("tpu", "TPU v5 lite", (1, 2, 2, 8, 48), "mul"),
        ("tpu", "TPU v5", (1, 24, 24, 24, 128), "pallas_call"),
        ("tpu", "TPU v4", (1, 24, 24, 24, 128), "mul"),  # has less VMEM
        ("cpu", "cpu", (1, 2, 2, 8, 512), "mul"),
    ],
)
def test_auto_is_the_form_of_the_platform(platform, kind, shape, primitive):
    device = jax.sharding.AbstractDevice(kind, 1, platform)
    mesh = jax.sharding.AbstractMesh((1,), ("data",), abstract_device=device)
    shapes = shape, (3, 3, 3, shape[-1]), shape[-1:]
    with jax.sharding.use_abstract_mesh(mesh):
        inputs = [jax.ShapeDtypeStruct(shape, jnp.bfloat16) for shape in shapes]
        text = str(jax.make_jaxpr(causal_depthwise_conv)(*inputs))
    primitives = ("optimization_barrier", "pallas_call", "mul")
    assert next(name for name in primitives if name in text) == primitive
