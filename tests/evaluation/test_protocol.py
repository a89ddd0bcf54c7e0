"""Evaluation protocol: prompts of labels, merged labels, choices and ranges."""

import runpy
from pathlib import Path

import numpy as np
import pytest

from configs import evaluation
from configs.labels import rad_chestct
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference.classifiers import prompt_texts, trained_classifier
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS

PUBLISHED = ("{} is present.", "{} is not present.")
PARTS = (LABELS[1], LABELS[4])


@pytest.fixture
def protocol():
    return ProtocolConfig(prompts=(PUBLISHED,), merged_labels=(("Calcification", PARTS),))


def test_prompts_of_the_parts_of_a_merged_label(protocol):
    texts = prompt_texts(protocol.findings(["Emphysema", "Calcification", LABELS[1]]))
    expected = [prompt.format(name) for name in ("Emphysema", *PARTS) for prompt in PUBLISHED]
    assert texts == expected


def test_score_of_a_merged_label_is_the_greatest_of_its_parts(protocol):
    rng = np.random.default_rng(0)
    latents = rng.normal(size=(5, 16)).astype(np.float32)
    classifier = trained_classifier(
        rng.normal(size=(16, 18)).astype(np.float32), rng.normal(size=18).astype(np.float32)
    )
    probabilities = classifier.probabilities(latents)
    scores = protocol.scores(["Emphysema", "Calcification"], classifier, latents)
    np.testing.assert_array_equal(scores[:, 0], probabilities[:, LABELS.index("Emphysema")])
    np.testing.assert_array_equal(scores[:, 1], probabilities[:, [1, 4]].max(axis=1))
    with pytest.raises(InputError, match="config.classifier.*'Gout'"):
        protocol.scores(["Emphysema", "Gout"], classifier, latents)


def test_merged_labels_are_those_of_rad_chestct():
    merged = evaluation.get_config().to_dict()["merged_labels"]
    assert dict(merged) == {
        name: tuple(parts) for name, parts in rad_chestct.get_config().merged_labels.items()
    }


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("ensemble", "votes"),
        ("classifier", "x"),
        ("report_format", "x"),
        ("folds", 1),
        ("level", 1.0),
        ("prompts", ()),
    ],
)
def test_unknown_choices_and_values_out_of_range(key, value):
    config = evaluation.get_config().to_dict() | {key: value}
    with pytest.raises(InputError, match=f"config.{key}: "):
        from_dict(ProtocolConfig, config)


@pytest.mark.parametrize(
    ("variant", "num_texts"),
    [("", 2), ("inference", 2), ("training", 2), ("report", 4), ("ensemble", 8)],
)
def test_variants_of_the_config_file(variant, num_texts):
    file = Path(evaluation.__file__)
    config = runpy.run_path(str(file))["get_config"](variant)
    protocol = from_dict(ProtocolConfig, config.to_dict())
    assert len(prompt_texts(protocol.findings(["Emphysema"]))) == num_texts
    assert protocol == ProtocolConfig(prompts=protocol.prompts), "the file repeats the defaults"


def test_unknown_variant_of_the_config_file():
    with pytest.raises(ValueError, match="inference, training, report, ensemble"):
        evaluation.get_config("loud")
