"""Detection of labels: what scores are worth against the truth, with intervals over patients."""

import dataclasses
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Num

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.estimates import figure, number
from ctclip_jax.evaluation.metrics import bootstrap, classification, delong
from ctclip_jax.evaluation.metrics.classification import AT_THRESHOLD, RANKING
from ctclip_jax.evaluation.protocol import ProtocolConfig

METRICS = (*RANKING, *AT_THRESHOLD)
BLOCK = 1 << 22  # entries of weights worked on at a time

Samples = dict[str, Float[np.ndarray, "labels b"]]


@dataclasses.dataclass(frozen=True)
class Predictions:
    """What is predicted of a study, and by which thresholds.

    Attributes:
      rule: how the thresholds were found, in words.
      thresholds: (n, labels) the threshold of each score; NaN where there is none.
      missing: for each label why it has none for some volume; empty where all have one.
      published: whether they are those of the published protocol.
    """

    rule: str
    thresholds: Float[np.ndarray, "n labels"]
    missing: tuple[str, ...]
    published: bool = False

    def of(self, scores: Float[np.ndarray, "n labels"]) -> Bool[np.ndarray, "n labels"]:
        """Whether each label is predicted; never without a threshold."""
        return scores > np.where(np.isnan(self.thresholds), np.inf, self.thresholds)


def predict(
    study: EvalSet, *, protocol: ProtocolConfig, published: bool, validation: EvalSet | None
) -> Predictions:
    """Thresholds fitted on the validation study, or cross-fitted over folds of patients, or, as
    published, on the volumes that they are judged on."""
    thresholds = np.full(study.scores.shape, np.nan)
    missing = list(missing_reasons(study))
    folds = bootstrap.folds(study.patients, count=protocol.folds, seed=protocol.seed)
    for column, label in enumerate(study.label_names):
        if missing[column]:
            continue
        labels, scores, rows = study.labeled(column)
        if published:
            found, reason = classification.published_threshold(labels, scores), ""
        elif validation is not None:
            found, reason = _validation_threshold(validation, label)
        else:
            found = classification.cross_fitted_thresholds(labels, scores, folds[rows])
            reason = "no threshold: too few patients of one class"
        thresholds[rows, column] = found
        if np.isnan(found).any():
            missing[column] = reason
    rule = f"cross-fitted over {protocol.folds} folds of patients"
    if published:
        rule = "fitted on the same volumes, as published"
    elif validation is not None:
        rule = "fitted on the validation volumes"
    return Predictions(rule, thresholds, tuple(missing), published)


def missing_reasons(study: EvalSet) -> tuple[str, ...]:
    """For each label why it has no figures; empty where it has."""
    return tuple(missing_reason(study, column) for column in range(len(study.label_names)))


def missing_reason(study: EvalSet, column: int) -> str:
    """Why a label has no figures; empty if it has."""
    labels, scores, _ = study.labeled(column)
    if not len(labels):
        return "no volume has this label known"
    if unscored := int(np.isnan(scores).sum()):
        return f"{unscored} of {len(labels)} scores are missing or not a number"
    if len(np.unique(labels)) == 1:
        which = "positive" if labels[0] else "negative"
        return f"one class: all {len(labels)} volumes are {which}"
    return ""


def _validation_threshold(validation: EvalSet, label: str) -> tuple[float, str]:
    if label not in validation.label_names:
        return np.nan, "no threshold: the validation volumes have no such label"
    column = validation.label_names.index(label)
    if reason := missing_reason(validation, column):
        return np.nan, f"no threshold: of the validation volumes, {reason}"
    labels, scores, _ = validation.labeled(column)
    return classification.fit_threshold(labels, scores), ""


def sample(
    study: EvalSet, weights: Num[np.ndarray, "n b"], *, predictions: Predictions | None = None
) -> Samples:
    """Every metric of every label under every weighting: metric -> (labels, b).

    Without predictions those that need none."""
    names = METRICS if predictions else RANKING
    shape = (len(study.label_names), weights.shape[1])
    samples = {name: np.full(shape, np.nan) for name in names}
    blocks = np.array_split(np.arange(shape[1]), -(-weights.size // BLOCK))
    predicted = predictions.of(study.scores) if predictions else None
    for column, reason in enumerate(missing_reasons(study)):
        if reason:
            continue
        labels, scores, rows = study.labeled(column)
        for block in blocks:
            part = weights[np.ix_(rows, block)]
            found = classification.ranking(labels, scores, part)
            if predictions and not predictions.missing[column]:
                found |= classification.at_threshold(labels, predicted[rows, column], part)
            for name, values in found.items():
                samples[name][column, block] = values
    return samples


def macro(samples: Samples, rows: np.ndarray | slice = slice(None)) -> dict[str, np.ndarray]:
    """Means (b,) over the labels `rows` where a metric is defined for the volumes themselves.

    A resample that lacks a class of one of them has no mean: over the rest it would be another."""
    means = {}
    for name, values in samples.items():
        counted = values[rows][np.isfinite(values[rows][:, 0])]
        means[name] = counted.mean(axis=0) if len(counted) else np.full(values.shape[1], np.nan)
    return means


def weights_of(study: EvalSet, protocol: ProtocolConfig, *, intervals: bool) -> np.ndarray:
    """A column of ones, and the resamples of patients after it if there are to be intervals."""
    once = np.ones((len(study.names), 1), np.uint16)
    if not intervals or protocol.resamples == 0:
        return once
    drawn = bootstrap.resample(study.patients, resamples=protocol.resamples, seed=protocol.seed)
    return np.concatenate([once, drawn], axis=1)


def evaluate(
    study: EvalSet,
    predictions: Predictions,
    weights: Num[np.ndarray, "n b"],
    *,
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    """Every figure of every label, means over all labels and without the excluded ones.

    `weights` are of `weights_of`.
    """
    samples = sample(study, weights, predictions=predictions)
    labels = study.label_names
    found = {
        "thresholds": predictions.rule,
        "macro": _means(samples, np.arange(len(labels)), protocol),
    }
    kept = np.array([i for i, label in enumerate(labels) if label not in protocol.excluded_labels])
    if 0 < len(kept) < len(labels):
        found["macro_without_left_out"] = {
            "left_out": [label for label in labels if label in protocol.excluded_labels],
            **_means(samples, kept, protocol),
        }
    found["per_label"] = {
        label: _label_figures(study, column, samples, predictions, protocol)
        for column, label in enumerate(labels)
    }
    return found


def _means(samples: Samples, rows: np.ndarray, protocol: ProtocolConfig) -> dict[str, Any]:
    counted = {name: int(np.isfinite(values[rows, 0]).sum()) for name, values in samples.items()}
    means = {
        name: figure(values, level=protocol.level, reason="defined for no label")
        for name, values in macro(samples, rows).items()
    }
    return {
        "of": len(rows),
        "labels": counted["auroc"],
        "labels_at_threshold": counted["f1"],
        **means,
    }


def _label_figures(
    study: EvalSet,
    column: int,
    samples: Samples,
    predictions: Predictions,
    protocol: ProtocolConfig,
) -> dict[str, Any]:
    labels, scores, rows = study.labeled(column)
    positive = int(labels.sum())
    fitted = predictions.thresholds[rows, column]
    fitted = fitted[~np.isnan(fitted)]
    found: dict[str, Any] = {
        "positive": positive,
        "negative": len(labels) - positive,
        "unknown": len(study.labels) - len(labels),
        "prevalence": positive / len(labels) if len(labels) else None,
        "threshold": float(np.median(fitted)) if len(fitted) else None,
    }
    reason = missing_reason(study, column)
    for name in METRICS:
        why = reason or predictions.missing[column]
        found[name] = figure(samples[name][column], level=protocol.level, reason=why)
    if not reason and samples["auroc"].shape[1] > 1:
        delonged = delong.delong(labels, scores[:, None], patients=study.patients[rows])
        low, high = delong.interval(delonged, level=protocol.level)[0]
        found["auroc"] |= {"delong_low": number(low), "delong_high": number(high)}
    if not reason and predictions.published:
        sensitivity, specificity = classification.youden_point(labels, scores)
        found["youden_sensitivity"] = {"value": sensitivity}
        found["youden_specificity"] = {"value": specificity}
    return found
