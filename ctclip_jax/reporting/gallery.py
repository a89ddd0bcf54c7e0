"""Volumes that the page shows one by one, and the map of all of them, as HTML."""

import textwrap
from collections.abc import Collection, Iterable, Mapping
from html import escape
from itertools import groupby

import numpy as np
from jaxtyping import Float

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.reporting.examples import (
    FALSE_NEGATIVE,
    FALSE_POSITIVE,
    TRUE_POSITIVE,
    Case,
    Retrieval,
)
from ctclip_jax.reporting.markup import chip, data_script, picture

EXCERPT = 320  # characters of a report
KINDS = {
    TRUE_POSITIVE: ("True positive", "highest score", "good"),
    FALSE_POSITIVE: ("False positive", "highest score", "bad"),
    FALSE_NEGATIVE: ("False negative", "lowest score", "bad"),
}
STATES = {1: "1", 0: "0"}  # of a label in the data of the map; else "?"

Pictures = Mapping[int, bytes]


def case_list(
    study: EvalSet, predictions: Predictions, cases: Iterable[Case], pictures: Pictures
) -> str:
    """A closed element a label, with its cases."""
    parts = []
    for label, group in groupby(cases, key=lambda case: case.label):
        truth = study.labels[:, study.label_names.index(label)]
        told = f"{(truth == 1).sum():,} of {(truth >= 0).sum():,} positive"
        body = "".join(_case(study, predictions, case, pictures) for case in group)
        parts.append(
            f"<details><summary><span>{escape(label)}</span><small>{told}</small></summary>"
            f'<div class="trio">{body}</div></details>\n'
        )
    return f'<div class="cases">{"".join(parts)}</div>'


def _case(study: EvalSet, predictions: Predictions, case: Case, pictures: Pictures) -> str:
    column = study.label_names.index(case.label)
    title, which, kind = KINDS[case.kind]
    score, threshold = study.scores[case.row, column], predictions.thresholds[case.row, column]
    return f"""<article><h4>{chip(title, kind)}<small>{which}</small></h4>
{_volume(study, case.row, pictures)}
<p class="score"><span class="range"><i style="left:0;width:{100 * score:.1f}%"></i>
<b style="left:{100 * threshold:.1f}%"></b></span>score {score:.3f}, threshold {threshold:.3f}</p>
{_labels(study, case.row, marked=(column,))}
<p class="excerpt">{excerpt(study.reports[case.row])}</p></article>
"""


def retrieval_list(study: EvalSet, retrievals: Iterable[Retrieval], pictures: Pictures) -> str:
    """A panel a report, with the volumes nearest to it."""
    return "".join(_retrieval(study, each, pictures) for each in retrievals)


def _retrieval(study: EvalSet, found: Retrieval, pictures: Pictures) -> str:
    shared = np.flatnonzero(study.labels[found.row] == 1).tolist()
    results = []
    for place, row in enumerate(found.nearest, 1):
        verdict = chip("another scan")
        if row == found.row:
            verdict = chip("its own volume", "good")
        elif study.scans[row] == study.scans[found.row]:
            verdict = chip("another reconstruction of its scan", "good")
        results.append(
            f'<article><h4><span class="place">{place}</span>{verdict}</h4>'
            f"{_volume(study, row, pictures)}{_labels(study, row, marked=shared)}</article>"
        )
    return f"""<div class="panel"><div class="asked"><div>
<p class="name">Report of {escape(str(study.names[found.row]))}</p>
<p class="rank">Its own volume has rank <b>{found.rank:,}</b> of {len(study.names):,}.</p></div>
<div><p class="excerpt">{excerpt(study.reports[found.row])}</p>
{_labels(study, found.row)}</div></div>
<div class="trio">{"".join(results)}</div></div>
"""


def _volume(study: EvalSet, row: int, pictures: Pictures) -> str:
    name = str(study.names[row])
    shown = picture(pictures.get(row), alt=f"Axial, coronal and sagittal slices of {name}")
    return f'{shown}<p class="name">{escape(name)}</p>'


def _labels(study: EvalSet, row: int, *, marked: Collection[int] = ()) -> str:
    """The labels that the volume has; the columns `marked` stand out."""
    chips = [
        chip(study.label_names[column], "marked" if column in marked else "")
        for column in np.flatnonzero(study.labels[row] == 1)
    ]
    return f'<p class="chips">{"".join(chips) or "no label"}</p>'


def excerpt(report: str) -> str:
    """The beginning of a report, escaped."""
    if not report.strip():
        return '<span class="none">no report</span>'
    return escape(textwrap.shorten(str(report), EXCERPT, placeholder=" …"))


def map_panel(study: EvalSet, places: Float[np.ndarray, "n 2"], *, first: int) -> str:
    """A canvas with a point a volume, which a script draws, colored by a label that is chosen: at
    first by that of the column `first`."""
    laid = np.isfinite(places).all(axis=1)
    options = "".join(
        f'<option value="{i}"{" selected" if i == first else ""}>{escape(label)}</option>'
        for i, label in enumerate(study.label_names)
    )
    columns = study.labels[laid].T.tolist()
    data = {
        "places": np.round(places[laid], 4).tolist(),
        "names": study.names[laid].tolist(),
        "labels": ["".join(STATES.get(value, "?") for value in column) for column in columns],
    }
    shown = f"{laid.sum():,}" + ("" if laid.all() else f" of {len(laid):,}")
    return f"""<div class="panel map"><div><label for="map-label">Color by label</label>
<select id="map-label">{options}</select>
<ul class="legend"><li class="positive">positive</li><li class="negative">negative</li>
<li class="unknown">unknown</li></ul>
<p class="soft">{shown} volumes. Point at one for its name.</p>
<noscript><p>The map is drawn by a script, and scripts are off.</p></noscript></div>
<div class="canvas"><canvas id="map" role="img" aria-label="Map of the volumes"></canvas>
<div class="tip" hidden></div></div></div>
{data_script("map-data", data)}"""
