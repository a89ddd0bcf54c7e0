"""The report page: complete, self-contained, with untrusted text escaped."""

import re

import numpy as np
import pytest

from ctclip_jax.evaluators import retrieval, zero_shot
from ctclip_jax.evaluators.latents import Latents
from ctclip_jax.reporting import examples, plots
from ctclip_jax.reporting.report import Example, page
from ctclip_jax.trees import unflatten
from data_pipelines.reports import LABELS


@pytest.fixture(scope="module")
def split():
    """Twelve volumes of six scans; one label is absent."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, (12, 18))
    labels[:, 3] = 0
    names = np.array([f"valid_{i // 2}_a_{i % 2}.nii.gz" for i in range(12)])
    latents = Latents(names, rng.normal(size=(12, 4)), rng.normal(size=(12, 4)), labels)
    return latents, np.repeat(np.arange(6), 2), rng.random((12, 18))


@pytest.fixture(scope="module")
def html(split):
    latents, scans, scores = split
    metrics = {
        "model": "runs/model",
        "shards": "runs/shards",
        "split": "valid",
        "volumes": 12,
        "scans": 6,
        "prompts": "inference",
        "report": "joined",
        "pool_sentences": True,
        "threshold_rule": "fitted somewhere",
        "zero_shot": unflatten(dict(zero_shot.evaluate(scores, latents.labels))),
        "retrieval": unflatten(dict(retrieval.evaluate(latents, scans=scans))),
    }
    example = Example(
        name="valid_0_a_0.nii.gz",
        picture=plots.slices(np.zeros((4, 6, 8)), spacing=(1.5, 0.75, 0.75)),
        present=("Emphysema",),
        predicted=(("Emphysema", 0.9), ("Lung nodule", 0.8)),
        report="Own report.",
        own_rank=3,
        nearest=("valid_1_a_0.nii.gz", "Nodule < 6 mm & stable."),
    )
    return page(metrics, labels=latents.labels, scores=scores, examples=[example])


def test_page_names_every_label_and_what_was_evaluated(html):
    assert all(label in html for label in LABELS)
    assert "12 volumes of 6 scans" in html
    assert "reports joined, read by sentences" in html
    assert "fitted somewhere" in html
    assert "17 of 18 labels" in html


def test_page_needs_no_other_file(html):
    sources = re.findall(r'(?:src|href)="([^"]{0,30})', html)
    assert len(sources) == 2
    assert all(source.startswith("data:image/") for source in sources)


def test_page_escapes_the_reports(html):
    assert "Nodule &lt; 6 mm &amp; stable." in html


def test_page_tells_hits_from_false_alarms(html):
    assert '<span class="chip hit">Emphysema 0.90</span>' in html
    assert '<span class="chip miss">Lung nodule 0.80</span>' in html


def test_plots_are_the_same_from_run_to_run(split):
    latents, _, scores = split
    arguments = {"names": LABELS, "thresholds": [0.5] * 3 + [None] + [0.5] * 14}
    first = plots.roc_grid(latents.labels, scores, **arguments)
    assert first.startswith(b"<?xml")
    assert plots.roc_grid(latents.labels, scores, **arguments) == first


def test_choose_takes_labelled_volumes_of_different_scans():
    names = np.array([f"v{i}" for i in range(8)])
    scans = np.repeat(np.arange(4), 2)
    labels = np.ones((8, 18), int)
    labels[:2] = 0
    assert examples.choose(names, scans=scans, labels=labels, count=2) == [2, 6]
    assert len(examples.choose(names, scans=scans, labels=labels, count=9)) == 3
    assert examples.choose(names, scans=scans, labels=0 * labels, count=2) == []


def test_outstanding_ranks_by_the_distance_over_the_threshold():
    scores, thresholds = np.full(18, 0.5), [0.6] * 18
    thresholds[2], thresholds[5], thresholds[7] = 0.4, 0.1, None
    found = examples.outstanding(scores, thresholds=thresholds, count=5)
    assert found == ((LABELS[5], 0.5), (LABELS[2], 0.5))


def test_nearest_report_and_the_rank_of_the_own_one():
    text = np.array([[1.0, 0.0], [0.0, 1.0], [0.5, 0.5]])
    assert examples.nearest_report(np.array([1.0, 0.2]), text, own=2) == (0, 2)
