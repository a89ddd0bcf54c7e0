"""Pictures of heatmaps (PNG): slices of a scan, at its own resolution, under the contributions."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float32

from ctclip_jax.inference.heatmaps import patch_indices
from data_pipelines import slices
from data_pipelines.files import publish, scratch_folder
from data_pipelines.resample import Geometry
from data_pipelines.shard_tasks import PreparedVolume
from data_pipelines.slices import PLANES, Plane

WINDOW = (-1000.0, 300.0)  # HU: from lung to calcium
# 512 pixels for the longer side of an axial slice, which is the matrix of most scans.
PANEL_INCHES, DPI = 5.12, 100
MAX_AXIAL = 4
BLUE, RED, MAX_OPACITY = (0.1, 0.35, 1.0), (1.0, 0.15, 0.1), 0.6
DIMMED = 0.55  # opacity of the black over what the model does not see
ENDS = {"axial": "RL", "coronal": "RL", "sagittal": "AP"}  # left and right in the picture
STARTS = {"axial": "feet", "coronal": "front", "sagittal": "right"}  # where slices are counted from


def save(
    path: Path,
    contributions: Float32[np.ndarray, "t h w"],
    prepared: PreparedVolume,
    *,
    geometry: Geometry,
    title: str,
) -> None:
    """Writes contributions to the logit of a finding, red for it and blue against it.

    Above are three planes through the patch that speaks most for the finding, below axial slices
    through the other slabs that contribute most, from feet to head. All lie inside the scan, of
    which nothing but these slices is copied.
    """
    # Half a second that a program without heatmaps does not pay.
    from matplotlib.figure import Figure

    scan = _OverlaidScan(prepared, contributions, geometry)
    peak, others = scan.choose_slices()
    x, y, z = np.multiply(prepared.oriented.voxels.shape, prepared.oriented.spacing_xyz)
    inches, widths = PANEL_INCHES / max(x, y), (x, x, y)  # per mm; mm
    heights = [max(y, z), sum(widths) / MAX_AXIAL * y / x][: 1 + bool(others)]
    figure = Figure(
        figsize=(inches * sum(widths) + 0.8, inches * sum(heights) + 1.5), layout="constrained"
    )
    upper, *lower = np.atleast_1d(figure.subfigures(len(heights), 1, height_ratios=heights))
    panels = upper.subplots(1, 3, width_ratios=widths)
    for panel, plane in zip(panels, ("axial", "coronal", "sagittal"), strict=True):
        image = scan.draw(panel, plane, peak[PLANES.index(plane)])
        scan.draw_lines(panel, plane, peak)
    for part in lower:
        small = part.subplots(1, MAX_AXIAL)
        for panel, index in zip(small, others, strict=False):
            scan.draw(panel, "axial", index)
        for panel in small[len(others) :]:
            panel.axis("off")
    sizes = zip(geometry.shape, geometry.spacing, contributions.shape, strict=True)
    patch = " x ".join(f"{voxels * mm / patches:g}" for voxels, mm, patches in sizes)
    low, high = WINDOW
    figure.suptitle(title, fontsize=12)
    figure.supxlabel(
        f"One number per patch of {patch} mm (z, x, y). Dark: outside the model's grid."
        f" Window {low:.0f} to {high:.0f} HU.",
        fontsize=9,
    )
    upper.colorbar(image, ax=panels, shrink=0.8, label="contribution of a patch to the logit")
    with scratch_folder(path.parent) as scratch:
        figure.savefig(scratch / path.name, dpi=DPI)
        publish(scratch / path.name, path)


class _OverlaidScan:
    """A scan under its heatmap, along f, h, w: voxels and mm, the patch of each voxel, -1 outside
    the grid, and contributions with a 0 for that."""

    def __init__(
        self,
        prepared: PreparedVolume,
        contributions: Float32[np.ndarray, "t h w"],
        geometry: Geometry,
    ):
        self.oriented, (dx, dy, dz) = prepared.oriented, prepared.oriented.spacing_xyz
        self.voxels, self.spacing = prepared.oriented.voxels.transpose(2, 0, 1), (dz, dx, dy)
        self.patches = patch_indices(prepared, geometry, contributions.shape)
        self.contributions = np.pad(contributions, (0, 1))

    def choose_slices(self) -> tuple[tuple[int, int, int], list[int]]:
        """Along f, h, w the slice through the patch that speaks most for the finding; and the axial
        slices through at most MAX_AXIAL other slabs, those that contribute most. Only patches that
        the scan reaches count."""
        seen = [np.unique(rows[rows >= 0]) for rows in self.patches]
        middles = [
            [int(np.median(np.flatnonzero(rows == patch))) for patch in patches]
            for rows, patches in zip(self.patches, seen, strict=True)
        ]
        visible = self.contributions[np.ix_(*seen)]
        f, h, w = np.unravel_index(np.argmax(visible), visible.shape)
        strength = np.abs(visible).sum(axis=(1, 2))
        others = [slab for slab in np.argsort(-strength, kind="stable") if slab != f][:MAX_AXIAL]
        peak = middles[0][f], middles[1][h], middles[2][w]
        return peak, [middles[0][slab] for slab in sorted(others)]

    def draw(self, panel: Any, plane: Plane, index: int) -> Any:
        """Draws a slice of the scan and its heatmap, and returns the matplotlib image of this."""
        from matplotlib.colors import LinearSegmentedColormap

        axis, oriented = PLANES.index(plane), self.oriented
        scan = slices.cut(
            self.voxels,
            plane,
            spacing=self.spacing,
            index=index,
            slope=oriented.slope,
            intercept=oriented.intercept,
        )
        scan.draw(panel, window=WINDOW)
        patches = [rows[[index]] if n == axis else rows for n, rows in enumerate(self.patches)]
        f, h, w = np.ix_(*patches)
        values = slices.section(self.contributions[f, h, w], plane, 0)
        dark = DIMMED * slices.section((f < 0) | (h < 0) | (w < 0), plane, 0)
        panel.imshow(np.zeros_like(values), cmap="gray", alpha=dark, extent=scan.extent)
        limit = max(float(np.abs(self.contributions).max()), np.finfo(np.float32).tiny)
        stops = (0, *BLUE, MAX_OPACITY), (0.5, *BLUE, 0), (0.5, *RED, 0), (1, *RED, MAX_OPACITY)
        colors = [(position, color) for position, *color in stops]
        panel.set_title(
            f"{plane}, {index + 1} of {self.voxels.shape[axis]} from the {STARTS[plane]}",
            fontsize=10,
        )
        # Without axes in its file a scan is taken for Left, Posterior, Superior.
        doubt = "?" if oriented.axes == "stored" else ""
        for end, x in zip(ENDS[plane], (0.03, 0.97), strict=True):
            box = {"facecolor": "black", "alpha": 0.4, "linewidth": 0, "pad": 2}
            style = {"color": "white", "ha": "center", "va": "center", "fontsize": 12, "bbox": box}
            panel.text(x, 0.5, end + doubt, transform=panel.transAxes, **style)
        return panel.imshow(
            values,
            cmap=LinearSegmentedColormap.from_list("against, for", colors),
            vmin=-limit,
            vmax=limit,
            extent=scan.extent,
            interpolation="nearest",
        )

    def draw_lines(self, panel: Any, plane: Plane, center: tuple[int, int, int]) -> None:
        """Draws where the other two planes through `center` cut this one."""
        f, h, w = ((n + 0.5) * mm for n, mm in zip(center, self.spacing, strict=True))
        f = len(self.voxels) * self.spacing[0] - f  # the head is up
        x, y = {"axial": (h, w), "coronal": (h, f), "sagittal": (w, f)}[plane]
        style = {"color": "white", "linewidth": 0.7, "linestyle": (0, (2, 4)), "alpha": 0.8}
        panel.axvline(x, **style)
        panel.axhline(y, **style)
