"""Losses of labels against sums spelled out; labels that are not known do not count."""

import jax
import numpy as np
import pytest

from ctclip_jax.training.label_losses import classifier_loss, prompt_loss

RNG = np.random.default_rng(0)
LABELS = RNG.integers(-1, 2, (5, 4)).astype(np.int8)
WEIGHTS = (2.0, 1.0, 0.5, 7.0)


def sigmoid(x):
    return 1 / (1 + np.exp(-x))


@pytest.mark.parametrize("weights", [(), WEIGHTS])
def test_classifier_loss_is_binary_cross_entropy_of_known_labels(weights):
    logits = RNG.normal(size=LABELS.shape).astype(np.float32)
    terms = []
    for volume, label in zip(*np.nonzero(LABELS >= 0), strict=True):
        p = sigmoid(logits[volume, label])
        factor = weights[label] if weights else 1.0
        known = LABELS[volume, label]
        terms.append(-factor * known * np.log(p) - (1 - known) * np.log(1 - p))
    found = classifier_loss(logits, LABELS, positive_weights=weights)
    assert found == pytest.approx(np.mean(terms), rel=1e-6)


def test_prompt_loss_is_the_squared_error_of_the_true_prompt():
    image = RNG.normal(size=(5, 3)).astype(np.float32)
    prompts = RNG.normal(size=(4, 2, 3)).astype(np.float32)
    terms = []
    for volume, label in zip(*np.nonzero(LABELS >= 0), strict=True):
        # The true prompt first: the softmax of the two is compared with [1, 0].
        pair = prompts[label] if LABELS[volume, label] else prompts[label][::-1]
        exponents = np.exp(3.0 * pair @ image[volume])
        terms.append(np.square(exponents / exponents.sum() - [1, 0]).mean())
    found = prompt_loss(image, prompts, LABELS, temperature=np.float32(3.0))
    assert found == pytest.approx(np.mean(terms), rel=1e-6)


def test_a_batch_without_a_known_label_teaches_nothing():
    unknown = np.full((2, 4), -1, np.int8)
    loss, gradient = jax.value_and_grad(classifier_loss)(np.ones((2, 4), np.float32), unknown)
    assert loss == 0
    assert not np.any(gradient)


def test_extreme_logits_are_finite():
    logits = np.array([[1e4, -1e4]], np.float32)
    loss, gradient = jax.value_and_grad(classifier_loss)(logits, np.array([[0, 1]], np.int8))
    assert loss == pytest.approx(1e4)
    assert np.all(np.isfinite(gradient))
