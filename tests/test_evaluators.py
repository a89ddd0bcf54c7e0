"""Evaluators on a fake model: padding dropped, prompts encoded once, hits counted by name."""

import numpy as np
import pytest

from ctclip_jax.evaluators import latents, retrieval, zero_shot
from data_pipelines.reports import LABELS


def unit(values):
    return values / np.linalg.norm(values, axis=-1, keepdims=True)


@pytest.fixture
def split():
    """Six volumes of four scans; reports and volumes of a scan have nearly the same latents."""
    rng = np.random.default_rng(0)
    scans = np.array(["a", "a", "b", "b", "c", "d"])
    towards = unit(rng.normal(size=(4, 8)))[[0, 0, 1, 1, 2, 3]]
    encoded = latents.Latents(
        names=np.array([f"{scan}_{i}" for i, scan in enumerate(scans)]),
        image=unit(towards + 0.01 * rng.normal(size=(6, 8))),
        text=towards,
        labels=np.eye(18, dtype=np.uint8)[[0, 0, 1, 1, 2, 3]],
    )
    return encoded, scans


def test_encode_drops_padding_and_keeps_rows_together():
    def batch(names, valid):
        value = np.array([float(name) for name in names])
        return {
            "volume_name": names,
            "valid": np.array(valid),
            "image": value[:, None],
            "labels": value[:, None].astype(np.uint8),
        }

    encoded = latents.encode_volumes(
        [batch(["1", "2"], [True, True]), batch(["3", "0"], [True, False])],
        encode_image=lambda image: image + 0.5,
    )
    assert encoded["names"].tolist() == ["1", "2", "3"]
    assert encoded["image"].tolist() == [[1.5], [2.5], [3.5]]
    assert encoded["labels"].tolist() == [[1], [2], [3]]


def test_a_report_is_the_mean_of_its_texts_and_each_is_encoded_once(monkeypatch):
    monkeypatch.setattr(latents, "TEXTS_AT_A_TIME", 2)
    known = {"": [0, -1], "a": [1, 0], "bb": [0, 1], "ccc": [-1, 0]}
    asked = []

    def encode_texts(texts):
        asked.append(texts)
        return np.array([known[text] for text in texts], np.float64)

    reports = [["a", "bb"], ["bb"], ["a", "a", "ccc"], []]
    encoded = latents.encode_reports(reports, encode_texts=encode_texts)
    half = 0.5**0.5
    np.testing.assert_allclose(encoded, [[half, half], [0, 1], [1, 0], [0, -1]], atol=1e-12)
    assert asked == [["", "a"], ["bb", "ccc"]]


def test_score_is_the_softmax_over_the_two_prompts():
    rng = np.random.default_rng(1)
    image = unit(rng.normal(size=(3, 8)))
    prompt_latents = unit(rng.normal(size=(36, 8)))
    asked = []

    def encode_prompts(texts):
        asked.append(texts)
        return prompt_latents

    scores = zero_shot.score(
        image,
        encode_prompts=encode_prompts,
        prompts=("{} is present.", "{} is not present."),
        temperature=7.0,
    )
    assert len(asked) == 1, "the prompts are the same for every volume"
    assert asked[0][:2] == [f"{LABELS[0]} is present.", f"{LABELS[0]} is not present."]
    exponential = np.exp(7.0 * image @ prompt_latents.T).reshape(3, 18, 2)
    np.testing.assert_allclose(scores, exponential[..., 0] / exponential.sum(-1), rtol=1e-12)


def test_zero_shot_names_every_label_and_counts_the_defined_ones():
    labels = np.zeros((10, 18), np.uint8)
    labels[:5, :3] = 1
    found = dict(zero_shot.evaluate(np.where(labels == 1, 0.8, 0.2), labels))
    assert found["macro/auroc"] == 1.0
    assert found["macro/labels"] == 3
    assert found["per_label/Cardiomegaly/accuracy"] == 1.0
    assert found["per_label/Emphysema/auroc"] is None
    assert {name.split("/")[1] for name in found if name.startswith("per_label")} == set(LABELS)


def test_retrieval_counts_hits_by_volume_and_by_scan(split):
    encoded, scans = split
    found = dict(retrieval.evaluate(encoded, scans=scans))
    assert found["report_to_volume/pool"] == 6
    assert found["report_to_scan/pool"] == 4
    assert found["report_to_volume/recall@5"] == 1.0
    assert found["report_to_any_reconstruction/chance@5"] > found["report_to_volume/chance@5"]
    assert "report_to_scan/recall@5" not in found, "K must be less than the pool"
    assert found["volume_to_volume/label_overlap@1"] == 0.0, "the same scan is not in the gallery"


def test_retrieval_does_not_depend_on_the_order_of_the_volumes(split):
    encoded, scans = split
    order = np.array([3, 5, 0, 2, 4, 1])
    mixed = latents.Latents(
        encoded.names[order], encoded.image[order], encoded.text[order], encoded.labels[order]
    )
    straight = dict(retrieval.evaluate(encoded, scans=scans))
    assert dict(retrieval.evaluate(mixed, scans=scans[order])) == pytest.approx(straight)
