"""Losses: equal to their formulas; sharded == unsharded, blockwise == whole."""

import dataclasses
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.common.sharding import MeshConfig, make_mesh, put_batch
from ctclip_jax.training.losses import (
    CONTRASTIVE_LOSSES,
    LossConfig,
    classifier_loss,
    make_loss,
    prompt_loss,
)

OPTIONS = [
    {"mask_duplicates": duplicates, "normal_target_share": share}
    for duplicates, share in itertools.product((False, True), (0.0, 0.3))
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


@pytest.mark.parametrize(
    ("name", "reads"),
    [
        ("softmax", {"texts", "volumes"}),
        ("sigmoid", {"texts", "volumes"}),
        ("labels", {"volumes", "labels", "classifier"}),
        ("report_labels", {"texts", "labels"}),
        ("prompts", {"volumes", "labels"}),
    ],
)
def test_what_each_loss_reads(name, reads):
    def describe(config):
        has = {"texts": config.reads_texts, "volumes": config.reads_volumes}
        has |= {"labels": config.reads_labels, "classifier": config.has_classifier}
        return {word for word, value in has.items() if value}

    assert describe(LossConfig(name)) == reads
    assert describe(LossConfig(name, label_weight=0.5)) == reads | {"labels", "classifier"}
    columns = LossConfig(name, mask_duplicates=True, normal_target_share=0.1).columns
    pairs = ("scan", "report", "normal") if "texts" in reads and "volumes" in reads else ()
    assert columns == pairs + (("labels",) if "labels" in reads else ())


def by_hand(config, outputs, batch):
    """The loss in float64, pair by pair."""
    sim = float(outputs["temperature"]) * outputs["text"].astype(np.float64) @ outputs["image"].T
    if config.name == "sigmoid":
        return _sigmoid_by_hand(sim + float(outputs["bias"]), config, batch)
    sides = [sim] if config.name == "text_to_image" else [sim, sim.T]
    return np.mean([_cross_entropy_by_hand(side, config, batch) for side in sides])


def _is_duplicate(i, j, config, batch):
    same = batch["scan"][i] == batch["scan"][j] or batch["report"][i] == batch["report"][j]
    return config.mask_duplicates and i != j and same


def _normals(i, config, batch):
    """The other normal volumes with which i shares its target."""
    if not config.normal_target_share or not batch["normal"][i]:
        return []
    others = [j for j in np.flatnonzero(batch["normal"]) if j != i]
    return [j for j in others if not _is_duplicate(i, j, config, batch)]


def _cross_entropy_by_hand(sim, config, batch):
    losses = []
    for i in range(len(sim)):
        candidates = [j for j in range(len(sim)) if not _is_duplicate(i, j, config, batch)]
        if config.name == "decoupled":
            candidates.remove(i)
        target = {i: 1.0}
        if normals := _normals(i, config, batch):
            target = {j: config.normal_target_share / len(normals) for j in normals}
            target[i] = 1 - config.normal_target_share
        match = sum(weight * sim[i, j] for j, weight in target.items())
        losses.append(np.log(np.exp(sim[i, candidates]).sum()) - match)
    return np.mean(losses)


def _sigmoid_by_hand(logits, config, batch):
    loss = 0.0
    for i, j in np.ndindex(logits.shape):
        if not _is_duplicate(i, j, config, batch):
            target = (
                1.0 if i == j else config.normal_target_share * (j in _normals(i, config, batch))
            )
            probability = 1 / (1 + np.exp(-logits[i, j]))
            loss -= target * np.log(probability) + (1 - target) * np.log(1 - probability)
    return loss / len(logits)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_contrastive_loss_equals_its_formula(name, options, outputs, batch):
    config = LossConfig(name, **options)
    loss, metrics = make_loss(config)(outputs, batch)
    np.testing.assert_allclose(loss, by_hand(config, outputs, batch), rtol=1e-5)
    assert metrics["temperature"] == 5


@pytest.mark.parametrize(("mesh_config", "rows"), [((8, 1), 0), ((2, 4), 1)], ids=str)
@pytest.mark.parametrize("options", [OPTIONS[0], OPTIONS[3]])
@pytest.mark.parametrize(
    ("name", "texts"), [*((name, 1) for name in CONTRASTIVE_LOSSES), ("text_to_image", 3)]
)
def test_sharded_and_blockwise_equal_whole(name, texts, options, mesh_config, rows, outputs, batch):
    outputs = outputs | {"text": unit(np.random.default_rng(2).normal(size=(16 * texts, 8)))}
    mesh = make_mesh(MeshConfig(*mesh_config))
    config = LossConfig(name, **options)

    def gradient(config):
        loss_fn = make_loss(config, mesh)
        loss_of = lambda outputs, batch: loss_fn(outputs, batch)  # noqa: E731
        return jax.jit(jax.value_and_grad(loss_of, has_aux=True))

    plain = gradient(config)(jax.tree.map(jnp.asarray, outputs), batch)
    sharded = {name: put_batch({name: outputs[name]}, mesh)[name] for name in ("text", "image")}
    blocks = gradient(dataclasses.replace(config, block_size=rows))
    again = blocks(outputs | sharded, put_batch(batch, mesh))
    for a, b in zip(*map(jax.tree.leaves, (again, plain)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_blockwise_loss_never_holds_all_similarities():
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    latents = jax.ShapeDtypeStruct((8192, 8), np.float32)
    scalar = jax.ShapeDtypeStruct((), np.float32)
    outputs = {"text": latents, "image": latents, "temperature": scalar}

    def temporary(rows):
        loss_fn = make_loss(LossConfig("softmax", block_size=rows), mesh)
        gradient = jax.jit(jax.grad(lambda outputs: loss_fn(outputs, {})[0]))
        return gradient.lower(outputs).compile().memory_analysis().temp_size_in_bytes

    assert temporary(64) < 4 * 1024 * 1024 * 4 < temporary(0)


def test_duplicates_are_excluded_as_negatives(outputs, batch):
    """Without its duplicate, volume 9 of scan 8 has the loss of a batch without volume 8."""
    grads = jax.grad(
        lambda text: make_loss(LossConfig("text_to_image", mask_duplicates=True))(
            outputs | {"text": text}, batch
        )[0]
    )(jnp.asarray(outputs["text"]))
    without = np.delete(outputs["image"], 8, axis=0)
    sim = 5 * outputs["text"][9] @ without.T
    weights = np.exp(sim) / np.exp(sim).sum()
    expected = 5 * (weights @ without - outputs["image"][9]) / 16
    np.testing.assert_allclose(grads[9], expected, atol=1e-6)


@pytest.mark.parametrize("rows", [0, 1])
@pytest.mark.parametrize("name", CONTRASTIVE_LOSSES)
def test_text_without_negatives_has_a_finite_gradient(name, rows, outputs):
    duplicates = {"scan": np.zeros(8, np.int32), "report": np.zeros(8, np.int32)}
    mesh = make_mesh(MeshConfig(data=8, fsdp=1))
    loss_fn = make_loss(LossConfig(name, mask_duplicates=True, block_size=rows), mesh)
    few = outputs | {side: outputs[side][:8] for side in ("text", "image")}
    loss, grads = jax.jit(jax.value_and_grad(lambda outputs: loss_fn(outputs, duplicates)[0]))(few)
    assert np.isfinite(loss) and abs(loss) < 10
    assert all(np.isfinite(grad).all() for grad in jax.tree.leaves(grads))


def test_several_texts_per_image_are_compared_with_all_images(outputs):
    loss_fn = make_loss(LossConfig("text_to_image"))
    texts = unit(np.random.default_rng(1).normal(size=(16, 3, 8)))
    alone = [loss_fn(outputs | {"text": texts[:, k]}, {}) for k in range(3)]
    loss, metrics = loss_fn(outputs | {"text": texts.reshape(48, 8)}, {})
    np.testing.assert_allclose(loss, np.mean([loss for loss, _ in alone]), rtol=1e-6)
    accuracies = [metrics["text_to_image_accuracy"] for _, metrics in alone]
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], np.mean(accuracies), rtol=1e-6)


def test_unequal_numbers_of_texts_per_image_fail(outputs):
    with pytest.raises(ValueError, match="16 texts for 5 images"):
        make_loss(LossConfig("text_to_image"))(outputs | {"image": outputs["image"][:5]}, {})


def test_large_similarities_are_finite(outputs):
    hot = outputs | {"temperature": np.float32(1e4)}
    assert all(np.isfinite(make_loss(LossConfig(name))(hot, {})[0]) for name in CONTRASTIVE_LOSSES)


def test_accuracy_counts_texts_nearest_to_their_image(outputs):
    swapped = outputs | {"image": outputs["text"].copy()}
    swapped["image"][[0, 1]] = swapped["image"][[1, 0]]
    _, metrics = make_loss(LossConfig("softmax"))(swapped, {})
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 14 / 16)
    same = {name: np.tile(outputs[name][:1], (4, 1)) for name in ("text", "image")}
    _, metrics = make_loss(LossConfig("softmax"))(outputs | same, {})
    assert metrics["text_to_image_accuracy"] == 1, "a tie is not an error"


def test_loss_of_labels_is_added_by_its_weight(outputs):
    logits = LABEL_RNG.normal(size=(16, 4)).astype(np.float32)
    labels = np.resize(LABELS, (16, 4))
    alone, _ = make_loss(LossConfig("softmax"))(outputs, {})
    with_labels = make_loss(LossConfig("softmax", label_weight=0.3, positive_weights=WEIGHTS))
    loss, metrics = with_labels(outputs | {"logits": logits}, {"labels": labels})
    expected = classifier_loss(logits, labels, positive_weights=WEIGHTS)
    assert metrics["label_loss"] == pytest.approx(float(expected), rel=1e-6)
    assert loss == pytest.approx(float(alone + 0.3 * expected), rel=1e-6)


LABEL_RNG = np.random.default_rng(0)
LABELS = LABEL_RNG.integers(-1, 2, (5, 4)).astype(np.int8)
WEIGHTS = (2.0, 1.0, 0.5, 7.0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_classifier_loss_is_binary_cross_entropy_over_known_labels(weights):
    logits = LABEL_RNG.normal(size=LABELS.shape).astype(np.float32)
    terms = []
    for volume, label in zip(*np.nonzero(LABELS >= 0), strict=True):
        p = sigmoid(logits[volume, label])
        factor = weights[label] if weights else 1.0
        is_present = LABELS[volume, label]
        terms.append(-factor * is_present * np.log(p) - (1 - is_present) * np.log(1 - p))
    loss = classifier_loss(logits, LABELS, positive_weights=weights)
    assert loss == pytest.approx(np.mean(terms), rel=1e-6)


def test_prompt_loss_is_squared_error_of_the_true_prompt():
    image = LABEL_RNG.normal(size=(5, 3)).astype(np.float32)
    prompts = LABEL_RNG.normal(size=(4, 2, 3)).astype(np.float32)
    terms = []
    for volume, label in zip(*np.nonzero(LABELS >= 0), strict=True):
        # The true prompt first: the softmax of the two is compared with [1, 0].
        pair = prompts[label] if LABELS[volume, label] else prompts[label][::-1]
        exponents = np.exp(3.0 * pair @ image[volume])
        terms.append(np.square(exponents / exponents.sum() - [1, 0]).mean())
    loss = prompt_loss(image, prompts, LABELS, temperature=np.float32(3.0))
    assert loss == pytest.approx(np.mean(terms), rel=1e-6)


def test_classifier_loss_without_known_labels_is_zero():
    unknown = np.full((2, 4), -1, np.int8)
    loss, gradient = jax.value_and_grad(classifier_loss)(np.ones((2, 4), np.float32), unknown)
    assert loss == 0
    assert not np.any(gradient)


def test_extreme_logits_have_finite_gradients():
    logits = np.array([[1e4, -1e4]], np.float32)
    loss, gradient = jax.value_and_grad(classifier_loss)(logits, np.array([[0, 1]], np.int8))
    assert loss == pytest.approx(1e4)
    assert np.all(np.isfinite(gradient))
