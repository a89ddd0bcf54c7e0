"""Scores by the trained classifier of a fine-tuned model."""

import dataclasses

import numpy as np
import pytest

from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference import scoring
from ctclip_jax.inference.model import classify
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from tests.studies import make_study

PROTOCOL = ProtocolConfig(
    prompts=(("{}", "no {}"),),
    scores="classifier",
    combined=(("Calcification", (LABELS[1], LABELS[4])),),
)


@pytest.fixture
def arrays():
    rng = np.random.default_rng(0)
    return {
        "classifier_kernel": rng.normal(size=(16, 18)).astype(np.float32),
        "classifier_bias": rng.normal(size=18).astype(np.float32),
    }


def score(study, arrays):
    return scoring.scores(study, arrays, prompts={}, protocol=PROTOCOL)


def test_labels_are_found_by_name_and_combined_ones_by_their_parts(arrays):
    study = make_study(labels=("Emphysema", "Calcification"))
    expected = classify(
        study.image, kernel=arrays["classifier_kernel"], bias=arrays["classifier_bias"]
    )
    found = score(study, arrays)
    np.testing.assert_array_equal(found[:, 0], expected[:, LABELS.index("Emphysema")])
    np.testing.assert_array_equal(found[:, 1], expected[:, [1, 4]].max(axis=1))


def test_what_a_classifier_does_not_know_is_named(arrays):
    study = make_study(labels=("Emphysema", "Gout"))
    with pytest.raises(InputError, match="the classifier knows no 'Gout'"):
        score(study, arrays)
    short = {name: array[..., :5] for name, array in arrays.items()}
    with pytest.raises(InputError, match="a classifier of 5 labels, wanted 18"):
        score(dataclasses.replace(study, label_names=("Emphysema", "Atelectasis")), short)
    with pytest.raises(InputError, match="no trained classifier"):
        score(study, {})


def test_without_a_temperature_there_are_no_zero_shot_scores():
    protocol = dataclasses.replace(PROTOCOL, scores="zero_shot")
    assert scoring.scores(make_study(), {}, prompts={}, protocol=protocol) is None
