"""A prepared volume to look at."""

from collections.abc import Sequence
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Int16

from data_pipelines.resample import STEPS_PER_HU

_WIDTH_INCHES = 12


def draw(
    path: Path,
    volume: Int16[np.ndarray, "f h w"],
    *,
    spacing: Sequence[float],
    window: Sequence[float],
) -> None:
    """Writes a PNG of the middle axial, coronal and sagittal slices, in true proportions.

    `volume` is in steps of 1/16 HU, its axes run toward Superior, Left and Posterior; `spacing` is
    in mm along them; `window` in HU is black and white."""
    f, h, w = (size // 2 for size in volume.shape)
    z, x, y = spacing
    slices = {  # anterior or superior is up, the patient's left on the right
        "axial": (volume[f].T, y / x),
        "coronal": (volume[::-1, :, w], z / x),
        "sagittal": (volume[::-1, h, :], z / y),
    }
    figure, panels = plt.subplots(1, 3, figsize=(_WIDTH_INCHES, _WIDTH_INCHES / 3))
    low, high = window
    for panel, (name, (plane, aspect)) in zip(panels, slices.items(), strict=True):
        hu = plane / STEPS_PER_HU
        panel.imshow(hu, cmap="gray", vmin=low, vmax=high, aspect=aspect)
        panel.set_title(name)
        panel.axis("off")
    figure.tight_layout()
    figure.savefig(path)
    plt.close(figure)
