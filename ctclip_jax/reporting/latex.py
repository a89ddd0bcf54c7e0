"""LaTeX tables of a paper from the content of metrics.json; they need the package booktabs."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ctclip_jax.evaluation.metrics.ranking import RECALL_K
from ctclip_jax.reporting.published import CT_CLIP, find_benchmark

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
ESCAPES = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "→": r"$\rightarrow$",
        **{char: f"\\{char}" for char in "&%$#_{}"},
    }
)


def tables(metrics: Metrics, model: str) -> str:
    """A table of means over labels, with a row named `model`, and a table with a row per label.

    Published rows come first if there are any for these labels.
    """
    return f"{_means_table(metrics, model)}\n{_label_table(metrics)}"


def _means_table(metrics: Metrics, model: str) -> str:
    groups = []
    if benchmark := find_benchmark(metrics["labels"]):
        rows = []
        for name, means in benchmark.detection.items():
            recall = benchmark.recall if name == CT_CLIP else {}
            values = [means.get(m) for m in MEANS] + [recall.get(k) for k in RECALL_K]
            rows.append([name, *(_format({"value": value}) for value in values)])
        groups.append(rows)
    macro = metrics["detection"].get("macro", {})
    recall = metrics["retrieval"].get("report_to_volume", {}).get("recall", {})
    row = [_format(macro.get(m)) for m in MEANS] + [_format(recall.get(str(k))) for k in RECALL_K]
    groups.append([[model.translate(ESCAPES), *row]])
    labels = f"{macro['labels']} of {macro['of']}" if macro else "no"
    caption = f"Means over {labels} labels; recall of reports among {metrics['volumes']:,} volumes."
    return _tabular(caption, ["", *MEANS.values(), *(f"R@{k}" for k in RECALL_K)], groups)


def _label_table(metrics: Metrics) -> str:
    detection = metrics["detection"]
    rows = []
    for label, row in detection.get("per_label", {}).items():
        # Intervals of one column only: a table with those of all would be wider than a page.
        auroc, *others = (row[name] for name in PER_LABEL)
        values = [_format(auroc), *(_format({"value": other["value"]}) for other in others)]
        rows.append([label.translate(ESCAPES), f"{row['positive']:,}", *values])
    caption = f"Thresholds {detection.get('thresholds', 'none')}."
    return _tabular(caption, ["Label", "Pos.", *PER_LABEL.values()], [rows])


def _format(estimate: Mapping[str, Any] | None) -> str:
    """The value and, small, its interval; two dashes if it is missing."""
    if not estimate or estimate.get("value") is None:
        return "--"
    value = f"{estimate['value']:.3f}"
    if estimate.get("low") is None or estimate.get("high") is None:
        return value
    return f"{value} {{\\scriptsize[{estimate['low']:.3f}, {estimate['high']:.3f}]}}"


def _tabular(caption: str, heads: Sequence[str], groups: Iterable[Iterable[Sequence[str]]]) -> str:
    """Groups of rows with a rule between them; `caption` is a comment above."""
    bodies = ["".join(f"{' & '.join(row)} \\\\\n" for row in rows) for rows in groups]
    return (
        f"% {caption}\n"
        f"\\begin{{tabular}}{{l{'r' * (len(heads) - 1)}}}\n\\toprule\n"
        f"{' & '.join(heads)} \\\\\n\\midrule\n"
        + "\\midrule\n".join(bodies)
        + "\\bottomrule\n\\end{tabular}\n"
    )
