"""Zero-shot scores: the softmax of the published prompts, ensembles, combined labels."""

import numpy as np
import pytest

from configs.labels import rad_chestct
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference import zero_shot
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from tests.studies import unit

PUBLISHED = ("{} is present.", "{} is not present.")
OTHER = ("There is {lower}.", "There is no {lower}.")


def known(labels, protocol, seed=1):
    texts = zero_shot.prompt_texts(labels, protocol)
    rng = np.random.default_rng(seed)
    return dict(zip(texts, unit(rng.normal(size=(len(texts), 8))), strict=True))


@pytest.fixture
def image():
    return unit(np.random.default_rng(0).normal(size=(3, 8)))


def score(image, labels, protocol, prompts):
    return zero_shot.scores(
        image, labels=labels, prompts=prompts, temperature=7.0, protocol=protocol
    )


def pair_probability(image, present, absent):
    exponential = np.exp(7.0 * image.astype(np.float64) @ np.stack([present, absent]).T)
    return exponential[:, 0] / exponential.sum(-1)


def test_score_is_the_softmax_over_the_two_prompts(image):
    protocol = ProtocolConfig(prompts=(PUBLISHED,))
    prompts = known(LABELS, protocol)
    assert list(prompts)[:2] == [f"{LABELS[0]} is present.", f"{LABELS[0]} is not present."]
    assert len(prompts) == 36
    found = score(image, LABELS, protocol, prompts)
    for column, label in enumerate(LABELS):
        pair = (prompts[prompt.format(label)] for prompt in PUBLISHED)
        np.testing.assert_allclose(found[:, column], pair_probability(image, *pair), rtol=1e-6)


def test_an_ensemble_is_a_mean_of_latents_or_of_probabilities(image):
    label = "Emphysema"
    pairs = (PUBLISHED, OTHER)
    texts = [[p.format(label, lower="emphysema") for p in pair] for pair in pairs]
    by_latents = ProtocolConfig(prompts=pairs)
    prompts = known([label], by_latents)
    assert list(prompts) == sum(texts, [])
    latents = np.array([[prompts[text] for text in pair] for pair in texts])
    mean = unit(latents.mean(axis=0))
    expected = pair_probability(image, *mean)
    np.testing.assert_allclose(
        score(image, [label], by_latents, prompts)[:, 0], expected, rtol=1e-5
    )
    by_probabilities = ProtocolConfig(prompts=pairs, ensemble="probabilities")
    expected = np.mean([pair_probability(image, *pair) for pair in latents], axis=0)
    found = score(image, [label], by_probabilities, prompts)[:, 0]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_combined_label_has_the_greatest_score_of_its_parts(image):
    combined = rad_chestct.get_config().combined.to_dict()
    protocol = ProtocolConfig(prompts=(PUBLISHED,), combined=tuple(combined.items()))
    labels = ["Emphysema", "Calcification"]
    prompts = known(labels, protocol)
    parts = list(combined["Calcification"])
    assert not any(text.startswith("Calcification") for text in prompts)
    found = score(image, labels, protocol, prompts)
    expected = score(image, parts, protocol, prompts).max(axis=1)
    np.testing.assert_array_equal(found[:, 1], expected)


def test_the_combined_labels_of_the_protocol_are_those_of_rad_chestct():
    from configs import evaluation

    combined = evaluation.get_config().to_dict()["combined"]
    assert dict(combined) == {
        name: tuple(parts) for name, parts in rad_chestct.get_config().combined.items()
    }


def test_a_prompt_without_a_latent_is_an_error(image):
    protocol = ProtocolConfig(prompts=(PUBLISHED,))
    with pytest.raises(InputError, match="no latent of the prompt 'Emphysema is present.'"):
        score(image, ["Emphysema"], protocol, {})
