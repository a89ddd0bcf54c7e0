"""Slices of prepared volumes: radiological orientation, true proportions, thumbnails.

Volumes are int16 (f, h, w) in steps of 1/16 HU, as `shards.read` returns them; f runs toward the
head, h toward the patient's Left, w toward Posterior. In a slice the left of the patient is on the
right, anterior or the head is up, and the back is on the right of a sagittal slice.
"""

import dataclasses
import io
from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
from jaxtyping import Float, Int16, Num, Shaped
from PIL import Image

from data_pipelines.resample import STEPS_PER_HU

Plane = Literal["axial", "sagittal", "coronal"]
PLANES = ("axial", "sagittal", "coronal")
"""The planes that are perpendicular to the axes f, h, w."""

# Of a thumbnail: HU shown as black and as white; pixels.
LUNG_WINDOW = (-1000.0, 200.0)
HEIGHT, MAX_WIDTH, GAP = 200, 400, 4
JPEG_QUALITY = 80


@dataclasses.dataclass(frozen=True)
class Slice:
    """One slice in HU; `pixel_mm` is the height of a row and the width of a column, in mm."""

    hu: Float[np.ndarray, "rows columns"]
    pixel_mm: tuple[float, float]

    @property
    def size_mm(self) -> tuple[float, float]:
        """Height and width."""
        rows, columns = self.hu.shape
        return rows * self.pixel_mm[0], columns * self.pixel_mm[1]

    @property
    def extent(self) -> tuple[float, float, float, float]:
        """matplotlib's `extent` in mm: left, right, bottom, top. Overlays share it."""
        height, width = self.size_mm
        return 0, width, height, 0

    def draw(self, axes: Any, *, window: Sequence[float]) -> None:
        """Draws the slice on matplotlib `axes`, which lose their ticks and frame."""
        low, high = window
        axes.imshow(
            self.hu,
            cmap="gray",
            vmin=low,
            vmax=high,
            extent=self.extent,
            interpolation="bilinear",  # thick slices are no steps
        )
        axes.axis("off")


def cut(
    volume: Num[np.ndarray, "f h w"],
    plane: Plane,
    *,
    spacing: Sequence[float],
    index: int | None = None,
    slope: float = 1 / STEPS_PER_HU,
    intercept: float = 0.0,
) -> Slice:
    """The slice at `index` along the axis perpendicular to `plane`; by default the middle one.

    `spacing` is in mm along f, h, w; HU is `slope * volume + intercept`."""
    if index is None:
        index = volume.shape[PLANES.index(plane)] // 2
    f, h, w = spacing
    pixel_mm = {"axial": (w, h), "sagittal": (f, w), "coronal": (f, h)}[plane]
    hu = section(volume, plane, index) * np.float32(slope) + np.float32(intercept)
    return Slice(hu, pixel_mm)


def section(
    volume: Shaped[np.ndarray, "f h w"], plane: Plane, index: int
) -> Shaped[np.ndarray, "rows columns"]:
    """The values of a slice as they are shown."""
    values = np.take(volume, index, axis=PLANES.index(plane))
    return values.T if plane == "axial" else values[::-1]


def thumbnail(volume: Int16[np.ndarray, "f h w"], *, spacing: Sequence[float]) -> bytes:
    """A JPEG with an axial, a coronal and a sagittal slice side by side, in the lung window.

    `spacing` is in mm along f, h, w."""
    # A sagittal slice through the middle shows the mediastinum; this one cuts the right lung.
    right_lung = volume.shape[1] * 3 // 10
    panels = [
        _fit(cut(volume, "axial", spacing=spacing)),
        _fit(cut(volume, "coronal", spacing=spacing)),
        _fit(cut(volume, "sagittal", spacing=spacing, index=right_lung)),
    ]
    total = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    picture = Image.new("L", (total, HEIGHT))
    left = 0
    for panel in panels:
        picture.paste(panel, (left, (HEIGHT - panel.height) // 2))
        left += panel.width + GAP
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return buffer.getvalue()


def _fit(plane: Slice) -> Image.Image:
    """The slice in the lung window, as large as HEIGHT and MAX_WIDTH allow."""
    height, width = plane.size_mm
    scale = min(HEIGHT / height, MAX_WIDTH / width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    low, high = LUNG_WINDOW
    gray = np.clip((plane.hu - low) * (255 / (high - low)), 0, 255).round().astype(np.uint8)
    return Image.fromarray(gray).resize(size, Image.Resampling.BICUBIC)
