"""The HTML page a person reads: what was evaluated, how well it works, and a few volumes."""

from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from jaxtyping import Float

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.reporting import curves, gallery, overview, tables
from ctclip_jax.reporting.examples import Case, Retrieval
from ctclip_jax.reporting.markup import document, section

Metrics = Mapping[str, Any]


def page(
    metrics: Metrics,
    study: EvalSet,
    *,
    predictions: Predictions | None = None,
    latent_map: Float[np.ndarray, "n 2"] | None = None,
    cases: Sequence[Case] = (),
    retrievals: Sequence[Retrieval] = (),
    pictures: Mapping[int, bytes] | None = None,
) -> str:
    """The page as one HTML file that needs no other. What is not given is left out.

    Args:
      metrics: the content of metrics.json, of `study`.
      predictions: of `study.scores`, for operating points and cases.
      latent_map: of `latent_map.latent_map`.
      cases, retrievals: of `examples.confident` and `examples.spread`.
      pictures: row of the study -> a JPEG of `pictures.slices`.
    """
    pictures = pictures or {}
    sections = {
        "labels": ("Labels", _labels(metrics)),
        "curves": ("Curves", _curves(metrics, study, predictions)),
        "strata": ("Strata", _strata(metrics)),
        "retrieval": ("Retrieval", _retrieval(metrics)),
        "map-of-latents": ("Map", _map(metrics, study, latent_map)),
        "cases": ("Cases", _cases(study, predictions, cases, pictures)),
        "examples": ("Retrieved volumes", _examples(study, retrievals, pictures)),
    }
    links = "".join(
        f'<a href="#{name}">{title}</a>' for name, (title, content) in sections.items() if content
    )
    body = "".join(content for _, content in sections.values())
    top = overview.header(metrics) + overview.headline(metrics)
    return document("CT-CLIP evaluation", f"<nav>{links}</nav>\n{top}\n{body}")


def _labels(metrics: Metrics) -> str:
    detection = metrics["detection"]
    if "per_label" not in detection:
        about = f"There are no figures: {escape(detection['reason'])}."
        return section("labels", "Detection of labels", about=about, body="")
    pointed = "at a dash for its reason"
    if metrics.get("intervals"):
        pointed = f"at a number for its interval, {pointed}"
    about = (
        "Means are over the labels that have both classes. Click a heading to sort; point "
        f"{pointed}."
    )
    body = f'<div class="panel wide">{tables.label_table(detection)}</div>'
    return section("labels", "Detection of labels", about=about, body=body)


def _curves(metrics: Metrics, study: EvalSet, predictions: Predictions | None) -> str:
    if "per_label" not in metrics["detection"] or study.scores is None:
        return ""
    body = curves.label_curves(metrics, study, predictions)
    return section("curves", "Curves", about="One panel for each label.", body=body)


def _strata(metrics: Metrics) -> str:
    if not (strata := metrics.get("strata")):
        return ""
    about = (
        "Means over the labels that a part of the volumes can measure. Their number stands beside; "
        "means over other labels are no comparison."
    )
    body = f'<div class="panel wide">{tables.strata_table(strata)}</div>'
    return section("strata", "Strata", about=about, body=body)


def _retrieval(metrics: Metrics) -> str:
    retrieval = metrics["retrieval"]
    if "reason" in retrieval:
        about = f"There are no figures: {escape(retrieval['reason'])}."
        return section("retrieval", "Retrieval", about=about, body="")
    parts = (
        curves.recall_curves(retrieval),
        tables.search_table(retrieval),
        tables.neighbor_table(retrieval["volume_to_volume"]),
    )
    body = "".join(f'<div class="panel wide">{part}</div>\n' for part in parts if part)
    about = (
        "Recall@K is the share of queries that find their item among the K nearest. The "
        "reconstructions of a scan share its report, so there are several ways to count. "
        "Volumes are compared with those of other scans."
    )
    if metrics["protocol"] == "published":
        about = "As published: report i is that of volume i, and a volume is in its own gallery."
    return section("retrieval", "Retrieval", about=about, body=body)


def _map(metrics: Metrics, study: EvalSet, latent_map: Float[np.ndarray, "n 2"] | None) -> str:
    if latent_map is None:
        return ""
    about = (
        "t-SNE of the volumes' latents. Neighbors are alike; the size of a group and the distance "
        "between two say little."
    )
    per_label = metrics["detection"].get("per_label", {})
    aurocs = [per_label.get(n, {}).get("auroc", {}).get("value") or 0 for n in study.label_names]
    body = gallery.map_panel(study, latent_map, first=int(np.argmax(aurocs)))
    return section("map-of-latents", "Map of latents", about=about, body=body)


def _cases(study: EvalSet, predictions, cases: Iterable[Case], pictures: gallery.Pictures) -> str:
    if not cases or predictions is None:
        return ""
    about = (
        "For each label the volumes that the model is most sure of, rightly or not. Slices are "
        "axial, coronal and sagittal in the lung window, the patient's left on the right."
    )
    body = gallery.case_list(study, predictions, cases, pictures)
    return section("cases", "Most confident cases", about=about, body=body)


def _examples(study: EvalSet, retrievals: Iterable[Retrieval], pictures: gallery.Pictures) -> str:
    if not retrievals:
        return ""
    about = (
        "Reports spread evenly over the scans, not chosen by how well they do, and the three "
        "volumes nearest to each. Labels that the report's volume has too are dark."
    )
    body = gallery.retrieval_list(study, retrievals, pictures)
    return section("examples", "Volumes found by a report", about=about, body=body)
