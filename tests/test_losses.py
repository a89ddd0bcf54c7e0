"""The losses: their formulas, and sharded equal to unsharded."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from ctclip_jax.losses import LOSSES


def unit(vectors):
    return (vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)).astype(np.float32)


@pytest.fixture(scope="module")
def outputs():
    text, image = unit(np.random.default_rng(0).normal(size=(2, 16, 8)))
    return {"text": text, "image": image, "temperature": np.float32(5), "bias": np.float32(-2)}


def by_hand(name, outputs):
    sim = outputs["temperature"] * outputs["text"].astype(np.float64) @ outputs["image"].T
    n, positive = len(sim), np.diagonal(sim)
    if name == "sigmoid":
        logits = sim + outputs["bias"]
        signs = 2 * np.eye(n) - 1
        return np.log1p(np.exp(-signs * logits)).sum() / n
    if name == "text_to_image":
        return np.mean(np.log(np.exp(sim).sum(1)) - positive)
    terms = np.exp(sim) * (1 - np.eye(n) if name == "decoupled" else 1)
    return np.mean((np.log(terms.sum(0)) + np.log(terms.sum(1))) / 2 - positive)


@pytest.mark.parametrize("name", LOSSES)
def test_formula(name, outputs):
    loss, metrics = LOSSES[name](outputs, {})
    np.testing.assert_allclose(loss, by_hand(name, outputs), rtol=1e-5)
    assert metrics["temperature"] == 5


@pytest.mark.parametrize(("name", "texts"), [*((name, 1) for name in LOSSES), ("text_to_image", 3)])
def test_sharded_is_unsharded(name, texts, outputs):
    outputs = outputs | {"text": unit(np.random.default_rng(2).normal(size=(16 * texts, 8)))}
    mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
    rows = NamedSharding(mesh, PartitionSpec("data"))
    sharded = {key: jax.device_put(outputs[key], rows) for key in ("text", "image")}

    def loss_and_grads(latents):
        return jax.value_and_grad(lambda latents: LOSSES[name](outputs | latents, {})[0])(latents)

    plain = jax.jit(loss_and_grads)({key: jnp.asarray(outputs[key]) for key in sharded})
    for a, b in zip(
        jax.tree.leaves(jax.jit(loss_and_grads)(sharded)), jax.tree.leaves(plain), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-6)


def test_several_texts_of_an_image_are_each_compared_with_all_images(outputs):
    texts = unit(np.random.default_rng(1).normal(size=(16, 3, 8)))
    alone = [LOSSES["text_to_image"](outputs | {"text": texts[:, k]}, {}) for k in range(3)]
    loss, metrics = LOSSES["text_to_image"](outputs | {"text": texts.reshape(48, 8)}, {})
    np.testing.assert_allclose(loss, np.mean([each for each, _ in alone]), rtol=1e-6)
    accuracies = [each["text_to_image_accuracy"] for _, each in alone]
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], np.mean(accuracies), rtol=1e-6)


def test_texts_in_unequal_numbers_are_refused(outputs):
    with pytest.raises(ValueError, match="16 texts cannot belong to 5 images"):
        LOSSES["text_to_image"](outputs | {"image": outputs["image"][:5]}, {})


def test_large_similarities_stay_finite(outputs):
    hot = outputs | {"temperature": np.float32(1e4)}
    assert all(np.isfinite(loss(hot, {})[0]) for loss in LOSSES.values())


def test_accuracy_counts_texts_that_find_their_image(outputs):
    swapped = outputs | {"image": outputs["text"].copy()}
    swapped["image"][[0, 1]] = swapped["image"][[1, 0]]
    _, metrics = LOSSES["softmax"](swapped, {})
    np.testing.assert_allclose(metrics["text_to_image_accuracy"], 14 / 16)
