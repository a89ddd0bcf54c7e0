"""Grids of small curves, a panel a label or a search, as HTML."""

from collections.abc import Mapping
from html import escape
from math import ceil
from typing import Any

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.reporting import plots
from ctclip_jax.reporting.tables import SEARCHES

Metrics = Mapping[str, Any]

KINDS = {  # kind of curve -> its name, what it shows
    "roc": (
        "ROC",
        "Across the false positive rate, up the true positive rate. In the corner the AUROC; the "
        "dot is the operating point.",
    ),
    "pr": (
        "Precision–recall",
        "Across recall, up precision. In the corner the average precision; the dashed line is the "
        "prevalence, the dot the operating point.",
    ),
    "calibration": (
        "Calibration",
        "Across the mean score, up the share of positive volumes. The area of a dot is the number "
        "of its volumes; ECE is the expected calibration error.",
    ),
}


def label_curves(metrics: Metrics, study: EvalSet, predictions: Predictions | None) -> str:
    """A grid for each kind of curve, of which one is seen at a time."""
    grids = {kind: "" for kind in KINDS}
    for column, label in enumerate(study.label_names):
        for kind, drawn in _panels(metrics, study, predictions, column).items():
            grids[kind] += _figure(label, drawn)
    choices, shown = "", ""
    for kind, (title, about) in KINDS.items():
        checked = " checked" if kind == "roc" else ""
        choices += (
            f'<input type="radio" name="curves" id="show-{kind}"{checked}>'
            f'<label for="show-{kind}">{title}</label>\n'
        )
        shown += (
            f'<div class="grid {kind}"><h3>{title}</h3><p class="soft">{about}</p>'
            f'<div class="plots">{grids[kind]}</div></div>\n'
        )
    return f'<div class="panel tabs">{choices}{shown}</div>'


def _panels(
    metrics: Metrics, study: EvalSet, predictions: Predictions | None, column: int
) -> dict[str, str]:
    """Kind of curve -> its drawing."""
    label = study.label_names[column]
    figures = metrics["detection"]["per_label"][label]
    if figures["auroc"]["value"] is None:
        reason = f'<div class="blank">{escape(figures["auroc"]["reason"])}</div>'
        return {kind: reason for kind in KINDS}
    labels, scores, rows = study.labeled(column)
    predicted = None
    if predictions is not None and not predictions.missing[column]:
        predicted = predictions.of(study.scores)[rows, column]
    area, average = figures["auroc"]["value"], figures["average_precision"]["value"]
    found = {
        "roc": plots.roc(labels, scores, predicted=predicted, note=f"{area:.3f}"),
        "pr": plots.precision_recall(labels, scores, predicted=predicted, note=f"{average:.3f}"),
    }
    if calibrated := metrics.get("calibration", {}).get(label):
        drawn = plots.reliability(calibrated["curve"], note=f"ECE {calibrated['ece']:.3f}")
        found["calibration"] = drawn + _recalibrated(calibrated)
    return found


def _recalibrated(found: Metrics) -> str:
    """The ECE after the fits on validation volumes; empty without them."""
    fits = [name for name in ("temperature", "isotonic") if f"ece_{name}" in found]
    told = ", ".join(f"{name} {found[f'ece_{name}']:.3f}" for name in fits)
    return f'<small class="after">after {told}</small>' if told else ""


def recall_curves(retrieval: Metrics) -> str:
    """Recall over K of every search, on one scale; empty if no K is small enough."""
    shown = {name: retrieval[name]["recall"] for name in SEARCHES if name in retrieval}
    shown = {name: figures for name, figures in shown.items() if figures}
    every = [figure for figures in shown.values() for figure in figures.values()]
    if not every:
        return ""
    top = ceil(10 * max(figure.get("high") or figure["value"] for figure in every)) / 10 or 0.1
    drawn = "".join(
        _figure(SEARCHES[name][0], plots.recall(figures, top=top))
        for name, figures in shown.items()
    )
    dashed = " The dashed line is chance." if "chance" in every[0] else ""
    about = f'<p class="soft">Across K, up Recall@K.{dashed}</p>'
    return f'{about}<div class="plots searches">{drawn}</div>'


def _figure(title: str, drawn: str) -> str:
    return f"<figure><figcaption>{escape(title)}</figcaption>{drawn}</figure>"
