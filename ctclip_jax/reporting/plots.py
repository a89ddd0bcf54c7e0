"""Square panels of the report page: ROC, precision-recall, reliability and Recall@K as inline SVG.

Coordinates are in points, 1 pt being 1 unit of the SVG's view box; the page scales a panel to its
column. The same arguments give the same bytes.
"""

import io
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float, Integer
from markupsafe import Markup
from sklearn.metrics import precision_recall_curve, roc_curve

STYLESHEET = Path(__file__).parent / "static" / "report.css"
# The stylesheet is the only place of colors: plots use its variables, here without their dashes and
# with the values of its first rule, the light ones.
LIGHT_RULE = STYLESHEET.read_text(encoding="utf-8").partition("}")[0]
COLORS = dict(re.findall(r"--([a-z-]+): (#[0-9a-f]+);", LIGHT_RULE))

MAX_POINTS = 250  # of a curve: more are not visible at this size and make the page large
SIDE, LEFT, BOTTOM, EDGE = 100, 20, 14, 4  # pt: the frame, room for tick labels, for line widths
TEXT_SIZE = 9.2  # pt: 11 pixels where a panel is narrowest, 150 pixels (report.css)
GUIDE = {"color": COLORS["guide"], "linewidth": 0.7, "dashes": (3.6, 2.9), "clip_on": False}
CURVE = {"color": COLORS["accent"], "linewidth": 1.3, "clip_on": False}
INTERVAL = {**CURVE, "linewidth": 3.4, "alpha": 0.28, "solid_capstyle": "round"}
# Dots are drawn above lines (zorder 2) and are not cut at the frame.
DOTS = {"linewidths": 0, "clip_on": False, "zorder": 3}


def roc(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    predicted: Bool[np.ndarray, " n"] | None,
    note: str,
) -> Markup:
    """ROC curve of labels 0 and 1 with the area shaded and a dot at the operating point.

    `note` is written into the corner that the curve leaves empty.
    """
    false_positive_rate, true_positive_rate, _ = roc_curve(labels, scores)
    axes = _make_axes()
    axes.plot((0, 1), (0, 1), **GUIDE)
    _draw_area(axes, false_positive_rate, true_positive_rate)
    if predicted is not None:
        point = predicted[labels == 0].mean(), predicted[labels == 1].mean()
        axes.scatter(*point, s=5.2**2, color=COLORS["ink"], **DOTS)
    _write_note(axes, note, x=0.96, y=0.04)
    return _to_svg(axes, "ROC curve")


def precision_recall(
    labels: Integer[np.ndarray, " n"],
    scores: Float[np.ndarray, " n"],
    *,
    predicted: Bool[np.ndarray, " n"] | None,
    note: str,
) -> Markup:
    """Precision-recall curve with the prevalence (chance) dashed and a dot at the operating point.

    The dot is left out if no volume is predicted positive, since precision is undefined then.
    """
    precision, recall, _ = precision_recall_curve(labels, scores, drop_intermediate=True)
    axes = _make_axes()
    axes.plot((0, 1), [labels.mean()] * 2, **GUIDE)
    _draw_area(axes, recall[::-1], precision[::-1])
    if predicted is not None and predicted.any():
        point = predicted[labels == 1].mean(), labels[predicted].mean()
        axes.scatter(*point, s=5.2**2, color=COLORS["ink"], **DOTS)
    _write_note(axes, note, x=0.96, y=0.96)
    return _to_svg(axes, "Precision-recall curve")


def reliability(bins: Sequence[Mapping[str, float]], *, note: str) -> Markup:
    """Fraction of positives against mean score per bin; dot area grows with the bin's count.

    Args:
      bins: non-empty bins with keys "score", "positive" and "count", as in metrics.json.
    """
    score, positive, count = np.array([[b["score"], b["positive"], b["count"]] for b in bins]).T
    axes = _make_axes()
    axes.plot((0, 1), (0, 1), **GUIDE)
    axes.plot(score, positive, **CURVE)
    diameter = 2 + 6 * np.sqrt(count / count.max())
    axes.scatter(score, positive, s=diameter**2, color=COLORS["accent"], **DOTS)
    _write_note(axes, note, x=0.04, y=0.96)
    return _to_svg(axes, "Reliability curve")


def recall_at_k(estimates: Mapping[str, Mapping[str, Any]], *, top: float) -> Markup:
    """Recall@K against K, logarithmic, with bars for confidence intervals and chance dashed.

    Args:
      estimates: K -> estimate, as in metrics.json.
      top: recall at the upper edge of the frame, so that several panels share a scale.
    """
    ks = [int(k) for k in estimates]
    values = list(estimates.values())
    axes = _make_axes(top=top)
    axes.set_xscale("log")
    axes.set(xlim=(0.8 * min(ks), 1.25 * max(ks)))
    labeled = [k for k in ks if k in (1, 10, 100)] or ks[:1]  # there is no room for 50 beside 100
    axes.set_xticks(labeled, [str(k) for k in labeled])
    axes.set_xticks([], minor=True)
    if all(value.get("chance") is not None for value in values):
        axes.plot(ks, [value["chance"] for value in values], **GUIDE)
    axes.plot(ks, [value["value"] for value in values], **CURVE)
    for k, estimate in zip(ks, values, strict=True):
        if estimate.get("low") is not None and estimate.get("high") is not None:
            axes.plot((k, k), (estimate["low"], estimate["high"]), **INTERVAL)
    axes.scatter(ks, [v["value"] for v in values], s=4.4**2, color=COLORS["accent"], **DOTS)
    return _to_svg(axes, "Recall at K")


def _make_axes(*, top: float = 1.0):
    """Axes from 0 to 1 and from 0 to `top`, with tick labels at these ends only."""
    # Importing matplotlib takes about a second; programs that draw no page should not wait for it.
    from matplotlib.figure import Figure

    width, height = LEFT + SIDE + EDGE, BOTTOM + SIDE + EDGE
    figure = Figure(figsize=(width / 72, height / 72))
    axes = figure.add_axes((LEFT / width, BOTTOM / height, SIDE / width, SIDE / height))
    axes.set(xlim=(0, 1), ylim=(0, top))
    axes.set_xticks((0, 1), ("0", "1"))
    axes.set_yticks((0, top), ("0", f"{top:g}"))
    # Not drawn and without length, ticks only place their labels.
    axes.tick_params(bottom=False, left=False, length=0, pad=3.5)
    axes.tick_params(labelsize=TEXT_SIZE, labelcolor=COLORS["soft"])
    axes.spines[:].set(color=COLORS["line"], linewidth=1, zorder=1)  # below the curves
    return axes


def _draw_area(axes, x: np.ndarray, y: np.ndarray) -> None:
    """Draws a curve and shades the area below it."""
    x, y = thin(x, y)
    outline = [x[0], *x, x[-1]], [0, *y, 0]
    axes.fill(*outline, color=COLORS["accent"], alpha=0.09, linewidth=0, clip_on=False)
    axes.plot(x, y, **CURVE)


def thin(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most MAX_POINTS points of a curve, evenly spaced along it, both ends among them."""
    if len(x) <= MAX_POINTS:
        return x, y
    length = np.concatenate([[0], np.cumsum(np.abs(np.diff(x)) + np.abs(np.diff(y)))])
    points = np.unique(np.searchsorted(length, np.linspace(0, length[-1], MAX_POINTS)))
    return x[points], y[points]


def _write_note(axes, text: str, *, x: float, y: float) -> None:
    """Writes into the corner near (x, y)."""
    alignment = {"ha": "left" if x < 0.5 else "right", "va": "bottom" if y < 0.5 else "top"}
    # The stylesheet draws a halo around text of this class: matplotlib's own halo would turn
    # it into outlines.
    style = {"color": COLORS["accent"], "fontsize": TEXT_SIZE, "fontweight": "bold", "gid": "note"}
    axes.text(x, y, text, **style, **alignment)


def _to_svg(axes, title: str) -> Markup:
    """One <svg> element, without what would differ from run to run or clash on the page."""
    import matplotlib

    settings = {
        "svg.fonttype": "none",  # text stays text, in the page's font
        # Ids are hashes of content and salt. One salt per kind of plot: the page hides all kinds
        # but one, and not every browser follows a reference into what is hidden.
        "svg.hashsalt": title,
        "font.sans-serif": ["DejaVu Sans"],  # comes with matplotlib, so that layout never differs
    }
    buffer = io.StringIO()
    with matplotlib.rc_context(settings):
        metadata = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        axes.figure.savefig(buffer, format="svg", transparent=True, metadata=metadata)
    svg = buffer.getvalue()
    svg = svg[svg.index("<svg") :]
    # Groups are numbered from 1 in every panel; as classes they may repeat within a page.
    svg = re.sub(r'<g id="([a-z]+)[^"]*">', r'<g class="\1">', svg, flags=re.IGNORECASE)
    # Two decimals of path coordinates, which a space or a line break follows: half the size.
    svg = re.sub(r"(?<=\.\d\d)\d+(?=[ \n])", "", svg)
    for name, color in COLORS.items():  # so that they follow the page into the dark
        svg = svg.replace(color, f"var(--{name})")
    return Markup(svg.replace("<svg", f'<svg role="img" aria-label="{title}"', 1))
