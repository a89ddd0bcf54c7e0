"""The tables of a paper: rows of booktabs tables from the content of metrics.json."""

from collections.abc import Iterable, Mapping
from typing import Any

from ctclip_jax.evaluation.metrics.ranking import RECALL_K
from ctclip_jax.reporting.published import CT_CLIP, Benchmark, benchmark

Metrics = Mapping[str, Any]

MEANS = {"auroc": "AUROC", "f1_weighted": "F1 w.", "accuracy": "Acc.", "precision": "Prec."}
PER_LABEL = {
    "auroc": "AUROC",
    "average_precision": "AP",
    "f1_weighted": "F1 w.",
    "f1": "F1",
    "accuracy": "Acc.",
    "precision": "Prec.",
    "recall": "Recall",
    "specificity": "Spec.",
}
MISSING = "--"
_SPECIAL = {
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "→": r"$\rightarrow$",
    **{char: f"\\{char}" for char in "&%$#_{}"},
}


def table(metrics: Metrics, name: str) -> str:
    """Two tables, of the means and of the labels; the model is called `name` in them.

    The published rows stand first where there are some for these labels. Needs booktabs.
    """
    return f"{_main(metrics, name)}\n{_per_label(metrics)}"


def escape(text: str) -> str:
    """The text as LaTeX prints it."""
    return "".join(_SPECIAL.get(char, char) for char in text)


def _main(metrics: Metrics, name: str) -> str:
    heads = ["", *MEANS.values(), *(f"R@{k}" for k in RECALL_K)]
    matching = benchmark(metrics["labels"])
    rows = _published(matching) if matching else []
    means = metrics["detection"].get("macro", {})
    recall = metrics["retrieval"].get("report_to_volume", {}).get("recall", {})
    own = [escape(name), *(_figure(means.get(metric)) for metric in MEANS)]
    own += [_figure(recall.get(str(k))) for k in RECALL_K]
    counted = f"{means['labels']} of {means['of']}" if means else "no"
    about = f"Means over {counted} labels; recall of reports among {metrics['volumes']:,} volumes."
    return _tabular(about, heads, [rows, [own]] if rows else [[own]])


def _published(matching: Benchmark) -> list[list[str]]:
    rows = []
    for model, figures in matching.detection.items():
        recall = matching.recall if model == CT_CLIP else {}
        values = [figures.get(metric) for metric in MEANS] + [recall.get(k) for k in RECALL_K]
        rows.append([escape(model), *(_figure({"value": value}) for value in values)])
    return rows


def _per_label(metrics: Metrics) -> str:
    detection = metrics["detection"]
    rows = []
    for label, figures in detection.get("per_label", {}).items():
        values = [figures[name] for name in PER_LABEL]
        bare = [_figure({"value": value["value"]}) for value in values[1:]]
        rows.append([escape(label), f"{figures['positive']:,}", _figure(values[0]), *bare])
    about = f"Thresholds {detection.get('thresholds', 'none')}."
    return _tabular(about, ["Label", "Pos.", *PER_LABEL.values()], [rows])


def _figure(figure: Metrics | None) -> str:
    if not figure or figure.get("value") is None:
        return MISSING
    value = f"{figure['value']:.3f}"
    if figure.get("low") is None or figure.get("high") is None:
        return value
    return f"{value} {{\\scriptsize[{figure['low']:.3f}, {figure['high']:.3f}]}}"


def _tabular(about: str, heads: Iterable[str], groups: Iterable[Iterable[Iterable[str]]]) -> str:
    """Groups of rows with a rule between them; `about` is a comment above."""
    heads = list(heads)
    parts = ["".join(f"{' & '.join(row)} \\\\\n" for row in rows) for rows in groups]
    return (
        f"% {about}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}\n\\toprule\n"
        f"{' & '.join(heads)} \\\\\n\\midrule\n"
        + "\\midrule\n".join(parts)
        + "\\bottomrule\n\\end{tabular}\n"
    )
