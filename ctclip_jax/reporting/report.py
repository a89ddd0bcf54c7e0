"""HTML reports of one evaluation and of a paired comparison, rendered by jinja2.

Python prepares what templates cannot compute: rows in order, scales and plots. The words of the
pages stand in templates/, one file per section; all text is escaped there.
"""

import base64
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from typing import Any

import jinja2
import numpy as np
from jaxtyping import Float
from markupsafe import Markup

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.reporting import plots
from ctclip_jax.reporting.examples import Case, Retrieval
from ctclip_jax.reporting.published import BENCHMARKS, find_benchmark

Metrics = Mapping[str, Any]
# Of metrics.json: "value", and maybe "reason", "low", "high", "chance".
Estimate = Mapping[str, Any]

HERE = Path(__file__).parent
METRIC_TITLES = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "f1_weighted": "F1 weighted",
    "f1": "F1",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
}


@dataclass(frozen=True)
class Scale:
    """The horizontal axis of the interval bars in one column of a table."""

    low: float
    high: float

    def percent(self, value: float) -> float:
        """Position of a value from the left end, in percent of the width."""
        return 100 * min(1.0, max(0.0, (value - self.low) / (self.high - self.low)))


def shared_scale(estimates: Iterable[Estimate]) -> Scale:
    """The smallest scale with ends at multiples of 0.1 that holds all estimates' intervals."""
    ends = [
        estimate["value"] if estimate.get(end) is None else estimate[end]
        for estimate in estimates
        if estimate["value"] is not None
        for end in ("low", "high")
    ]
    low, high = floor(10 * min(ends, default=0)) / 10, ceil(10 * max(ends, default=1)) / 10
    return Scale(low, max(high, low + 0.1))


def format_interval(estimate: Estimate, spec: str = ".3f", *, dash: str = "–") -> str:
    """'low–high'; empty without an interval."""
    if estimate.get("low") is None or estimate.get("high") is None:
        return ""
    return f"{estimate['low']:{spec}}{dash}{estimate['high']:{spec}}"


def format_signed_interval(difference: Estimate) -> str:
    """'+low to +high': a dash between them would be read as a minus."""
    return format_interval(difference, "+.3f", dash=" to ")


def format_p_value(difference: Estimate) -> str:
    """The p value: Holm-adjusted where the difference is one of many, else of the bootstrap."""
    p = difference.get("p_holm") if "p_holm" in difference else difference.get("p_bootstrap")
    if p is None:
        return "–"
    return f"{p:.3f}" if p >= 0.001 else f"{p:.0e}"


def render_report(
    metrics: Metrics,
    eval_set: EvalSet,
    *,
    predictions: Predictions | None = None,
    latent_map: Float[np.ndarray, "n 2"] | None = None,
    cases: Sequence[Case] = (),
    retrievals: Sequence[Retrieval] = (),
    thumbnails: Mapping[int, bytes] | None = None,
) -> str:
    """The report of an evaluation as one HTML file; sections without input are left out.

    Args:
      metrics: content of metrics.json for `eval_set`.
      predictions: for operating points and cases.
      latent_map: of `examples.latent_map`.
      cases, retrievals: of `examples.confident_cases` and `examples.sample_retrievals`.
      thumbnails: row of the EvalSet -> JPEG of its slices.
    """
    facts = _facts(metrics["source"])
    hashes = {name: facts.pop(name) for name in tuple(facts) if name.endswith("_sha256")}
    has_curves = "per_label" in metrics["detection"]
    rows = {r.row for r in (*cases, *retrievals)}.union(*(r.nearest for r in retrievals))
    return _render(
        "report.html",
        metrics=metrics,
        facts=facts,
        hashes=hashes,
        benchmark=find_benchmark(metrics["labels"], metrics["source"]),
        is_unrecorded="data_source" not in metrics["source"]
        and any(benchmark.labels == frozenset(metrics["labels"]) for benchmark in BENCHMARKS),
        label_rows=_label_rows(metrics),
        curves=_curves(metrics, eval_set, predictions) if has_curves else None,
        subgroups=_subgroups(metrics),
        recall_curves=_recall_curves(metrics),
        latent_map=None if latent_map is None else _map_data(eval_set, latent_map),
        cases=cases,
        retrievals=retrievals,
        volumes={row: _volume(eval_set, row, (thumbnails or {}).get(row)) for row in rows},
    )


def render_comparison(comparison: Mapping[str, Any]) -> str:
    """The comparison of two models as one HTML file, from the content of comparison.json."""
    groups = {}
    for group, name, difference in comparison_rows(comparison):
        groups.setdefault(group, []).append((name, difference))
    sources = {}
    for side, folder in zip("ab", comparison.get("folders", ("", "")), strict=True):
        facts = _facts(comparison[side])
        model = "; ".join(facts[name] for name in ("model", "scores", "prompts") if name in facts)
        sources[side.upper()] = f"{folder}, {model or 'scores of unknown origin'}"
    return _render("comparison.html", comparison=comparison, sources=sources, groups=groups)


def comparison_rows(comparison: Mapping[str, Any]) -> Iterator[tuple[str, str, Estimate]]:
    """(group, name, difference B - A) of everything that was compared, in the order of the page."""
    detection = comparison.get("detection", {})
    for name, title in METRIC_TITLES.items():
        if name in detection.get("macro", {}):
            yield "Means over labels", title, detection["macro"][name]
    retrieval = comparison.get("retrieval", {})
    search = retrieval.get("report_to_volume", {})
    for k, difference in search.get("recall", {}).items():
        yield "Report → volume", f"Recall@{k}", difference
    if search:
        yield "Report → volume", "MRR", search["mean_reciprocal_rank"]
    for k, difference in retrieval.get("volume_to_volume", {}).get("label_overlap", {}).items():
        yield "Volume → volume", f"Label overlap@{k}", difference
    for label, row in detection.get("per_label", {}).items():
        yield "AUROC by label", label, row["auroc"]


def _facts(source: Mapping[str, Any]) -> dict[str, str]:
    """Where scores and latents come from, as far as it is recorded: name -> text."""
    facts = {}
    for name, value in source.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        if name == "prompts":
            text = "; ".join(" / ".join(f"“{prompt}”" for prompt in pair) for pair in value)
        facts[name] = text
    return facts


def _label_rows(metrics: Metrics) -> list[tuple[str, Metrics]]:
    """(label, its estimates), the highest AUROC first."""
    per_label = metrics["detection"].get("per_label", {})
    return sorted(per_label.items(), key=lambda item: -(item[1]["auroc"]["value"] or 0))


def _curves(
    metrics: Metrics, eval_set: EvalSet, predictions: Predictions | None
) -> dict[str, dict[str, Markup]]:
    """Kind of curve -> label -> plot, for the labels that have both classes."""
    curves = {"roc": {}, "pr": {}, "calibration": {}}
    is_predicted = None if predictions is None else predictions.of(eval_set.scores)
    for column, label in enumerate(eval_set.label_names):
        row = metrics["detection"]["per_label"][label]
        if row["auroc"]["value"] is None:
            continue
        labels, scores, rows = eval_set.labeled(column)
        has_threshold = predictions is not None and not predictions.missing[column]
        predicted = is_predicted[rows, column] if has_threshold else None
        auroc, average_precision = row["auroc"]["value"], row["average_precision"]["value"]
        curves["roc"][label] = plots.roc(labels, scores, predicted=predicted, note=f"{auroc:.3f}")
        curves["pr"][label] = plots.precision_recall(
            labels, scores, predicted=predicted, note=f"{average_precision:.3f}"
        )
        if calibration := metrics["calibration"].get(label):
            curves["calibration"][label] = plots.reliability(
                calibration["curve"], note=f"ECE {calibration['ece']:.3f}"
            )
    return curves


def _subgroups(metrics: Metrics) -> dict[str, Any] | None:
    """Rows (variable -> subgroup -> estimates), and for each metric the scale of all rows.

    Bands such as "40-50 years" are in the order of their numbers, unknown values last.
    """

    def order(subgroup: str) -> tuple:
        number = re.search(r"\d+(?:\.\d+)?", subgroup)
        lower_end = float(number[0]) if number else 0.0
        return subgroup == "unknown", not subgroup.startswith("below "), lower_end, subgroup

    if not metrics["strata"]:
        return None
    rows = {
        variable: {subgroup: parts[subgroup] for subgroup in sorted(parts, key=order)}
        for variable, parts in metrics["strata"].items()
    }
    every = [row for parts in rows.values() for row in parts.values()]
    scales = {
        metric: shared_scale(row[metric] for row in every)
        for metric in ("auroc", "average_precision")
    }
    return {"rows": rows, "scales": scales}


def _recall_curves(metrics: Metrics) -> dict[str, Markup]:
    """Search -> plot of Recall@K, all on one scale; searches in too small galleries have none."""
    searches = {
        name: search["recall"]
        for name, search in metrics["retrieval"].items()
        if name != "reason" and search.get("recall")
    }
    ends = [e.get("high") or e["value"] for recall in searches.values() for e in recall.values()]
    top = ceil(10 * max(ends, default=1)) / 10 or 0.1
    return {name: plots.recall_at_k(recall, top=top) for name, recall in searches.items()}


def _map_data(eval_set: EvalSet, latent_map: Float[np.ndarray, "n 2"]) -> dict[str, list]:
    """What the script draws the map from; a label's states of all volumes are one string."""
    is_placed = np.isfinite(latent_map).all(axis=1)
    states = np.array(["?", "0", "1"])[eval_set.labels[is_placed] + 1]
    return {
        "points": latent_map[is_placed].round(4).tolist(),
        "names": eval_set.names[is_placed].tolist(),
        "labels": ["".join(column) for column in states.T],
    }


def _volume(eval_set: EvalSet, row: int, jpeg: bytes | None) -> dict[str, Any]:
    return {
        "name": eval_set.names[row],
        "scan": eval_set.scans[row],
        "report": str(eval_set.reports[row]),
        "labels": [eval_set.label_names[i] for i in np.flatnonzero(eval_set.labels[row] == 1)],
        "jpeg": jpeg and base64.b64encode(jpeg).decode(),
    }


def _render(template: str, **context: Any) -> str:
    """The template as a page that holds its stylesheet and its script."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE / "templates"),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"allow_nan": False, "separators": (",", ":")}
    environment.globals["metric_titles"] = METRIC_TITLES
    environment.filters |= {
        "number": format,
        "interval": format_interval,
        "signed_interval": format_signed_interval,
        "p_value": format_p_value,
        "scale": shared_scale,
        "all_ks": lambda tables: sorted({k for table in tables for k in table}, key=int),
    }
    style = (HERE / "static/report.css").read_text(encoding="utf-8")
    script = (HERE / "static/report.js").read_text(encoding="utf-8")
    page = environment.get_template(template)
    return page.render(style=Markup(style), script=Markup(script), **context)
