"""Plots of the report page as inline SVG."""

import re

import numpy as np
import pytest

from ctclip_jax.reporting import plots

LABELS, SCORES = np.arange(9000) % 2, np.random.default_rng(0).random(9000)


def position(x: float, y: float) -> tuple[float, float]:
    """Where a point of the unit square is drawn, in units of the view box."""
    return plots.LEFT + plots.SIDE * x, plots.EDGE + plots.SIDE * (1 - y)


def polyline(svg: str, color: str) -> list[tuple[float, float]]:
    path = re.search(rf'd="([^"]*)" style="fill: none; stroke: var\(--{color}\)', svg)[1]
    return [tuple(map(float, point.split())) for point in re.findall(r"[ML] ([\d. ]+)", path)]


def test_roc_is_thinned_and_has_an_operating_point():
    svg = plots.roc(LABELS, SCORES, predicted=SCORES > 0.5, note="0.5")
    curve = polyline(svg, "accent")
    assert len(curve) <= plots.MAX_POINTS
    assert (curve[0], curve[-1]) == (position(0, 0), position(1, 1))
    (dot,) = re.findall(r'<use [^>]*x="([\d.]+)" y="([\d.]+)"', svg)
    assert tuple(map(float, dot)) == pytest.approx(position(0.5, 0.5), abs=2)


def test_precision_recall_has_the_prevalence_as_guide():
    svg = plots.precision_recall(LABELS, SCORES, predicted=SCORES > 2, note="0.5")
    guide = re.search(r'd="([^"]*)" style="fill: none; stroke-dasharray', svg)[1]
    assert guide.split("\n")[0] == "M {:g} {:g} ".format(*position(0, 0.5))
    assert "<use" not in svg, "no operating point without a positive prediction"


def test_dots_of_a_reliability_curve_grow_with_the_count():
    bins = [{"score": x, "positive": x, "count": n} for x, n in ((0.2, 4), (0.7, 100))]
    svg = plots.reliability(bins, note="ECE 0.1")
    assert polyline(svg, "accent") == [position(0.2, 0.2), position(0.7, 0.7)]
    dots = re.findall(r'<path d="([^"]*)" style="fill: var', svg.partition("PathCollection")[2])
    widths = [np.ptp([float(x) for x in re.findall(r"[\d.]+", dot)[::2]]) for dot in dots]
    assert widths == pytest.approx([2 + 6 * 0.2, 2 + 6], abs=0.1)


@pytest.mark.parametrize("has_chance", [True, False])
def test_recall_has_intervals_and_chance_if_there_are_any(has_chance):
    estimates = {
        "1": {"value": 0.2, "low": 0.1, "high": 0.3},
        "10": {"value": 0.4, "low": None, "high": None},
    }
    for estimate in estimates.values():
        estimate |= {"chance": 0.05} if has_chance else {}
    svg = plots.recall_at_k(estimates, top=0.5)
    assert svg.count("opacity: 0.28") == 1
    assert ("stroke-dasharray" in svg) == has_chance
    assert re.findall(r">([\d.]+)</text>", svg) == ["1", "10", "0", "0.5"]


def test_svg_is_deterministic_and_fits_into_a_page():
    first, second = (
        plots.roc(LABELS, SCORES, predicted=SCORES > 0.5, note="0.5") for _ in range(2)
    )
    assert first == second
    assert first.startswith('<svg role="img" aria-label="ROC curve"')
    assert not re.search(r"<\?xml|<!DOCTYPE|<metadata|<g id=|url\(", first)


def test_colors_are_those_of_the_stylesheet():
    assert {"accent", "guide", "ink", "line", "soft"} <= plots.COLORS.keys()
    svg = plots.roc(LABELS, SCORES, predicted=SCORES > 0.5, note="0.5")
    assert set(re.findall(r"var\(--(.*?)\)", svg)) == {"accent", "guide", "ink", "line", "soft"}
    assert not re.search("#[0-9a-f]{6}", svg), "a color that does not follow the page into the dark"
