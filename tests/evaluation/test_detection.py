"""Detection: thresholds of each protocol, missing values with reasons, subgroups, calibration."""

import dataclasses

import numpy as np
import pytest

from ctclip_jax.evaluation import detection, subgroups, suite
from ctclip_jax.evaluation.estimates import estimate, mean_over, named_estimates
from ctclip_jax.evaluation.metrics import classification
from ctclip_jax.evaluation.protocol import ProtocolConfig
from tests.eval_sets import make_eval_set, shuffled

PROTOCOL = ProtocolConfig(prompts=(("{} is present.", "{} is not present."),), resamples=200)


def measure(eval_set, *, published=False, validation=None, protocol=PROTOCOL):
    return suite.evaluate(eval_set, protocol=protocol, published=published, validation=validation)[
        0
    ]


def values(metrics):
    """Every figure with its intervals, by name."""
    return dict(named_estimates(metrics))


def golden_eval_set(golden_metrics):
    n = len(golden_metrics["cls/labels"])
    names = np.array([f"{i:04d}" for i in range(n)])
    blank = np.full(n, "")
    base = make_eval_set(1)
    return dataclasses.replace(
        base,
        names=names,
        patients=names,
        scans=names,
        reports=blank,
        label_names=tuple(f"label {i}" for i in range(18)),
        labels=golden_metrics["cls/labels"],
        scores=golden_metrics["cls/predicted"].astype(np.float64),
        image=None,
        text=None,
        subgroups={},
    )


def test_published_protocol_equals_the_published_script(golden_metrics):
    metrics = measure(golden_eval_set(golden_metrics), published=True)
    rows = list(metrics["detection"]["per_label"].values())
    for name, key in (
        ("auroc", "auroc"),
        ("f1_weighted", "f1_weighted"),
        ("accuracy", "accuracy"),
        ("precision", "precision_binary"),
    ):
        found = [row[name]["value"] for row in rows]
        np.testing.assert_allclose(found, golden_metrics[f"cls/{key}"], atol=1e-12)
        mean = metrics["detection"]["macro"][name]["value"]
        assert mean == pytest.approx(golden_metrics[f"cls/{key}"].mean(), abs=1e-12)
    thresholds = [row["threshold"] for row in rows]
    np.testing.assert_allclose(thresholds, golden_metrics["cls/thresholds"], atol=1e-12)
    point = [(r["youden_sensitivity"]["value"], r["youden_specificity"]["value"]) for r in rows]
    np.testing.assert_allclose(point, golden_metrics["cls/operating_point_sens_spec"], atol=1e-12)


def test_resamples_equal_the_corrected_bootstrap(golden_metrics):
    eval_set = golden_eval_set(golden_metrics)
    predictions = detection.predict(eval_set, protocol=PROTOCOL, published=True, validation=None)
    drawn = golden_metrics["corrected/bootstrap_indices"]
    weights = np.stack([np.bincount(rows, minlength=160) for rows in drawn], axis=1)
    samples = detection.sample_metrics(eval_set, weights, predictions=predictions)
    for name, key in (("auroc", "auroc"), ("f1_weighted", "f1_weighted"), ("accuracy", "accuracy")):
        expected = golden_metrics[f"corrected/bootstrap_{key}"].T
        np.testing.assert_allclose(samples[name], expected, atol=1e-12)


def test_blocks_of_weights(monkeypatch):
    eval_set = make_eval_set()
    weights = detection.resample_weights(eval_set, resamples=200, seed=0)
    whole = detection.sample_metrics(eval_set, weights)
    monkeypatch.setattr(detection, "BLOCK", 60 * 7)
    for name, samples in detection.sample_metrics(eval_set, weights).items():
        np.testing.assert_array_equal(samples, whole[name])


def test_order_of_volumes_does_not_matter():
    eval_set = make_eval_set(40, subgroups={"sex": np.tile(["F", "F", "M", "M"], 20)})
    straight, other = measure(eval_set), measure(shuffled(eval_set))
    assert values(other).keys() == values(straight).keys()
    for name, found in values(straight).items():
        assert values(other)[name] == pytest.approx(found, abs=1e-6), name
    for label, row in straight["calibration"].items():
        assert other["calibration"][label]["ece"] == pytest.approx(row["ece"], abs=1e-6)


def test_a_score_at_its_threshold_is_no_positive():
    thresholds = np.array([[0.5], [0.5], [np.nan]])
    predictions = detection.Predictions("", thresholds, ("",))
    assert predictions.of(np.array([[0.5], [0.51], [1.0]])).tolist() == [[False], [True], [False]]


def test_thresholds_are_cross_fitted():
    eval_set = make_eval_set(40)
    protocol = dataclasses.replace(PROTOCOL, folds=4)
    found = detection.predict(eval_set, protocol=protocol, published=False, validation=None)
    assert found.rule == "cross-fitted over 4 folds of patients"
    assert len(np.unique(found.thresholds[:, 0])) > 1
    row = 7
    changed = eval_set.scores.copy()
    changed[eval_set.patients == eval_set.patients[row]] = 0.987
    other = dataclasses.replace(eval_set, scores=changed)
    again = detection.predict(other, protocol=protocol, published=False, validation=None)
    assert again.thresholds[row, 0] == found.thresholds[row, 0]


def test_thresholds_from_validation_volumes():
    eval_set, validation = make_eval_set(20), make_eval_set(25, seed=9)
    found = detection.predict(eval_set, protocol=PROTOCOL, published=False, validation=validation)
    expected = classification.fit_threshold(validation.labels[:, 1], validation.scores[:, 1])
    assert (found.thresholds[:, 1] == expected).all()
    assert found.rule == "fitted on the validation volumes"
    metrics = measure(eval_set, validation=validation)
    assert "20 patients are among the validation volumes too" in metrics["notes"][0]
    fitted = metrics["calibration"]["Emphysema"]
    assert {"temperature", "ece_temperature", "ece_isotonic"} <= fitted.keys()


def test_label_missing_in_validation_volumes():
    eval_set = make_eval_set(20)
    validation = make_eval_set(20, labels=("Emphysema",), seed=3)
    row = measure(eval_set, validation=validation)["detection"]["per_label"]["Cardiomegaly"]
    assert row["auroc"]["value"] is not None
    reason = "no threshold: the validation volumes have no such label"
    assert row["f1"] == {"value": None, "reason": reason}


def test_macro_mean_is_over_the_same_labels_in_every_resample():
    """One label has positives in two patients, which many resamples lack; it scores perfectly."""
    eval_set = make_eval_set(40, labels=("A", "B", "rare"))
    labels, scores = eval_set.labels.copy(), eval_set.scores.copy()
    labels[:, 2] = np.isin(eval_set.patients, eval_set.patients[[0, 10]])
    scores[:, 2] = labels[:, 2]
    eval_set = dataclasses.replace(eval_set, labels=labels, scores=scores)
    weights = detection.resample_weights(eval_set, resamples=200, seed=0)
    samples = detection.sample_metrics(eval_set, weights)
    means = detection.macro(samples)["auroc"]
    lacking = np.isnan(samples["auroc"][2])
    assert 10 < lacking.sum() < 60
    np.testing.assert_array_equal(np.isnan(means), lacking)
    np.testing.assert_allclose(means[~lacking], samples["auroc"][:, ~lacking].mean(axis=0))
    found = measure(eval_set)["detection"]["macro"]
    assert found["auroc"]["low"] > samples["auroc"][:2].mean(axis=0).min()
    assert found["labels"] == found["of"] == 3


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda labels, scores: labels.fill(0), "one class: all 60 volumes are negative"),
        (lambda labels, scores: labels.fill(1), "one class: all 60 volumes are positive"),
        (lambda labels, scores: labels.fill(-1), "no volume has this label known"),
        (lambda labels, scores: scores.fill(np.nan), "60 of 60 scores are missing or not a number"),
        (
            lambda labels, scores: scores.__setitem__(3, np.nan),
            "1 of 60 scores are missing or not a number",
        ),
    ],
)
def test_undefined_label_has_a_reason(change, reason):
    eval_set = make_eval_set()
    labels, scores = eval_set.labels.copy(), eval_set.scores.copy()
    change(labels[:, 0], scores[:, 0])
    metrics = measure(dataclasses.replace(eval_set, labels=labels, scores=scores))
    found = metrics["detection"]
    assert found["macro"]["labels"] == 1
    row = found["per_label"]["Emphysema"]
    for name in detection.METRICS:
        assert row[name] == {"value": None, "reason": reason}
    other = found["per_label"]["Cardiomegaly"]["auroc"]["value"]
    assert found["macro"]["auroc"]["value"] == other
    assert "Emphysema" not in metrics["calibration"]


def test_positives_of_one_patient():
    eval_set = make_eval_set()
    labels = eval_set.labels.copy()
    labels[:, 0] = eval_set.patients == eval_set.patients[4]
    row = measure(dataclasses.replace(eval_set, labels=labels))["detection"]["per_label"][
        "Emphysema"
    ]
    assert row["positive"] == 2 and row["auroc"]["value"] is not None
    means = measure(dataclasses.replace(eval_set, labels=labels))["detection"]["macro"]
    assert means["labels"] == 2 and means["labels_at_threshold"] == 1
    assert row["auroc"]["delong_low"] is None, "one patient has no variance"
    assert row["f1"]["reason"] == "no threshold: too few patients of one class"


def test_one_volume():
    eval_set = make_eval_set(1).take(np.array([0]))
    metrics = measure(eval_set)
    assert metrics["detection"]["macro"]["auroc"]["value"] is None
    assert metrics["detection"]["macro"]["labels"] == 0
    assert measure(eval_set, published=True)["volumes"] == 1


def test_unknown_labels_do_not_count():
    eval_set = make_eval_set()
    labels = eval_set.labels.copy()
    labels[::3, 0] = -1
    known = eval_set.take(np.flatnonzero(labels[:, 0] >= 0))
    found = measure(dataclasses.replace(eval_set, labels=labels))["detection"]["per_label"]
    expected = measure(known)["detection"]["per_label"]
    assert found["Emphysema"]["unknown"] == 20
    assert found["Emphysema"]["auroc"]["value"] == expected["Emphysema"]["auroc"]["value"]


def test_excluded_labels():
    eval_set = make_eval_set()
    protocol = dataclasses.replace(PROTOCOL, excluded_labels=("Emphysema", "not a label"))
    found = measure(eval_set, protocol=protocol)["detection"]
    without = found["macro_without_left_out"]
    assert without["left_out"] == ["Emphysema"] and without["of"] == 1
    assert without["auroc"] == {
        name: found["per_label"]["Cardiomegaly"]["auroc"][name] for name in ("value", "low", "high")
    }
    assert "macro_without_left_out" not in measure(eval_set)["detection"]


def test_subgroups():
    n = 60
    sexes = np.where(np.arange(n) < 20, "F", np.where(np.arange(n) < 50, "M", ""))
    eval_set = make_eval_set(
        n // 2, subgroups={"sex": sexes, "age": np.full(n, ""), "kernel": sexes}
    )
    found = measure(eval_set)["strata"]
    assert set(found) == {"sex", "kernel"} and set(found["sex"]) == {"F", "M", "unknown"}
    women = found["sex"]["F"]
    assert women["volumes"] == 20 and women["patients"] == 10 and women["labels"] == 2
    alone = measure(eval_set.take(np.flatnonzero(sexes == "F")))["detection"]["macro"]["auroc"]
    assert women["auroc"]["value"] == pytest.approx(alone["value"])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("056Y", "50-60 years"),
        ("40", "40-50 years"),
        ("39.9", "below 40 years"),
        ("080Y", "80 years and more"),
        ("018M", "below 40 years"),
        ("", "unknown"),
        ("old", "unknown"),
    ],
)
def test_age_bins(text, expected):
    years = [subgroups.age_in_years(text)]
    assert subgroups.bin_names(years, subgroups.AGES, unit="years") == [expected]


def test_slice_spacing_bins():
    spacings = {
        "1": "1-1.5 mm",
        "1.5 mm": "1.5-2 mm",
        ".5": "below 1 mm",
        "3mm": "3 mm and more",
        "": "unknown",
    }
    eval_set = make_eval_set(5).take(np.arange(5))
    eval_set = dataclasses.replace(eval_set, subgroups={"slice_spacing": np.array(list(spacings))})
    assert subgroups.subgroup_values(eval_set)["slice_spacing"].tolist() == list(spacings.values())


def test_calibration_and_recalibration():
    rng = np.random.default_rng(0)
    scores = rng.random((4000, 2))
    labels = (rng.random((4000, 2)) < scores).astype(np.int8)
    labels[:, 1] = np.where(rng.random(4000) < 0.1, -1, labels[:, 1])
    overconfident = 1 / (1 + (1 / scores - 1) ** 3)
    eval_set = dataclasses.replace(make_eval_set(2000), labels=labels, scores=overconfident)
    test, validation = eval_set.take(np.arange(2000)), eval_set.take(np.arange(2000, 4000))
    found = detection.evaluate_calibration(test, validation=validation)
    for row in found.values():
        assert row["temperature"] == pytest.approx(3, rel=0.2)
        assert row["ece_temperature"] < row["ece"] > row["ece_isotonic"]
    counts = [sum(part["count"] for part in row["curve"]) for row in found.values()]
    assert counts == [2000, (labels[:2000, 1] >= 0).sum()]


def test_estimate_has_interval_chance_or_reason():
    samples = np.array([0.5, *np.linspace(0, 1, 101)])
    found = estimate(samples, level=0.9, chance=0.1)
    assert found == pytest.approx({"value": 0.5, "low": 0.05, "high": 0.95, "chance": 0.1})
    assert estimate(samples[:1], level=0.9) == {"value": 0.5}
    missing = estimate(np.array([np.nan, 0.5]), level=0.9, reason="too few")
    assert missing == {"value": None, "reason": "too few"}


def test_weighted_mean_ignores_undefined_values():
    weights = np.array([[1, 2], [1, 0], [1, 1]])
    found = mean_over(np.array([1.0, 2.0, np.nan]), weights)
    assert found.tolist() == [1.5, 1.0]
    assert np.isnan(mean_over(np.array([np.nan]), np.ones((1, 1)))).all()
