"""The top of the page: what was evaluated, the headline figures, the published ones beside."""

import json
from collections.abc import Mapping
from html import escape
from typing import Any

from ctclip_jax.reporting import tables
from ctclip_jax.reporting.markup import interval, number
from ctclip_jax.reporting.published import CAVEAT, benchmark

Metrics = Mapping[str, Any]

HASH_SHOWN = 12  # digits

PROTOCOLS = {
    "sound": "sound",
    "published": "published: faults included, to compare with published figures only",
}


def header(metrics: Metrics) -> str:
    """Title, counts, source, protocol, and what a reader should know of the input."""
    volumes, scans, patients = (
        f"{metrics[what]:,} {what if metrics[what] != 1 else what[:-1]}"
        for what in ("volumes", "scans", "patients")
    )
    facts = {name: _told(name, value) for name, value in metrics["source"].items()}
    facts["protocol"] = PROTOCOLS.get(metrics["protocol"], metrics["protocol"])
    if "thresholds" in metrics["detection"]:
        facts["thresholds"] = metrics["detection"]["thresholds"]
    facts["intervals"] = _intervals(metrics.get("intervals"))
    rows = "".join(
        f"<div><dt>{escape(name.replace('_', ' ').capitalize())}</dt><dd>{escape(told)}</dd></div>"
        for name, told in facts.items()
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in metrics["notes"])
    return f"""<header><h1>CT-CLIP evaluation</h1>
<p class="counts">{volumes} of {scans}, {patients}; {len(metrics["labels"])} labels</p>
<dl>{rows}</dl>{f'<ul class="notes">{notes}</ul>' if notes else ""}</header>
"""


def _told(name: str, value: Any) -> str:
    if name == "prompts":
        return "; ".join(" / ".join(f"“{prompt}”" for prompt in pair) for pair in value)
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    return text[:HASH_SHOWN] if name.endswith("_sha256") else text


def _intervals(made: Metrics | None) -> str:
    if not made or not made["resamples"]:
        return "none"
    return (
        f"{100 * made['level']:g} % {made['by']}, {made['resamples']:,} resamples, "
        f"seed {made['seed']}"
    )


def headline(metrics: Metrics) -> str:
    """Cards of the headline figures and, where there are some, the published ones beside them."""
    body = f'<div class="cards">{"".join(_cards(metrics))}</div>'
    matching = benchmark(metrics["labels"])
    if matching is None:
        return f'<div class="overview">{body}</div>'
    beside = tables.published_detection(metrics["detection"], matching)
    if matching.recall:
        beside += tables.published_recall(metrics["retrieval"], matching)
    return (
        f'<div class="overview split">{body}<div class="panel published">'
        f"<h3>Published for {escape(matching.name)}</h3>{beside}"
        f'<p class="soft">{CAVEAT}</p></div></div>'
    )


def _cards(metrics: Metrics) -> list[str]:
    detection, retrieval = metrics["detection"], metrics["retrieval"]
    means = detection.get("macro", {})
    counted = f"mean of {means['labels']} of {means['of']} labels" if means else ""
    recall = retrieval.get("report_to_volume", {}).get("recall", {})
    cards = [
        _card(title, means[name], counted)
        for name, title in (
            ("auroc", "AUROC"),
            ("average_precision", "Average precision"),
            ("f1_weighted", "F1 weighted"),
            ("accuracy", "Accuracy"),
        )
        if means
    ]
    return cards + [
        _card(f"Recall@{k}", recall[str(k)], "report → volume") for k in (5, 50) if str(k) in recall
    ]


def _card(title: str, figure: Metrics, note: str) -> str:
    beside = [f'<small class="ci">{interval(figure)}</small>'] if interval(figure) else []
    if figure.get("chance") is not None:
        note += f"<br>chance {figure['chance']:.3f}"
    if figure.get("value") is None:
        note = escape(figure.get("reason", ""))
    return (
        f'<div class="card"><span>{title}</span><p><b>{number(figure)}</b>{"".join(beside)}</p>'
        f"<small>{note}</small></div>"
    )
