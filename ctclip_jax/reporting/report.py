"""The HTML page a person reads: what was evaluated, how well it works, a few volumes."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from ctclip_jax.metrics.retrieval import OVERLAP_K, RECALL_K
from ctclip_jax.reporting import plots
from ctclip_jax.reporting.style import CSS
from data_pipelines.reports import LABELS, PROMPTS

RECALLS = {
    "report_to_volume": "Report → its volume, among all volumes",
    "report_to_any_reconstruction": "Report → any volume of its scan, among all volumes",
    "report_to_scan": "Report → its scan, one volume per scan",
}


@dataclass(frozen=True)
class Example:
    """One volume as the page shows it.

    Attributes:
      name: the volume.
      picture: PNG of its slices.
      present: its labels.
      predicted: the labels that stand out most, with their scores.
      report: its own report; own_rank: the place of that report among all, 1 the nearest.
      nearest: the name of the volume whose report is nearest, and that report.
    """

    name: str
    picture: bytes
    present: tuple[str, ...]
    predicted: tuple[tuple[str, float], ...]
    report: str
    own_rank: int
    nearest: tuple[str, str]


def page(
    metrics: Mapping[str, Any],
    *,
    labels: Integer[np.ndarray, "n labels"],
    scores: Float[np.ndarray, "n labels"],
    examples: Sequence[Example],
) -> str:
    """The page as one HTML file that needs no other, from the contents of metrics.json.

    Args:
      metrics: as written to metrics.json.
      labels, scores: what the ROC curves are of.
      examples: the volumes to show.
    """
    per_label = metrics["zero_shot"]["per_label"]
    thresholds = [per_label[label]["threshold"] for label in LABELS]
    roc = plots.roc_grid(labels, scores, names=LABELS, thresholds=thresholds)
    return f"""<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>CT-CLIP evaluation</title>
<style>{CSS}</style>
</head>
<body>
<main>
{_header(metrics)}
<h2>Zero-shot detection</h2>
<p class="soft">Labels from best to worst AUROC. The score of a label says which of its two
prompts the volume is nearer to; thresholds {escape(metrics["threshold_rule"])}.</p>
<div class="panel">{_label_table(per_label)}</div>
<div class="panel"><img alt="ROC curves" src="{_data_uri(roc, "image/svg+xml")}"></div>
<h2>Retrieval</h2>
<p class="soft">Recall@K: share of reports that find their volume among the K nearest.
Label overlap@K: mean Jaccard overlap of the labels of a volume and of its K nearest from other
scans. Small figures are the level of chance.</p>
<div class="panel">{_recall_table(metrics["retrieval"])}</div>
<div class="panel">{_overlap_table(metrics["retrieval"]["volume_to_volume"])}</div>
<h2>Volumes</h2>
<p class="soft">Volumes spread evenly over the split, not chosen by how well they do. Slices:
axial, coronal and sagittal, in the lung window, the patient's left on the right.</p>
{"".join(_example(example) for example in examples)}
<footer>For research only; not a medical device.</footer>
</main>
</body>
</html>
"""


def _header(metrics: Mapping[str, Any]) -> str:
    """Title, what was evaluated, the headline numbers."""
    macro, retrieval = metrics["zero_shot"]["macro"], metrics["retrieval"]
    present, absent = PROMPTS[metrics["prompts"]]
    recall, overlap = retrieval["report_to_volume"], retrieval["volume_to_volume"]
    reading = "by sentences" if metrics["pool_sentences"] else "whole"
    count = f"{macro['labels']} of {len(LABELS)} labels"
    cards = [
        ("Mean AUROC", _number(macro["auroc"]), count),
        ("Mean weighted F1", _number(macro["f1_weighted"]), count),
        ("Mean accuracy", _number(macro["accuracy"]), count),
        ("Mean precision", _number(macro["precision"]), count),
        ("Recall@5", _number(recall.get("recall@5")), f"chance {_number(recall.get('chance@5'))}"),
        (
            "Label overlap@5",
            _number(overlap.get("label_overlap@5")),
            f"chance {_number(overlap.get('chance'))}",
        ),
    ]
    boxes = "".join(
        f'<div class="card"><span>{name}</span><b>{value}</b><small>{note}</small></div>'
        for name, value, note in cards
    )
    return f"""<h1>CT-CLIP evaluation</h1>
<p class="facts">{metrics["volumes"]:,} volumes of {metrics["scans"]:,} scans, split
“{escape(metrics["split"])}” of {escape(metrics["shards"])}<br>
Model {escape(metrics["model"])}<br>
Prompts “{escape(present.format("Label"))}” / “{escape(absent.format("Label"))}”;
reports {escape(metrics["report"])}, read {reading}</p>
<div class="cards">{boxes}</div>"""


def _label_table(per_label: Mapping[str, Mapping[str, float | None]]) -> str:
    """All labels from best to worst, those without an AUROC last."""
    ranked = sorted(per_label.items(), key=lambda item: -(item[1]["auroc"] or 0))
    head = ("Label", "Prevalence", "AUROC", "F1 weighted", "Accuracy", "Precision", "Threshold")
    rows = []
    for label, values in ranked:
        rest = ("f1_weighted", "accuracy", "precision", "threshold")
        share = values["prevalence"]
        prevalence = "unknown" if share is None else f"{100 * share:.1f} %"
        cells = [escape(label), prevalence, _bar(values["auroc"])]
        rows.append(cells + [_number(values[name]) for name in rest])
    return _table(head, rows)


def _recall_table(retrieval: Mapping[str, Mapping[str, float]]) -> str:
    """Recall of reports, each way of counting a hit in its row."""
    rows = []
    for variant, title in RECALLS.items():
        values = retrieval[variant]
        pairs = [(values.get(f"recall@{k}"), values.get(f"chance@{k}")) for k in RECALL_K]
        rows.append([title, f"{values['pool']:,}", *(_beside_chance(*pair) for pair in pairs)])
    return _table(("Recall", "Pool", *(f"@{k}" for k in RECALL_K)), rows)


def _overlap_table(values: Mapping[str, float]) -> str:
    """Label overlap of neighboring volumes."""
    pairs = [(values.get(f"label_overlap@{k}"), values.get("chance")) for k in OVERLAP_K]
    row = ["Volume → volumes of other scans", f"{values['pool']:,}"]
    head = ("Label overlap", "Pool", *(f"@{k}" for k in OVERLAP_K))
    return _table(head, [row + [_beside_chance(*pair) for pair in pairs]])


def _example(example: Example) -> str:
    """One volume: slices, predicted against true labels, its report and the nearest one."""
    predicted = "".join(
        _chip(f"{label} {score:.2f}", "hit" if label in example.present else "miss")
        for label, score in example.predicted
    )
    present = "".join(_chip(label, "") for label in example.present) or "none"
    name, text = example.nearest
    return f"""<div class="panel"><h3>{escape(example.name)}</h3>
<img class="slices" alt="slices" src="{_data_uri(example.picture, "image/png")}">
<div class="pair"><div><h4>Predicted, most outstanding first</h4>{predicted}</div>
<div><h4>True labels</h4>{present}</div>
<div><h4>Nearest report, of {escape(name)}</h4><p>{escape(text)}</p></div>
<div><h4>Own report, number {example.own_rank:,} by distance</h4>
<p>{escape(example.report)}</p></div></div></div>"""


def _chip(text: str, kind: str) -> str:
    return f'<span class="chip {kind}">{escape(text)}</span>'


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A table of cells that are HTML already."""
    header = "".join(f"<th>{cell}</th>" for cell in head)
    body = "".join("<tr>" + "".join(f"<td>{cell}</td>" for cell in row) + "</tr>\n" for row in rows)
    return f"<table><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>"


def _number(value: float | None) -> str:
    """Three decimals; a dash for what is undefined."""
    return "–" if value is None else f"{value:.3f}"


def _bar(value: float | None) -> str:
    """A number between 0 and 1 after a bar of its length."""
    if value is None:
        return _number(value)
    return f'<span class="bar"><i style="width:{100 * value:.0f}%"></i></span>{_number(value)}'


def _beside_chance(value: float | None, chance: float | None) -> str:
    """A number and, small, its level of chance; a dash where K exceeds the pool."""
    return _number(value) if value is None else f"{_number(value)} <small>{_number(chance)}</small>"


def _data_uri(content: bytes, kind: str) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
