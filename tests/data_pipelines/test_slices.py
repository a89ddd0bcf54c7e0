"""Slices of a volume: orientation, proportions, window, size of the thumbnail."""

import io

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from data_pipelines import slices
from data_pipelines.resample import STEPS_PER_HU

STEPS = np.int16(STEPS_PER_HU)
MM = (1.0, 1.0, 1.0)


def pixels(volume, spacing=MM):
    content = slices.thumbnail(volume, spacing=spacing)
    return np.asarray(Image.open(io.BytesIO(content))).astype(float)


def panels(picture, widths):
    starts = np.cumsum([0, *(width + slices.GAP for width in widths)])
    return [picture[:, a : a + width] for a, width in zip(starts, widths, strict=False)]


def brightest_corner(panel):
    y, x = (n // 4 for n in panel.shape)
    corners = {
        "top left": panel[:y, :x],
        "top right": panel[:y, -x:],
        "bottom left": panel[-y:, :x],
        "bottom right": panel[-y:, -x:],
    }
    return max(corners, key=lambda name: corners[name].mean())


def test_head_is_up_left_and_posterior_are_on_the_right():
    size = 20
    f, h, w = np.mgrid[:size, :size, :size] >= size * 0.8
    volume = np.full((size,) * 3, -1000, np.int16)
    volume[h & w] = 200  # left and posterior
    volume[f & h] = 200  # head and left
    volume[f & w] = 200  # head and posterior
    corners = [brightest_corner(panel) for panel in panels(pixels(volume * STEPS), [200, 200, 200])]
    assert corners == ["bottom right", "top right", "top right"]


def test_thumbnail_keeps_the_proportions_of_the_body():
    picture = pixels(np.zeros((10, 40, 20), np.int16), (10.0, 2.0, 2.0))  # 100 x 80 x 40 mm
    widths = [400, 160, 80]
    assert picture.shape == (200, sum(widths) + 2 * slices.GAP)
    assert all((panel > 100).all() for panel in panels(picture, widths))


def test_thumbnail_is_in_the_lung_window():
    for hu, gray in ((-2000, 0), (-1000, 0), (-400, 127.5), (200, 255), (2000, 255)):
        picture = pixels(np.full((8, 8, 8), hu, np.int16) * STEPS)
        assert picture[100, 100] == pytest.approx(gray, abs=3)


def test_thumbnail_is_small():
    noise = np.random.default_rng(0).normal(-400, 60, (60, 80, 80)) * STEPS_PER_HU
    content = slices.thumbnail(noise.astype(np.int16), spacing=(1.5, 1.5, 1.5))
    assert len(content) < 40_000


def test_single_frame_is_not_stretched_without_limit():
    picture = pixels(np.zeros((1, 480, 480), np.int16), (1.5, 0.75, 0.75))
    assert picture.shape == (200, 200 + 2 * slices.MAX_WIDTH + 2 * slices.GAP)


@pytest.mark.parametrize(
    ("plane", "expected", "extent"),
    [
        ("axial", [[0, 3], [1, 4], [2, 5]], (0, 2 * 4, 3 * 5, 0)),
        ("sagittal", [[9, 10, 11], [3, 4, 5]], (0, 3 * 5, 2 * 3, 0)),
        ("coronal", [[7, 10], [1, 4]], (0, 2 * 4, 2 * 3, 0)),
    ],
)
def test_slice_is_in_hu_and_mm(plane, expected, extent):
    volume = np.arange(12, dtype=np.int16).reshape(2, 2, 3) * STEPS
    index = {"axial": 0, "sagittal": None, "coronal": None}[plane]
    section = slices.cut(volume, plane, spacing=(3, 4, 5), index=index)
    np.testing.assert_array_equal(section.hu, expected)
    assert section.extent == extent
    axes = Figure().subplots()
    section.draw(axes, window=(-1000, 200))
    assert axes.images[0].get_clim() == (-1000, 200)
    assert tuple(axes.images[0].get_extent()) == extent
