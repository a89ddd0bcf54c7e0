"""What a contrastive loss needs of all pairs of texts and volumes, at once or block by block.

The logits of a text with all volumes are summed up in a few numbers, and so are those of a volume
with all texts. The numbers of the blocks of the matrix combine to those of the whole, so that the
matrix itself need never lie in memory: on several devices the volumes travel in a ring past the
texts (arXiv 2303.15343), on each device the texts go row by row.
"""

import functools

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from ctclip_jax.common.shapes import Array, Bool

# Finite, unlike -inf: the gradient of the logsumexp of nothing must be zero, not nan.
MASKED = -1e30

Side = dict[str, Array]  # latents (n d), owner (n)[, scan, report (n)][, normal (n)]
Sums = dict[str, Array]  # (n) each


def pair_sums(text: Side, image: Side, scalars: Sums) -> tuple[Sums, Sums]:
    """The sums of every text over all volumes, and of every volume over all texts.

    A text and a volume match when their `owner` is the same. Two volumes that share a `scan` or a
    `report`, where these are given, are no negatives of each other. Where `normal` is given, the
    normal volumes are counted apart. `scalars` are {'temperature'[, 'bias']}.

    Returns for every text or volume:
      own: the logit of its match (their sum, of several).
      negatives: the logsumexp of its logits with the others that count.
      questions: the sum of the softplus of the same logits.
      normals, count: the sum of its logits with the other normal volumes, and how many they are.
      rival: its largest logit with another that counts; no gradient passes.
    """
    with jax.default_matmul_precision("float32"):
        logits = scalars["temperature"] * (text["latents"] @ image["latents"].T)
    if "bias" in scalars:
        logits = logits + scalars["bias"]
    own = _equal(text, image, "owner")
    others = ~own
    if "scan" in text:
        others &= ~(_equal(text, image, "scan") | _equal(text, image, "report"))
    normals = jnp.zeros_like(own)
    if "normal" in text:
        normals = others & text["normal"][:, None] & image["normal"][None, :]
    return tuple(_sums_along(axis, logits, own, others, normals) for axis in (1, 0))


def ring_sums(
    text: Side, image: Side, scalars: Sums, *, rows: int, mesh: Mesh
) -> tuple[Sums, Sums]:
    """`pair_sums` with `rows` texts of a device against a device's volumes at a time.

    `rows` divides the texts of a device, or is larger. Texts and volumes are cut over all axes of
    `mesh`, and the results are cut as they are.
    """
    cut = P(mesh.axis_names)
    ring = functools.partial(_ring, rows=rows, axes=mesh.axis_names)
    return jax.shard_map(ring, mesh=mesh, in_specs=(cut, cut, P()), out_specs=(cut, cut))(
        text, image, scalars
    )


def _sums_along(axis: int, logits: Array, own: Array, others: Array, normals: Array) -> Sums:
    def total(values: Array, where: Array) -> Array:
        return jnp.sum(jnp.where(where, values, 0.0), axis=axis)

    masked = jnp.where(others, logits, MASKED)
    return {
        "own": total(logits, own),
        "negatives": jax.nn.logsumexp(masked, axis=axis),
        "questions": total(jax.nn.softplus(logits), others),
        "normals": total(logits, normals),
        "count": jnp.sum(normals, axis=axis, dtype=jnp.float32),
        "rival": jnp.max(jax.lax.stop_gradient(masked), axis=axis),
    }


def _ring(text: Side, image: Side, scalars: Sums, *, rows: int, axes: tuple[str, ...]):
    """On every device: its texts past all volumes, which arrive one device's share at a time."""
    devices = jax.lax.axis_size(axes)
    onward = [(device, (device + 1) % devices) for device in range(devices)]

    def hop(carry, _):
        of_texts, image, of_images = carry
        here = _row_blocks(text, image, scalars, rows=rows)
        of_texts, of_images = map(_combine, (of_texts, of_images), here)
        return (of_texts, *jax.lax.ppermute((image, of_images), axes, onward)), None

    start = (_nothing(text), image, _nothing(image))
    (of_texts, _, of_images), _ = jax.lax.scan(jax.checkpoint(hop), start, length=devices)
    return of_texts, of_images


def _row_blocks(text: Side, image: Side, scalars: Sums, *, rows: int) -> tuple[Sums, Sums]:
    """`pair_sums`, one block of texts after the other."""
    rows = min(rows, len(text["owner"]))
    blocks = jax.tree.map(lambda each: each.reshape(-1, rows, *each.shape[1:]), text)

    def block(of_images, text):
        of_texts, here = pair_sums(text, image, scalars)
        return _combine(of_images, here), of_texts

    of_images, of_texts = jax.lax.scan(jax.checkpoint(block), _nothing(image), blocks)
    return jax.tree.map(jnp.ravel, of_texts), of_images


def _nothing(side: Side) -> Sums:
    """The sums over no pair at all."""
    # Made of the argument, so that it varies over the devices as the sums of pairs do.
    zeros = 0.0 * side["latents"][:, 0]
    low = zeros + MASKED
    sums = dict.fromkeys(("own", "questions", "normals", "count"), zeros)
    return sums | {"negatives": low, "rival": jax.lax.stop_gradient(low)}


def _combine(a: Sums, b: Sums) -> Sums:
    how = {"negatives": jnp.logaddexp, "rival": jnp.maximum}
    return {name: how.get(name, jnp.add)(a[name], b[name]) for name in a}


def _equal(text: Side, image: Side, name: str) -> Bool[Array, "t i"]:
    return text[name][:, None] == image[name][None, :]
