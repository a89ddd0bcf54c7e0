"""A heatmap to look at: axial slices of a volume with what their patches add to a logit."""

from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from jaxtyping import Float, Int16

from data_pipelines.files import publish, scratch_folder
from data_pipelines.resample import to_hu

WINDOWS = {"lung": (-1000.0, 200.0), "mediastinum": (-160.0, 240.0), "bone": (-300.0, 1000.0)}
"""HU that are black and white; prepared volumes are clipped at -1000 and 1000."""
COLUMNS, MOST = 4, 8  # panels in a row, and in all
INCHES = 3.2
COLORS = "bwr"  # blue: speaks against, red: speaks for
OPAQUE = 0.65


def draw(
    path: Path,
    volume: Int16[np.ndarray, "f h w"],
    contributions: Float[np.ndarray, "t h w"],
    *,
    spacing: tuple[float, float, float],
    title: str,
    window: str = "lung",
) -> None:
    """Writes a PNG of the slices whose patches add or take most, from the feet to the head.

    Args:
      volume: in steps of 1/16 HU; f toward the head, h toward Left, w toward Posterior.
      contributions: to the logit, of each patch.
      spacing: mm along f, h, w.

    Raises:
      InputError: it cannot be written.
    """
    slabs = len(contributions)
    weight = np.abs(contributions).sum(axis=(1, 2))
    chosen = np.sort(np.argsort(-weight, kind="stable")[:MOST])
    limit = max(float(np.abs(contributions).max()), np.finfo(np.float32).tiny)
    _, x, y = spacing
    extent = (0, volume.shape[1] * x, volume.shape[2] * y, 0)
    columns = min(COLUMNS, len(chosen))
    rows = -(-len(chosen) // columns)
    figure, panels = plt.subplots(
        rows,
        columns,
        figsize=(INCHES * columns + 1, INCHES * rows + 0.6),
        squeeze=False,
        layout="constrained",
    )
    for panel in panels.flat:
        panel.axis("off")
    low, high = WINDOWS[window]
    for panel, slab in zip(panels.flat, chosen, strict=False):
        frame = int((slab + 0.5) * len(volume) / slabs)
        hu = to_hu(volume[frame].T)
        panel.imshow(hu, cmap="gray", vmin=low, vmax=high, extent=extent)
        values = contributions[slab].T
        shown = panel.imshow(
            values,
            cmap=COLORS,
            vmin=-limit,
            vmax=limit,
            alpha=OPAQUE * np.abs(values) / limit,
            extent=extent,
        )
        panel.set_title(f"slice {frame + 1} of {len(volume)}: {values.sum():+.3f}", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.colorbar(shown, ax=panels, shrink=0.6, label="added to the logit by a patch")
    with scratch_folder(path.parent) as scratch:
        figure.savefig(scratch / path.name, dpi=90)
        publish(scratch / path.name, path)
    plt.close(figure)
