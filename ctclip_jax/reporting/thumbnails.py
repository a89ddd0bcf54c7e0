"""A volume at a glance: three slices in one small JPEG."""

import io

import numpy as np
from jaxtyping import Float, Num
from PIL import Image

LUNG_WINDOW = (-1000.0, 200.0)  # HU; prepared volumes are clipped at -1000
HEIGHT, WIDEST, GAP = 200, 400, 4  # pixels
QUALITY = 80


def slices(
    volume: Num[np.ndarray, "f h w"],
    *,
    spacing: tuple[float, float, float],
    steps_per_hu: float = 1,
) -> bytes:
    """Axial, coronal and sagittal slices side by side, in the lung window, in true proportions.

    The axial and coronal slices are the middle ones; the sagittal one cuts the right lung.

    Args:
      volume: in steps of 1 / `steps_per_hu` HU; f toward the head, h toward Left, w toward
        Posterior.
      spacing: mm along f, h, w.

    Returns:
      A JPEG in radiological orientation: the patient's left on the right, the head on top;
      in the sagittal slice the back is on the right.
    """
    frames, height, width = volume.shape
    f, h, w = spacing
    planes = (
        (volume[frames // 2].T, (w, h)),
        (volume[::-1, :, width // 2], (f, h)),
        (volume[::-1, height * 3 // 10, :], (f, w)),
    )
    panels = [_panel(plane / np.float32(steps_per_hu), pixel) for plane, pixel in planes]
    total = sum(panel.width for panel in panels) + GAP * (len(panels) - 1)
    picture = Image.new("L", (total, HEIGHT))
    left = 0
    for panel in panels:
        picture.paste(panel, (left, (HEIGHT - panel.height) // 2))
        left += panel.width + GAP
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=QUALITY, optimize=True)
    return buffer.getvalue()


def _panel(plane: Float[np.ndarray, "rows columns"], pixel: tuple[float, float]) -> Image.Image:
    """The plane in gray, as large as HEIGHT and WIDEST allow; `pixel`: mm of a row, a column."""
    low, high = LUNG_WINDOW
    gray = np.clip((plane - low) * (255 / (high - low)), 0, 255)
    tall, wide = plane.shape[0] * pixel[0], plane.shape[1] * pixel[1]
    scale = min(HEIGHT / tall, WIDEST / wide)
    size = max(1, round(wide * scale)), max(1, round(tall * scale))
    return Image.fromarray(gray.round().astype(np.uint8)).resize(size, Image.Resampling.BICUBIC)
