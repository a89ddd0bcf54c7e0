"""Sums over all (text, volume) pairs of a batch that contrastive losses need, whole or in blocks.

The logits of a text with all volumes reduce to a few numbers, and so do those of a volume with all
texts. The numbers of two blocks of the matrix combine into those of both, so that the matrix itself
need never fit into memory: across devices the volumes travel in a ring past the texts (arXiv
2303.15343), on each device the texts go block by block.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.shapes import Array, Bool

# Finite, unlike -inf: the gradient of a logsumexp over nothing must be zero, not NaN.
MASKED = -1e30

Side = dict[str, Array]  # latents (n d), pair_id (n)[, scan, report (n)][, normal (n)]
PairSums = dict[str, Array]  # (n) each; see pair_sums


def pair_sums(text: Side, image: Side, scalars: dict[str, Array]) -> tuple[PairSums, PairSums]:
    """The sums of every text over all volumes, and of every volume over all texts.

    A text and a volume are a positive pair if their `pair_id` is equal. Two volumes that share a
    `scan` or a `report`, if those are present, are excluded as negatives. If `normal` is present,
    pairs of normal volumes are also summed separately. `scalars` are {temperature[, bias]}.

    Returns for every text or volume:
      positive: logit of its positive (summed, if there are several).
      negatives_lse: logsumexp of its logits with all negatives.
      negatives_softplus: sum of the softplus of the same logits.
      normal_logits, num_normal: sum of its logits with other normal volumes, and their number.
      hardest_negative: its largest logit with a negative; no gradient.
    """
    with jax.default_matmul_precision("float32"):
        logits = scalars["temperature"] * (text["latents"] @ image["latents"].T)
    if "bias" in scalars:
        logits = logits + scalars["bias"]
    is_positive = _equal(text, image, "pair_id")
    is_negative = ~is_positive
    if "scan" in text:
        is_negative &= ~(_equal(text, image, "scan") | _equal(text, image, "report"))
    is_normal = jnp.zeros_like(is_positive)
    if "normal" in text:
        is_normal = is_negative & text["normal"][:, None] & image["normal"][None, :]
    return tuple(_sum_along(axis, logits, is_positive, is_negative, is_normal) for axis in (1, 0))


def ring_sums(
    text: Side, image: Side, scalars: dict[str, Array], *, block_size: int, mesh: Mesh
) -> tuple[PairSums, PairSums]:
    """`pair_sums` with `block_size` texts of a device against one device's volumes at a time.

    `block_size` divides the texts of a device, or is larger. Texts, volumes and results are sharded
    over all axes of `mesh`.
    """
    sharded = P(mesh.axis_names)
    ring = functools.partial(_ring, block_size=block_size, axes=mesh.axis_names)
    specs = {"in_specs": (sharded, sharded, P()), "out_specs": (sharded, sharded)}
    return jax.shard_map(ring, mesh=mesh, **specs)(text, image, scalars)


def _sum_along(
    axis: int, logits: Array, is_positive: Array, is_negative: Array, is_normal: Array
) -> PairSums:
    def total(values: Array, mask: Array) -> Array:
        return jnp.sum(jnp.where(mask, values, 0.0), axis=axis)

    negatives = jnp.where(is_negative, logits, MASKED)
    return {
        "positive": total(logits, is_positive),
        "negatives_lse": jax.nn.logsumexp(negatives, axis=axis),
        "negatives_softplus": total(jax.nn.softplus(logits), is_negative),
        "normal_logits": total(logits, is_normal),
        "num_normal": jnp.sum(is_normal, axis=axis, dtype=jnp.float32),
        "hardest_negative": jnp.max(jax.lax.stop_gradient(negatives), axis=axis),
    }


def _ring(
    text: Side, image: Side, scalars: dict[str, Array], *, block_size: int, axes: tuple[str, ...]
):
    """Per device: its texts against all volumes, which arrive one device's share at a time."""
    num_devices = jax.lax.axis_size(axes)
    to_next = [(device, (device + 1) % num_devices) for device in range(num_devices)]

    def hop(carry, _):
        text_sums, image, image_sums = carry
        block = _sums_by_text_block(text, image, scalars, block_size=block_size)
        text_sums, image_sums = map(_combine, (text_sums, image_sums), block)
        return (text_sums, *jax.lax.ppermute((image, image_sums), axes, to_next)), None

    start = (_empty_sums(text), image, _empty_sums(image))
    # Checkpointed: the backward pass computes the logits of a hop again instead of storing them.
    (text_sums, _, image_sums), _ = jax.lax.scan(jax.checkpoint(hop), start, length=num_devices)
    return text_sums, image_sums


def _sums_by_text_block(
    text: Side, image: Side, scalars: dict[str, Array], *, block_size: int
) -> tuple[PairSums, PairSums]:
    """`pair_sums`, one block of texts after the other."""
    block_size = min(block_size, len(text["pair_id"]))
    blocks = jax.tree.map(lambda array: array.reshape(-1, block_size, *array.shape[1:]), text)

    def add_block(image_sums, text_block):
        text_sums, block_image_sums = pair_sums(text_block, image, scalars)
        return _combine(image_sums, block_image_sums), text_sums

    image_sums, text_sums = jax.lax.scan(jax.checkpoint(add_block), _empty_sums(image), blocks)
    return jax.tree.map(jnp.ravel, text_sums), image_sums


def _empty_sums(side: Side) -> PairSums:
    """The sums over no pair at all."""
    # Derived from the argument, so that they vary over the devices as the sums of pairs do.
    zeros = 0.0 * side["latents"][:, 0]
    lowest = zeros + MASKED
    names = ("positive", "negatives_softplus", "normal_logits", "num_normal")
    return dict.fromkeys(names, zeros) | {
        "negatives_lse": lowest,
        "hardest_negative": jax.lax.stop_gradient(lowest),
    }


def _combine(a: PairSums, b: PairSums) -> PairSums:
    operators = {"negatives_lse": jnp.logaddexp, "hardest_negative": jnp.maximum}
    return {name: operators.get(name, jnp.add)(a[name], b[name]) for name in a}


def _equal(text: Side, image: Side, column: str) -> Bool[Array, "t i"]:
    return text[column][:, None] == image[column][None, :]
