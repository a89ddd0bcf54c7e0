"""Attention with a bias as a Pallas TPU kernel: the logits of a plane never leave VMEM.

A program holds the heads that fill 128 lanes, for one group of tokens. Logits are transposed, keys
by queries: their maximum and sum run over sublanes, and no product transposes more than (n, c).
The gradient of the bias is summed in VMEM over all groups.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax.ad_checkpoint import checkpoint_name
from jax.experimental import pallas as pl
from jax.sharding import AbstractMesh

from ctclip_jax.common.shapes import Array, Float
from ctclip_jax.models.kernels.placement import (
    LANES,
    ROWS,
    WHOLE,
    is_interpreted,
    on_each_device,
    tpu_parameters,
    vmem_bytes,
)

BLOCKS_RULE = "heads must fill blocks of 128 channels, or have up to 128 in all"
MASKED = -1e30  # a bias whose weight is exactly 0


def fits(g: int, n: int, heads: int, c: int, *, has_bias: bool) -> bool:
    """Whether the kernel takes g groups of n tokens: whole tiles, and a backward pass in VMEM."""
    n *= 1 if has_bias else _groups_per_plane(g, n)
    if heads * c < LANES or not fills_blocks(heads, c) or n % 16:
        return False
    # Bias and its gradient, twice each (the pipeline fetches the next), and about eight planes of
    # float32 logits and their gradients.
    plane = 4 * n * (-(-n // LANES) * LANES)
    return (4 * LANES // c + 8) * plane <= vmem_bytes(jax.sharding.get_abstract_mesh())


def fills_blocks(heads: int, c: int) -> bool:
    """Whether the heads fill whole blocks of 128 lanes, or are a single block of fewer lanes."""
    return heads * c <= LANES or ((heads * c) % LANES == 0 and LANES % c == 0)


def attention(
    query: Float[Array, "g n heads c"],
    key: Float[Array, "g n heads c"],
    value: Float[Array, "g n heads c"],
    bias: Float[Array, "heads n n"] | None,
    *,
    scale: float,
) -> Float[Array, "g n heads c"]:
    """softmax(scale * query key^T + bias) value; interpreted on CPUs, for tests."""
    g, n, heads, c = query.shape
    if not fills_blocks(heads, c):  # the last heads would not be written
        raise ValueError(f"attention: 'pallas' takes no {heads} heads of {c}: {BLOCKS_RULE}")
    if bias is None:
        # Small groups share a plane, whose bias hides them from each other: 24 tokens fill no tile.
        count = _groups_per_plane(g, n)
        is_own_group = np.kron(np.eye(count), np.ones((n, n)))
        bias = jnp.tile(jnp.where(is_own_group, 0.0, MASKED)[None], (heads, 1, 1))
        g, n = g // count, n * count
    vectors = (x.reshape(g, n, heads * c) for x in (query, key, value))
    mesh = jax.sharding.get_abstract_mesh()
    out = _attend(*vectors, jnp.swapaxes(bias, 1, 2), c, scale, mesh, is_interpreted())
    return out.reshape(query.shape)


def _groups_per_plane(g: int, n: int) -> int:
    """A divisor of each device's groups, so that a plane has up to 192 tokens, or those of one."""
    devices = max(jax.sharding.get_abstract_mesh().size, 1)
    return math.gcd(g if g % devices else g // devices, max(192 // n, 1))


def _dot(a, b, contract_a: int, contract_b: int):
    # The precision of the context is float32, which bfloat16 operands must not ask for.
    exact = a.dtype == jnp.float32
    return jax.lax.dot_general(
        a,
        b,
        (((contract_a,), (contract_b,)), ((), ())),
        precision=jax.lax.Precision.HIGHEST if exact else jax.lax.Precision.DEFAULT,
        preferred_element_type=jnp.float32,
    )


def _forward(q, k, v, bias, out, lse, *, c, scale):
    outs = []
    for h in range(bias.shape[0]):
        lanes = slice(h * c, (h + 1) * c)
        logits = _dot(k[0, :, lanes], scale * q[0, :, lanes], 1, 1) + bias[h]
        largest = jnp.max(logits, axis=0, keepdims=True)
        e = jnp.exp(logits - largest)
        total = jnp.sum(e, axis=0, keepdims=True)
        outs.append(_dot(v[0, :, lanes], e.astype(v.dtype), 0, 0) / total)
        lse[0, 0, h : h + 1, :] = largest + jnp.log(total)
    out[0] = jnp.concatenate(outs, axis=0).T.astype(out.dtype)


def _backward(q, k, v, bias, out, lse, ct, dq, dk, dv, dbias, *, c, scale):
    @pl.when(pl.program_id(1) == 0)
    def _():
        dbias[...] = jnp.zeros_like(dbias)

    products = ct[0].astype(jnp.float32) * out[0].astype(jnp.float32)
    dqs, dks, dvs = [], [], []
    for h in range(bias.shape[0]):
        lanes = slice(h * c, (h + 1) * c)
        qh, kh, vh, cth = scale * q[0, :, lanes], k[0, :, lanes], v[0, :, lanes], ct[0, :, lanes]
        logits = _dot(kh, qh, 1, 1) + bias[h]
        p = jnp.exp(logits - lse[0, 0, h : h + 1, :])
        dvs.append(_dot(cth, p.astype(cth.dtype), 0, 1))
        delta = jnp.sum(products[:, lanes].T, axis=0, keepdims=True)
        ds = p * (_dot(vh, cth, 1, 1) - delta)
        dbias[h] += ds
        ds = ds.astype(qh.dtype)
        dks.append(_dot(qh, ds, 0, 1))
        dqs.append(_dot(kh, ds, 0, 0) * scale)
    for rows, ref in ((dqs, dq), (dks, dk), (dvs, dv)):
        ref[0] = jnp.concatenate(rows, axis=0).T.astype(ref.dtype)


def _call(
    kernel, inputs: str, outputs: str, *, c: int, scale: float, mesh: AbstractMesh, interpret: bool
):
    """A pallas_call over (blocks of heads, groups) on arrays of these kinds:

    'x': (g, n, heads * c) in the dtype of the query; 'b': (heads, n, n) and 'l': (g, blocks, heads
    of a block, n) in float32.
    """

    def run(*args):
        (g, n, d), dtype = args[0].shape, args[0].dtype
        # Models of the tests are narrower than 128 lanes.
        width = min(LANES, d)
        heads, blocks = width // c, d // width
        specs = {
            "x": pl.BlockSpec((1, n, width), lambda h, i: (i, 0, h)),
            "b": pl.BlockSpec((heads, n, n), lambda h, i: (h, 0, 0)),
            "l": pl.BlockSpec((1, 1, heads, n), lambda h, i: (i, h, 0, 0)),
        }
        shapes = {
            "x": jax.ShapeDtypeStruct((g, n, d), dtype),
            "b": jax.ShapeDtypeStruct((d // c, n, n), jnp.float32),
            "l": jax.ShapeDtypeStruct((g, blocks, heads, n), jnp.float32),
        }
        num_products = 5 if "b" in outputs else 2
        return pl.pallas_call(
            functools.partial(kernel, c=c, scale=scale),
            grid=(blocks, g),
            in_specs=[specs[kind] for kind in inputs],
            out_specs=[specs[kind] for kind in outputs],
            out_shape=[shapes[kind] for kind in outputs],
            compiler_params=tpu_parameters(mesh, "parallel", "arbitrary"),
            cost_estimate=pl.CostEstimate(
                flops=2 * num_products * g * n * n * d,
                bytes_accessed=len(inputs + outputs) * g * n * d * dtype.itemsize,
                transcendentals=g * n * n * d // c,
            ),
            interpret=interpret,
            name="attention" + kernel.__name__,
        )(*args)

    return run


def _run_forward(q, k, v, bias, c, scale, mesh, interpret):
    run = _call(_forward, "xxxb", "xl", c=c, scale=scale, mesh=mesh, interpret=interpret)
    in_specs, out_specs = (ROWS, ROWS, ROWS, WHOLE), (ROWS, ROWS)
    return on_each_device(run, mesh, in_specs=in_specs, out_specs=out_specs)(q, k, v, bias)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5, 6, 7))
def _attend(q, k, v, bias, c: int, scale: float, mesh: AbstractMesh, interpret: bool):
    return _run_forward(q, k, v, bias, c, scale, mesh, interpret)[0]


def _attend_forward(q, k, v, bias, c, scale, mesh, interpret):
    # Both named, so that a remat policy that saves them does not run the kernel again.
    out, lse = checkpoint_name(_run_forward(q, k, v, bias, c, scale, mesh, interpret), "attention")
    return out, (q, k, v, bias, out, lse)


def _attend_backward(c, scale, mesh, interpret, residuals, ct):
    run = _call(_backward, "xxxbxlx", "xxxb", c=c, scale=scale, mesh=mesh, interpret=interpret)
    in_specs = (ROWS, ROWS, ROWS, WHOLE, ROWS, ROWS, ROWS)
    out_specs = (ROWS, ROWS, ROWS, WHOLE)
    return on_each_device(run, mesh, in_specs=in_specs, out_specs=out_specs)(*residuals, ct)


_attend.defvjp(_attend_forward, _attend_backward)
