"""Small curves as inline SVG: square panels that take their colors and type from the page.

Every function returns one SVG element; the same arguments give the same bytes.
"""

from collections.abc import Mapping, Sequence
from html import escape
from math import log10
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from sklearn.metrics import precision_recall_curve, roc_curve

POINTS = 250  # of a curve, at most
SIZE, LEFT, BELOW = 100, 16, 12  # of a panel and of the space for its ticks, in SVG units

Ticks = Sequence[tuple[float, str]]
UNIT: Ticks = ((0, "0"), (1, "1"))


def roc(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    predicted: Bool[np.ndarray, " n"] | None,
    note: str,
) -> str:
    """The ROC curve of labels 0 and 1 with its area shaded and a dot at the operating point.

    `note` is written into the corner that is empty."""
    false_positive, true_positive, _ = roc_curve(labels, scores)
    x, y = _thin(false_positive, true_positive)
    drawn = [_line((0, 1), (0, 1), "guide"), _area(x, y), _line(x, y, "curve")]
    if predicted is not None:
        drawn.append(_dot(predicted[labels == 0].mean(), predicted[labels == 1].mean(), 2.6))
    return _panel("ROC curve", [*drawn, _note(note, 96, 93, "end")], x=UNIT, y=UNIT)


def precision_recall(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    predicted: Bool[np.ndarray, " n"] | None,
    note: str,
) -> str:
    """The precision-recall curve, the prevalence as its level of chance, the operating point."""
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    x, y = _thin(recall[::-1], precision[::-1])
    drawn = [_line((0, 1), [labels.mean()] * 2, "guide"), _area(x, y), _line(x, y, "curve")]
    if predicted is not None and predicted.any():
        drawn.append(_dot(predicted[labels == 1].mean(), labels[predicted].mean(), 2.6))
    return _panel("Precision-recall curve", [*drawn, _note(note, 96, 11, "end")], x=UNIT, y=UNIT)


def reliability(curve: Sequence[Mapping[str, float]], *, note: str) -> str:
    """Share of positive volumes against mean score; the area of a dot is its bin's volumes."""
    x, y = [[bin[key] for bin in curve] for key in ("score", "positive")]
    most = max(bin["count"] for bin in curve)
    dots = [_dot(b["score"], b["positive"], 1 + 3 * (b["count"] / most) ** 0.5) for b in curve]
    drawn = [_line((0, 1), (0, 1), "guide"), _line(x, y, "curve"), *dots]
    return _panel("Reliability curve", [*drawn, _note(note, 4, 11, "start")], x=UNIT, y=UNIT)


def recall(figures: Mapping[str, Mapping[str, Any]], *, top: float) -> str:
    """Recall@K over K on a logarithmic axis, bars for intervals, chance dashed.

    `top` is the recall at the upper edge, so that several panels share a scale.
    """
    ks = [int(k) for k in figures]
    first, last = log10(min(ks) * 0.8), log10(max(ks) * 1.25)
    place = {k: (log10(k) - first) / (last - first) for k in ks}
    drawn = []
    chances = [figures[str(k)].get("chance") for k in ks]
    if None not in chances:
        drawn.append(_line(place.values(), [c / top for c in chances], "guide"))
    values = [figures[str(k)]["value"] / top for k in ks]
    drawn.append(_line(place.values(), values, "curve"))
    for k, value in zip(ks, values, strict=True):
        low, high = figures[str(k)].get("low"), figures[str(k)].get("high")
        if low is not None and high is not None:
            drawn.append(_line([place[k]] * 2, (low / top, high / top), "bar"))
        drawn.append(_dot(place[k], value, 2.2))
    ticks = [(place[k], str(k)) for k in ks]
    return _panel("Recall at K", drawn, x=ticks, y=((0, "0"), (1, f"{top:g}")))


def _thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most POINTS of a curve, evenly spaced along it, with both of its ends."""
    if len(x) <= POINTS:
        return x, y
    along = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    kept = np.unique(np.searchsorted(along, np.linspace(0, along[-1], POINTS)))
    return x[kept], y[kept]


def _points(x, y) -> str:
    pairs = zip(x, y, strict=True)
    return " ".join(f"{SIZE * a:.1f},{SIZE * (1 - b):.1f}" for a, b in pairs)


def _line(x, y, kind: str) -> str:
    return f'<polyline class="{kind}" points="{_points(x, y)}"/>'


def _area(x, y) -> str:
    x, y = [x[0], *x, x[-1]], [0, *y, 0]
    return f'<polygon class="area" points="{_points(x, y)}"/>'


def _dot(x: float, y: float, radius: float) -> str:
    return f'<circle cx="{SIZE * x:.1f}" cy="{SIZE * (1 - y):.1f}" r="{radius:.1f}"/>'


def _note(text: str, x: float, y: float, anchor: str) -> str:
    return f'<text class="value" x="{x}" y="{y}" text-anchor="{anchor}">{escape(text)}</text>'


def _panel(title: str, drawn: Sequence[str], *, x: Ticks, y: Ticks) -> str:
    """A frame around what is drawn, with ticks where `x` and `y` say, in [0, 1]."""
    across = "".join(
        f'<text x="{SIZE * place:.1f}" y="{SIZE + 9}" text-anchor="middle">{text}</text>'
        for place, text in x
    )
    up = "".join(
        f'<text x="-4" y="{SIZE * (1 - place) + 2.5:.1f}" text-anchor="end">{text}</text>'
        for place, text in y
    )
    box = f"{-LEFT} -4 {LEFT + SIZE + 4} {4 + SIZE + BELOW}"
    frame = f'<rect class="frame" width="{SIZE}" height="{SIZE}"/>'
    return (
        f'<svg role="img" aria-label="{title}" viewBox="{box}">'
        f"{frame}{''.join(drawn)}{across}{up}</svg>"
    )
