"""The tables of the page, as HTML, from the content of metrics.json."""

import re
from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ctclip_jax.reporting.markup import (
    Scale,
    cell,
    interval,
    number,
    ranged,
    scale_head,
    scale_of,
    stacked,
)
from ctclip_jax.reporting.published import CT_CLIP, Benchmark

Metrics = Mapping[str, Any]

COLUMNS = {  # of the table of labels: a metric -> its head; AUROC, with its interval, is apart
    "average_precision": "AP",
    "f1_weighted": "F1 weighted",
    "f1": "F1",
    "accuracy": "Accuracy",
    "precision": "Precision",
    "recall": "Recall",
    "specificity": "Specificity",
}
SEARCHES = {  # a way of searching -> its name, and what counts as a hit
    "report_to_volume": ("Report → volume", "the volume itself, among all volumes"),
    "report_to_any_reconstruction": ("Report → reconstruction", "any of its scan, among all"),
    "report_to_scan": ("Report → scan", "one volume and one report a scan"),
    "volume_to_report": ("Volume → report", "all volumes, one report a scan"),
    "scan_to_report": ("Scan → report", "one volume and one report a scan"),
}
NEIGHBORS = {
    "label_overlap": ("Label overlap", "mean Jaccard overlap; published as MAP"),
    "mean_average_precision": ("MAP", "a volume that shares a label is a hit"),
    "ndcg": ("nDCG", "gain: the overlap of labels"),
    "published_map": ("“MAP” as published", "running mean of overlaps, the query in the gallery"),
}
OWN = "This model"
STRATA = {"sex": "Sex", "age": "Age", "manufacturer": "Manufacturer", "kernel": "Kernel"}


def label_table(detection: Metrics) -> str:
    """A row a label, from best to worst AUROC, sorted anew by a click; then the means."""
    per_label = detection["per_label"]
    scale = scale_of(figures["auroc"] for figures in per_label.values())
    header = (
        f"{_sortable('Label', 0)}{_sortable('Positive', 1)}{_sortable('Prevalence', 2)}"
        f'{_sortable("AUROC", 3, order="descending")}<th class="ci">interval</th>'
        f"{scale_head(scale)}"
    )
    header += "".join(_sortable(head, 6 + i) for i, head in enumerate(COLUMNS.values()))
    header += _sortable("Threshold", 6 + len(COLUMNS))
    groups = (
        '<td colspan="3"></td><th colspan="4" scope="colgroup">Ranking</th>'
        f'<th colspan="{len(COLUMNS)}" scope="colgroup">At the threshold</th>'
    )
    ranked = sorted(per_label.items(), key=lambda item: -(item[1]["auroc"]["value"] or 0))
    rows = "".join(_label_row(label, figures, scale) for label, figures in ranked)
    means = _mean_row(detection["macro"], "", scale)
    if without := detection.get("macro_without_left_out"):
        means += _mean_row(without, f"without {', '.join(without['left_out'])}", scale)
    return (
        f'<table class="sortable labels"><thead><tr class="groups">{groups}</tr>'
        f"<tr>{header}</tr></thead>\n<tbody>{rows}</tbody>\n<tfoot>{means}</tfoot></table>"
    )


def _sortable(head: str, column: int, *, order: str = "none") -> str:
    return (
        f'<th scope="col" data-column="{column}" aria-sort="{order}">'
        f'<button type="button">{head}</button></th>'
    )


def _label_row(label: str, figures: Metrics, scale: Scale) -> str:
    known = figures["positive"] + figures["negative"]
    share = figures["prevalence"]
    counted = f"{figures['positive']:,} of {known:,} known, {figures['unknown']:,} unknown"
    cells = [
        cell(f"{figures['positive']:,}", figures["positive"], title=counted),
        cell("–" if share is None else f"{100 * share:.1f} %", share),
        ranged(figures["auroc"], scale),
        *(_metric_cell(figures[name]) for name in COLUMNS),
        _metric_cell({"value": figures["threshold"], "reason": "no threshold"}),
    ]
    return f'<tr><th scope="row">{escape(label)}</th>{"".join(cells)}</tr>\n'


def _mean_row(means: Metrics, without: str, scale: Scale) -> str:
    notes = [without] if without else []
    if (fitted := means["labels_at_threshold"]) != means["labels"]:
        notes.append(f"{fitted} of them at a threshold")
    told = "".join(f"<small>{escape(note)}</small>" for note in notes)
    cells = [ranged(means["auroc"], scale), *(_metric_cell(means[name]) for name in COLUMNS)]
    return (
        f'<tr><th scope="row" colspan="3">Mean of {means["labels"]} of {means["of"]} labels{told}'
        f"</th>{''.join(cells)}<td></td></tr>\n"
    )


def _metric_cell(figure: Metrics) -> str:
    return cell(number(figure), figure["value"], title=interval(figure))


def published_detection(detection: Metrics, benchmark: Benchmark) -> str:
    """The means of this model beside the published ones."""
    metrics = {"auroc": "AUROC", "f1_weighted": "F1 w.", "accuracy": "Acc.", "precision": "Prec."}
    given = {name for row in benchmark.detection.values() for name in row}
    shown = {name: head for name, head in metrics.items() if name in given}
    own = [number(detection.get("macro", {}).get(name)) for name in shown]
    rows = [(OWN, own)] + [
        (model, [f"{row[name]:.3f}" if name in row else "" for name in shown])
        for model, row in benchmark.detection.items()
    ]
    return _beside("Mean over labels", shown.values(), rows)


def published_recall(retrieval: Metrics, benchmark: Benchmark) -> str:
    """Recall@K of reports beside the published one, whose pool is not known: both are given."""
    names = {"report_to_volume": "volumes", "report_to_scan": "scans"}
    rows = []
    for search, what in names.items():
        if found := retrieval.get(search):
            values = [number(found["recall"].get(str(k))) for k in benchmark.recall]
            among = f"<small>of {found['pool']:,} {what}</small>"
            rows.append((OWN + among, values))
    if not rows:
        return ""
    rows.append((CT_CLIP, [f"{value:.3f}" for value in benchmark.recall.values()]))
    return _beside("Recall of reports", [f"@{k}" for k in benchmark.recall], rows)


def _beside(title: str, heads: Iterable[str], rows: Iterable[tuple[str, list[str]]]) -> str:
    header = "".join(map(_head, (title, *heads)))
    body = ""
    for name, values in rows:
        kind = "own" if name.startswith(OWN) else "theirs"
        cells = "".join(f"<td>{value}</td>" for value in values)
        body += f'<tr class="{kind}"><th scope="row">{name}</th>{cells}</tr>\n'
    return f'<table class="beside"><thead><tr>{header}</tr></thead><tbody>{body}</tbody></table>'


def strata_table(strata: Metrics) -> str:
    """AUROC and average precision of each part of the volumes."""
    every = [part for parts in strata.values() for part in parts.values()]
    metrics = {"auroc": "AUROC", "average_precision": "Average precision"}
    scales = {name: scale_of(part[name] for part in every) for name in metrics}
    body = ""
    for name, parts in strata.items():
        title = STRATA.get(name, name.replace("_", " ").capitalize())
        rows = []
        for value in sorted(parts, key=_natural):
            part = parts[value]
            counts = "".join(f"<td>{part[key]:,}</td>" for key in ("volumes", "patients", "labels"))
            drawn = "".join(ranged(part[metric], scale) for metric, scale in scales.items())
            rows.append(f'<th scope="row">{escape(value)}</th>{counts}{drawn}</tr>\n')
        first = f'<th scope="rowgroup" rowspan="{len(parts)}">{escape(title)}</th>'
        body += f"<tbody><tr>{first}{'<tr>'.join(rows)}</tbody>"
    heads = "".join(_head(head) for head in ("Stratum", "", "Volumes", "Patients", "Labels"))
    for metric, title in metrics.items():
        heads += f'{_head(title)}<th class="ci">interval</th>{scale_head(scales[metric])}'
    return _table("strata", heads, body)


def _natural(part: str) -> tuple:
    """Bands by their numbers, the one below them first, what is unknown last."""
    digits = re.search(r"\d+(?:\.\d+)?", part)
    start = float(digits[0]) if digits else 0.0
    return part == "unknown", not part.startswith("below "), start, part


def search_table(retrieval: Metrics) -> str:
    """A row a way of searching; empty if there is none."""
    shown = {name: retrieval[name] for name in SEARCHES if name in retrieval}
    ks = sorted({int(k) for found in shown.values() for k in found["recall"]})
    rank = any("median_rank" in found for found in shown.values())
    body = ""
    for name, found in shown.items():
        cells = [f"<td>{found['pool']:,}</td>"]
        cells += [f"<td>{stacked(_at(found['recall'], k))}</td>" for k in ks]
        if rank:
            cells.append(f"<td>{stacked(found['median_rank'], ',.0f')}</td>")
            cells.append(f"<td>{stacked(found['mean_reciprocal_rank'])}</td>")
        body += f"<tr>{_titled(*SEARCHES[name])}{''.join(cells)}</tr>\n"
    heads = ["Search", "Pool", *(f"Recall@{k}" for k in ks)]
    heads += ["Median rank", "MRR"] if rank else []
    return _table("searches", "".join(map(_head, heads)), f"<tbody>{body}</tbody>") if body else ""


def neighbor_table(found: Metrics) -> str:
    """How alike the labels of neighboring volumes are; empty if no K is small enough."""
    shown = {name: found[name] for name in NEIGHBORS if found.get(name)}
    ks = sorted({int(k) for values in shown.values() for k in values})
    body = "".join(
        f"<tr>{_titled(*NEIGHBORS[name])}"
        f"{''.join(f'<td>{stacked(_at(values, k))}</td>' for k in ks)}</tr>\n"
        for name, values in shown.items()
    )
    heads = ("Volume → volume", *(f"@{k}" for k in ks))
    return _table("searches", "".join(map(_head, heads)), f"<tbody>{body}</tbody>") if body else ""


def _at(figures: Metrics, k: int) -> Metrics:
    return figures.get(str(k), {"value": None, "reason": "no fewer than K to search among"})


def _titled(name: str, note: str) -> str:
    return f'<th scope="row">{name}<small>{note}</small></th>'


def _head(title: str) -> str:
    return f'<th scope="col">{title}</th>'


def _table(kind: str, heads: str, body: str) -> str:
    """`heads`, the cells of the head, and `body`, which holds its tbody elements, are HTML."""
    return f'<table class="{kind}"><thead><tr>{heads}</tr></thead>\n{body}</table>'
