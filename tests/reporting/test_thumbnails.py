"""Slices of a volume: what is where, how large the picture is."""

import io

import numpy as np
import pytest
from PIL import Image

from ctclip_jax.reporting import thumbnails


def read(volume, spacing):
    content = thumbnails.slices(volume, spacing=spacing)
    return content, np.asarray(Image.open(io.BytesIO(content))).astype(float)


def panels(picture, widths):
    starts = np.cumsum([0, *(width + thumbnails.GAP for width in widths)])
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


@pytest.mark.parametrize("dtype", [np.int16, np.float32])
def test_head_is_on_top_left_and_posterior_on_the_right(dtype):
    size = 20
    f, h, w = np.mgrid[:size, :size, :size] >= size * 0.8
    volume = np.full((size,) * 3, -1000, dtype)
    volume[h & w] = 200  # left and posterior
    volume[f & h] = 200  # head and left
    volume[f & w] = 200  # head and posterior
    _, picture = read(volume, (1.0, 1.0, 1.0))
    found = [brightest_corner(panel) for panel in panels(picture, [200, 200, 200])]
    assert found == ["bottom right", "top right", "top right"]


def test_proportions_are_those_of_the_body():
    _, picture = read(np.zeros((10, 40, 20), np.int16), (10.0, 2.0, 2.0))  # 100 x 80 x 40 mm
    widths = [400, 160, 80]
    assert picture.shape == (200, sum(widths) + 2 * thumbnails.GAP)
    flat = panels(picture, widths)
    assert all((panel > 100).all() for panel in flat)


def test_window_is_that_of_the_lung():
    for hu, gray in ((-2000, 0), (-1000, 0), (-400, 127.5), (200, 255), (3000, 255)):
        _, picture = read(np.full((8, 8, 8), hu, np.float32), (1.0, 1.0, 1.0))
        assert picture[100, 100] == pytest.approx(gray, abs=3)


def test_picture_is_small():
    noise = np.random.default_rng(0).normal(-400, 60, (60, 80, 80)).astype(np.int16)
    content, picture = read(noise, (1.5, 1.5, 1.5))
    assert picture.shape[0] == 200
    assert len(content) < 40_000


def test_single_frame_is_no_endless_strip():
    _, picture = read(np.zeros((1, 480, 480), np.int16), (1.5, 0.75, 0.75))
    assert picture.shape == (200, 200 + 2 * thumbnails.WIDEST + 2 * thumbnails.GAP)
