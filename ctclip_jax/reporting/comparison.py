"""Two models side by side: the page, and the lines on the terminal."""

from collections.abc import Iterable, Mapping
from html import escape
from typing import Any

from ctclip_jax.reporting.markup import cell, document, interval, number, section
from ctclip_jax.reporting.tables import COLUMNS

Comparison = Mapping[str, Any]

METRICS = {"auroc": "AUROC", **COLUMNS}
SIGNED = "+.3f"


def rows_of(comparison: Comparison) -> Iterable[tuple[str, str, Mapping[str, Any]]]:
    """Group, name and difference of everything that is compared."""
    detection = comparison.get("detection", {})
    for name, title in METRICS.items():
        if name in detection.get("macro", {}):
            yield "Means over labels", title, detection["macro"][name]
    retrieval = comparison.get("retrieval", {})
    search = retrieval.get("report_to_volume", {})
    for k, found in search.get("recall", {}).items():
        yield "Report → volume", f"Recall@{k}", found
    if search:
        yield "Report → volume", "MRR", search["mean_reciprocal_rank"]
    for k, found in retrieval.get("volume_to_volume", {}).get("label_overlap", {}).items():
        yield "Volume → volume", f"Label overlap@{k}", found
    for label, row in detection.get("per_label", {}).items():
        yield "AUROC by label", label, row["auroc"]


def lines(comparison: Comparison) -> Iterable[str]:
    """A line a difference: A, B, B - A, its interval, its p."""
    for side, folder in zip("AB", comparison.get("folders", ()), strict=False):
        yield f"{side}: {folder}"
    yield (
        f"{comparison['volumes']:,} volumes of {comparison['patients']:,} patients; p is of the"
        " bootstrap, by label DeLong's, adjusted by Holm"
    )
    yield f"{'':36}{'A':>8}{'B':>8}{'B - A':>9}   interval          p"
    group = ""
    for part, name, found in rows_of(comparison):
        if part != group:
            group = part
            yield group
        if found["value"] is None:
            yield f"  {name:34}  {found['reason']}"
        else:
            yield (
                f"  {name:34}{found['a']:8.3f}{found['b']:8.3f}{found['value']:+9.3f}"
                f"   {_interval(found):16}  {_p(found)}"
            )


def page(comparison: Comparison) -> str:
    """The page as one HTML file that needs no other, from the content of comparison.json."""
    folders = comparison.get("folders", ("", ""))
    sources = "<br>".join(
        f"{side.upper()}: {escape(folder)}, {_source(comparison[side])}"
        for side, folder in zip(("a", "b"), folders, strict=True)
    )
    notes = "".join(f"<li>{escape(note)}</li>" for note in comparison["notes"])
    made = comparison["intervals"]
    head = (
        f"<h1>Two models, the same volumes</h1>\n"
        f'<p class="facts">{sources}<br>{comparison["volumes"]:,} volumes of'
        f" {comparison['patients']:,} patients; {100 * made['level']:g} % intervals from"
        f" {made['resamples']:,} resamples of patients, both models together</p>"
        f"<ul>{notes}</ul>"
    )
    groups: dict[str, str] = {}
    for group, name, found in rows_of(comparison):
        groups[group] = groups.get(group, "") + _row(name, found)
    about = {
        "Means over labels": "Each model has its own thresholds, cross-fitted over the same folds.",
        "Report → volume": "Share of reports whose own volume is among the K nearest.",
        "Volume → volume": "Mean Jaccard overlap with the labels of the K nearest volumes.",
        "AUROC by label": "p is DeLong's, adjusted for the number of labels by Holm's method.",
    }
    heads = "".join(f"<th>{name}</th>" for name in ("", "A", "B", "B − A", "interval", "p"))
    body = "".join(
        section(
            f"part-{index}",
            group,
            about=about[group],
            body=f'<div class="panel wide"><table><thead><tr>{heads}</tr></thead>'
            f"<tbody>{rows}</tbody></table></div>",
        )
        for index, (group, rows) in enumerate(groups.items())
    )
    return document("Comparison of two models", f"{head}\n{body}")


def _source(source: Mapping[str, Any]) -> str:
    """The model and its prompts, as far as they are known."""
    known = [str(source[name]) for name in ("model", "scores", "prompts") if source.get(name)]
    return escape("; ".join(known) or "scores of unknown origin")


def _row(name: str, found: Mapping[str, Any]) -> str:
    sides = [{"value": found.get(side), "reason": found.get("reason", "")} for side in ("a", "b")]
    cells = [cell(number(side)) for side in sides]
    cells += [cell(f"<b>{number(found, SIGNED)}</b>"), cell(_interval(found))]
    return f"<tr><td>{escape(name)}</td>{''.join(cells)}{cell(_p(found))}</tr>\n"


def _interval(found: Mapping[str, Any]) -> str:
    return interval(found, SIGNED).replace("–", " to ")  # a dash would be read as a minus


def _p(found: Mapping[str, Any]) -> str:
    """The p of a difference: adjusted where there is one for every label."""
    value = found.get("p_holm") if "p_holm" in found else found.get("p_bootstrap")
    if value is None:
        return "–"
    return f"{value:.3f}" if value >= 0.001 else f"{value:.0e}"
