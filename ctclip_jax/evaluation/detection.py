"""Detection: thresholds, AUROC and F1 with confidence intervals, calibration of scores."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import estimate, number
from ctclip_jax.evaluation.metrics import bootstrap, classification, delong, reliability
from ctclip_jax.evaluation.metrics.classification import AT_THRESHOLD, RANKING
from ctclip_jax.evaluation.protocol import ProtocolConfig

METRICS = (*RANKING, *AT_THRESHOLD)
# Weights that the metrics of a label are computed on at a time, which bounds memory.
BLOCK = 1 << 22

Samples = dict[str, Float[np.ndarray, "labels b"]]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Thresholds of scores.

    Attributes:
      rule: how the thresholds are fitted, in words.
      thresholds: (n, labels) of each score; NaN if there is none.
      missing: for each label why some volume has no threshold; empty if all have one.
      published: whether they follow the published protocol.
    """

    rule: str
    thresholds: Float[np.ndarray, "n labels"]
    missing: tuple[str, ...]
    published: bool = False

    def of(self, scores: Float[np.ndarray, "n labels"]) -> Bool[np.ndarray, "n labels"]:
        """Which labels are predicted; none without a threshold."""
        return scores > np.where(np.isnan(self.thresholds), np.inf, self.thresholds)


def predict(
    eval_set: EvalSet, *, protocol: ProtocolConfig, published: bool, validation: EvalSet | None
) -> Predictions:
    """Thresholds fitted to the validation volumes if there are any, else cross-fitted over folds of
    patients; as published, fitted to the very volumes that they are evaluated on."""
    thresholds = np.full(eval_set.scores.shape, np.nan)
    missing = list(missing_reasons(eval_set))
    folds = bootstrap.folds(eval_set.patients, count=protocol.folds, seed=protocol.seed)
    for column, label in enumerate(eval_set.label_names):
        if missing[column]:
            continue
        labels, scores, rows = eval_set.labeled(column)
        if published:
            fitted, reason = classification.published_threshold(labels, scores), ""
        elif validation is not None:
            fitted, reason = _validation_threshold(validation, label)
        else:
            fitted = classification.cross_fitted_thresholds(labels, scores, folds[rows])
            reason = "no threshold: too few patients of one class"
        thresholds[rows, column] = fitted
        if np.isnan(thresholds[rows, column]).any():
            missing[column] = reason
    rule = f"cross-fitted over {protocol.folds} folds of patients"
    if published:
        rule = "fitted on the same volumes, as published"
    elif validation is not None:
        rule = "fitted on the validation volumes"
    return Predictions(rule, thresholds, tuple(missing), published)


def missing_reasons(eval_set: EvalSet) -> tuple[str, ...]:
    """`missing_reason` of each label."""
    return tuple(missing_reason(eval_set, column) for column in range(len(eval_set.label_names)))


def missing_reason(eval_set: EvalSet, column: int) -> str:
    """Why a label has no metrics; empty if it has."""
    labels, scores, _ = eval_set.labeled(column)
    if not len(labels):
        return "no volume has this label known"
    if num_missing := int(np.isnan(scores).sum()):
        return f"{num_missing} of {len(labels)} scores are missing or not a number"
    if len(np.unique(labels)) == 1:
        value = "positive" if labels[0] else "negative"
        return f"one class: all {len(labels)} volumes are {value}"
    return ""


def _validation_threshold(validation: EvalSet, label: str) -> tuple[float, str]:
    if label not in validation.label_names:
        return np.nan, "no threshold: the validation volumes have no such label"
    column = validation.label_names.index(label)
    if reason := missing_reason(validation, column):
        return np.nan, f"no threshold: of the validation volumes, {reason}"
    labels, scores, _ = validation.labeled(column)
    return classification.fit_threshold(labels, scores), ""


def resample_weights(
    eval_set: EvalSet, protocol: ProtocolConfig, *, intervals: bool
) -> Num[np.ndarray, "n b"]:
    """How often each volume counts: a column of ones, then with `intervals` the resamples."""
    ones = np.ones((len(eval_set.names), 1), np.uint16)
    if not intervals or protocol.resamples == 0:
        return ones
    drawn = bootstrap.resample(eval_set.patients, resamples=protocol.resamples, seed=protocol.seed)
    return np.concatenate([ones, drawn], axis=1)


def sample_metrics(
    eval_set: EvalSet, weights: Num[np.ndarray, "n b"], *, predictions: Predictions | None = None
) -> Samples:
    """Every metric (labels, b) of every label under every weighting, NaN if undefined.

    Without predictions only those that need no threshold.
    """
    names = METRICS if predictions else RANKING
    shape = (len(eval_set.label_names), weights.shape[1])
    samples = {name: np.full(shape, np.nan) for name in names}
    blocks = np.array_split(np.arange(shape[1]), -(-weights.size // BLOCK))
    predicted = predictions.of(eval_set.scores) if predictions else None
    for column, reason in enumerate(missing_reasons(eval_set)):
        if reason:
            continue
        labels, scores, rows = eval_set.labeled(column)
        for block in blocks:
            part = weights[np.ix_(rows, block)]
            metrics = classification.ranking(labels, scores, part)
            if predictions and not predictions.missing[column]:
                metrics |= classification.at_threshold(labels, predicted[rows, column], part)
            for name, values in metrics.items():
                samples[name][column, block] = values
    return samples


def macro(samples: Samples, columns: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
    """Means (b,) over the labels `columns` whose metric is defined on the volumes themselves.

    NaN in a resample that lacks a class of one of them: a mean over fewer labels is another figure.
    """
    means = {}
    for name, values in samples.items():
        defined = values[columns][np.isfinite(values[columns][:, 0])]
        means[name] = defined.mean(axis=0) if len(defined) else np.full(values.shape[1], np.nan)
    return means


def evaluate(
    eval_set: EvalSet,
    predictions: Predictions,
    weights: Num[np.ndarray, "n b"],
    *,
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    """Every metric of every label, and means over all labels and over all that are not excluded.

    `weights` as from `resample_weights`.
    """
    samples = sample_metrics(eval_set, weights, predictions=predictions)
    labels, excluded = eval_set.label_names, protocol.excluded_labels
    results = {
        "thresholds": predictions.rule,
        "macro": _macro_estimates(samples, np.arange(len(labels)), protocol),
    }
    included = np.array([i for i, label in enumerate(labels) if label not in excluded])
    if 0 < len(included) < len(labels):
        results["macro_without_left_out"] = {
            "left_out": [label for label in labels if label in excluded],
            **_macro_estimates(samples, included, protocol),
        }
    results["per_label"] = {
        label: _label_estimates(eval_set, column, samples, predictions, protocol)
        for column, label in enumerate(labels)
    }
    return results


def _macro_estimates(
    samples: Samples, columns: np.ndarray, protocol: ProtocolConfig
) -> dict[str, Any]:
    num_defined = {n: int(np.isfinite(values[columns, 0]).sum()) for n, values in samples.items()}
    return {
        "of": len(columns),
        "labels": num_defined["auroc"],
        "labels_at_threshold": num_defined["f1"],
        **{
            name: estimate(values, level=protocol.level, reason="defined for no label")
            for name, values in macro(samples, columns).items()
        },
    }


def _label_estimates(
    eval_set: EvalSet,
    column: int,
    samples: Samples,
    predictions: Predictions,
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    labels, scores, rows = eval_set.labeled(column)
    num_positive = int(labels.sum())
    thresholds = predictions.thresholds[rows, column]
    thresholds = thresholds[~np.isnan(thresholds)]
    results: dict[str, Any] = {
        "positive": num_positive,
        "negative": len(labels) - num_positive,
        "unknown": len(eval_set.labels) - len(labels),
        "prevalence": num_positive / len(labels) if len(labels) else None,
        "threshold": float(np.median(thresholds)) if len(thresholds) else None,
    }
    missing = missing_reason(eval_set, column)
    for name in METRICS:
        reason = missing or predictions.missing[column]
        results[name] = estimate(samples[name][column], level=protocol.level, reason=reason)
    if not missing and samples["auroc"].shape[1] > 1:
        result = delong.delong(labels, scores[:, None], patients=eval_set.patients[rows])
        low, high = delong.interval(result, level=protocol.level)[0]
        results["auroc"] |= {"delong_low": number(low), "delong_high": number(high)}
    if not missing and predictions.published:
        sensitivity, specificity = classification.youden_point(labels, scores)
        results["youden_sensitivity"] = {"value": sensitivity}
        results["youden_specificity"] = {"value": specificity}
    return results


def evaluate_calibration(
    eval_set: EvalSet, *, validation: EvalSet | None
) -> dict[str, dict[str, Any]]:
    """Per label: expected calibration error, Brier score and reliability curve; with validation
    volumes also the error after a temperature and after an isotonic fit to them."""
    results = {}
    for column, label in enumerate(eval_set.label_names):
        if missing_reason(eval_set, column):
            continue
        labels, scores, _ = eval_set.labeled(column)
        curve = reliability.reliability(labels, scores)
        results[label] = {
            "ece": reliability.expected_calibration_error(curve),
            "brier": reliability.brier(labels, scores),
            "curve": [
                {"score": float(s), "positive": float(p), "count": int(c)}
                for s, p, c in zip(curve.score, curve.positive, curve.count, strict=True)
                if c
            ],
        }
        if validation is not None and label in validation.label_names:
            results[label] |= _recalibrated_errors(labels, scores, validation, label)
    return results


def _recalibrated_errors(labels, scores, validation: EvalSet, label: str) -> dict[str, float]:
    column = validation.label_names.index(label)
    if missing_reason(validation, column):
        return {}
    *fitted_on, _ = validation.labeled(column)
    temperature = reliability.fit_temperature(*fitted_on)
    recalibrated = {
        "temperature": reliability.apply_temperature(scores, temperature),
        "isotonic": reliability.fit_isotonic(*fitted_on).predict(scores),
    }
    errors = {
        f"ece_{name}": reliability.expected_calibration_error(
            reliability.reliability(labels, values)
        )
        for name, values in recalibrated.items()
    }
    return {"temperature": temperature, **errors}
