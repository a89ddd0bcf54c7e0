"""Reference volumes: read back, of earlier exports too, and ranks of any finding among them."""

import numpy as np
import pytest

from ctclip_jax.inference import classifiers, reference
from ctclip_jax.inference.reference import Reference
from data_pipelines.errors import InputError
from tests.eval_sets import unit

TOKENS = np.arange(8, dtype=np.float32).reshape(1, 2, 2, 2)
LATENTS = unit(np.random.default_rng(0).normal(size=(40, 8)))


@pytest.mark.parametrize(("latents", "tokens"), [(LATENTS, TOKENS), (LATENTS, None)])
def test_reference_is_read_back(tmp_path, latents, tokens):
    assert reference.load(tmp_path) is None
    reference.save(tmp_path, Reference("40 volumes of S, train", latents, tokens))
    loaded = reference.load(tmp_path)
    np.testing.assert_array_equal(loaded.latents, latents)
    np.testing.assert_array_equal(loaded.normalized_tokens, tokens)
    assert loaded.source == "40 volumes of S, train"


def test_that_of_earlier_exports_has_no_ranks_and_damage_is_an_error(tmp_path):
    path = tmp_path / "reference.npz"
    np.savez(path, unit_tokens=TOKENS, of="8 volumes")
    loaded = reference.load(tmp_path)
    assert loaded.latents is None and loaded.normalized_tokens.shape == (1, 2, 2, 2)
    classifier = make_classifier(loaded)
    assert classifier.rank(classifier.probabilities(LATENTS)) is None and classifier.usual is None
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(InputError, match="reference.npz: damaged"):
        reference.load(tmp_path)


def test_it_must_be_of_the_model():
    of_model = Reference("8 volumes", LATENTS, TOKENS)
    of_model.check(dim=8, tokens=(1, 2, 2, 2))
    with pytest.raises(InputError, match=r"reference.npz: got shape \(40, 8\), expected \(9,\)"):
        of_model.check(dim=9, tokens=(1, 2, 2, 2))
    with pytest.raises(InputError, match=r"reference.npz: got shape \(1, 2, 2, 2\)"):
        of_model.check(dim=8, tokens=(1, 2, 3, 2))


def make_classifier(of_reference):
    findings = [classifiers.finding_prompts(name) for name in ("Emphysema", "asdfgh banana")]
    rng = np.random.default_rng(1)
    return classifiers.zero_shot_classifier(
        findings,
        lambda texts: unit(rng.normal(size=(len(texts), 8))),
        temperature=30.0,
        reference=of_reference,
    )


def test_rank_is_the_share_of_reference_volumes_with_a_lower_score():
    """Of free text too: however high its score, the rank of a usual scan is in the middle."""
    classifier = make_classifier(Reference("40 volumes", LATENTS))
    probabilities = classifier.probabilities(LATENTS)
    ranks = classifier.rank(probabilities)
    for column in range(2):
        order = np.argsort(probabilities[:, column])
        np.testing.assert_allclose(ranks[order, column], np.arange(40) / 40)
    np.testing.assert_allclose(classifier.usual, np.median(probabilities, axis=0))
    above = classifier.rank(np.array([[1.1, -0.1], classifier.usual]))
    np.testing.assert_allclose(above, [[1, 0], [0.5, 0.5]])


def test_trained_heads_have_ranks_too():
    rng = np.random.default_rng(2)
    head = classifiers.trained_classifier(
        rng.normal(size=(8, 18)), np.zeros(18), reference=Reference("40 volumes", LATENTS)
    )
    probabilities = head.probabilities(LATENTS[:1])
    expected = (head.probabilities(LATENTS) < probabilities).mean(axis=0)
    np.testing.assert_allclose(head.rank(probabilities)[0], expected)
