"""The losses: their formulas, sharded equal to unsharded, blocks equal to the whole."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.common.sharding import MeshConfig, make_mesh, put_batch
from ctclip_jax.training.losses import LOSSES, LossConfig, make_loss

OPTIONS = [
    {"mask_twins": twins, "normal_share": share}
    for twins, share in itertools.product((False, True), (0.0, 0.3))
]


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def outputs():
    text, image = unit(np.random.default_rng(0).normal(size=(2, 16, 8)))
    return {"text": text, "image": image, "temperature": np.float32(5), "bias": np.float32(-2)}


@pytest.fixture(scope="module")
def batch():
    """16 volumes of 12 scans, 14 reports; five are normal, two of them of one scan."""
    scan, report = np.arange(16, dtype=np.int32), np.arange(16, dtype=np.int32)
    scan[[1, 2, 9, 13]] = [0, 0, 8, 12]
    report[[4, 5]] = report[3]
    normal = np.isin(np.arange(16), [1, 2, 6, 7, 15])
    return {"scan": scan, "report": report, "normal": normal}


def by_hand(config, outputs, batch):
    """The loss in float64, pair by pair."""
    sim = float(outputs["temperature"]) * outputs["text"].astype(np.float64) @ outputs["image"].T
    if config.name == "sigmoid":
        return _sigmoid_by_hand(sim + float(outputs["bias"]), config, batch)
    sides = [sim] if config.name == "text_to_image" else [sim, sim.T]
    return np.mean([_cross_entropy_by_hand(side, config, batch) for side in sides])


def _twins(i, j, config, batch):
    same = batch["scan"][i] == batch["scan"][j] or batch["report"][i] == batch["report"][j]
    return config.mask_twins and i != j and same


def _normals(i, config, batch):
    """The other normal volumes with which i shares its target."""
    if not config.normal_share or not batch["normal"][i]:
        return []
    others = [j for j in np.flatnonzero(batch["normal"]) if j != i]
    return [j for j in others if not _twins(i, j, config, batch)]


def _cross_entropy_by_hand(sim, config, batch):
    losses = []
    for i in range(len(sim)):
        kept = [j for j in range(len(sim)) if not _twins(i, j, config, batch)]
        if config.name == "decoupled":
            kept.remove(i)
        target = {i: 1.0}
        if normals := _normals(i, config, batch):
            target = {j: config.normal_share / len(normals) for j in normals}
            target[i] = 1 - config.normal_share
        match = sum(weight * sim[i, j] for j, weight in target.items())
        losses.append(np.log(np.exp(sim[i, kept]).sum()) - match)
    return np.mean(losses)


def _sigmoid_by_hand(logits, config, batch):
    loss = 0.0
    for i, j in np.ndindex(logits.shape):
        if not _twins(i, j, config, batch):
            target = 1.0 if i == j else config.normal_share * (j in _normals(i, config, batch))
            probability = 1 / (1 + np.exp(-logits[i, j]))
            loss -= target * np.log(probability) + (1 - target) * np.log(1 - probability)
    return loss / len(logits)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", LOSSES)
def test_formula(name, options, outputs, batch):
    config = LossConfig(name, **options)
    loss, metrics = make_loss(config)(outputs, batch)
    np.testing.assert_allclose(loss, by_hand(config, outputs, batch), rtol=1e-5)
    assert metrics["temperature"] == 5


@pytest.mark.parametrize(("mesh_config", "rows"), [((8, 1), 0), ((2, 4), 1)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
@pytest.mark.parametrize(("name", "texts"), [*((name, 1) for name in LOSSES), ("text_to_image", 3)])
def test_sharded_and_in_blocks_is_whole(name, texts, options, mesh_config, rows, outputs, batch):
    outputs = outputs | {"text": unit(np.random.default_rng(2).normal(size=(16 * texts, 8)))}
    mesh = make_mesh(MeshConfig(*mesh_config))
    config = LossConfig(name, **options)

    def gradient(config):
        loss_fn = make_loss(config, mesh)
        loss_of = lambda outputs, batch: loss_fn(outputs, batch)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss_of, has_aux=True))

    plain = gradient(config)(jax.tree.map(jnp.asarray, outputs), batch)
    sharded = {name: put_batch({name: outputs[name]}, mesh)[name] for name in ("text", "image")}
    blocks = gradient(dataclasses.replace(config, rows=rows))
    again = blocks(outputs | sharded, put_batch(batch, mesh))
    for a, b in zip(*map(jax.tree.leaves, (again, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_the_similarities_of_a_large_batch_never_lie_in_memory_at_once():
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    latents = jax.ShapeDtypeStruct((8192, 8), np.float32)
    scalar = jax.ShapeDtypeStruct((), np.float32)
    outputs = {"text": latents, "image": latents, "temperature": scalar}

    def temporary(rows):
        loss_fn = make_loss(LossConfig("softmax", rows=rows), mesh)
        gradient = jax.jit(jax.grad(lambda outputs: loss_fn(outputs, {})[0]))
        return gradient.lower(outputs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 4 * 1024 * 1024 * 4 < temporary(0)


def test_twins_are_no_negatives(outputs, batch):
    """Without its twin, volume 9 of scan 8 has the loss of a batch without volume 8."""
    grads = jax.grad(
        lambda text: make_loss(LossConfig("text_to_image", mask_twins=True))(
            outputs | {"text": text}, batch
        )[0]
    )(jnp.asarray(outputs["text"]))
    without = np.delete(outputs["image"], 8, axis=0)
    sim = 5 * outputs["text"][9] @ without.T
    weights = np.exp(sim) / np.exp(sim).sum()
    expected = 5 * (weights @ without - outputs["image"][9]) / 16
    np.testing.assert_allclose(grads[9], expected, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", LOSSES)
def test_a_text_without_negatives_has_no_bad_gradient(name, rows, outputs):
    twins = {"scan": np.zeros(8, np.int32), "report": np.zeros(8, np.int32)}
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    loss_fn = make_loss(LossConfig(name, mask_twins=True, rows=rows), mesh)
    few = outputs | {side: outputs[side][:8] for side in ("text", "image")}
    loss, grads = jax.jit(jax.value_and_grad(lambda outputs: loss_fn(outputs, twins)[0]))(few)
    assert np.isfinite(loss) and abs(loss) < 10
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_several_texts_of_an_image_are_each_compared_with_all_images(outputs):
    loss_fn = make_loss(LossConfig("text_to_image"))
    texts = unit(np.random.default_rng(1).normal(size=(16, 3, 8)))
    alone = [loss_fn(outputs | {"text": texts[:, k]}, {}) for k in range(3)]
    loss, metrics = loss_fn(outputs | {"text": texts.reshape(48, 8)}, {})
    np.testing.assert_allclose(loss, np.mean([each for each, _ in alone]), rtol=1e-6)
    accuracies = [each["text_to_image_accuracy"] for _, each in alone]
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], np.mean(accuracies), rtol=1e-6)


def test_texts_in_unequal_numbers_are_refused(outputs):
    with pytest.raises(ValueError, match="16 texts cannot belong to 5 images"):
        make_loss(LossConfig("text_to_image"))(outputs | {"image": outputs["image"][:5]}, {})


def test_large_similarities_stay_finite(outputs):
    hot = outputs | {"temperature": np.float32(1e4)}
    assert all(np.isfinite(make_loss(LossConfig(name))(hot, {})[0]) for name in LOSSES)


def test_accuracy_counts_texts_that_find_their_image(outputs):
    swapped = outputs | {"image": outputs["text"].copy()}
    swapped["image"][[0, 1]] = swapped["image"][[1, 0]]
    _, metrics = make_loss(LossConfig("softmax"))(swapped, {})
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 14 / 16)
