"""Heatmaps: patch contributions as PNG slices and as NIfTI in scan space; their baseline.

A patch has one number, and heatmaps show it as one: no interpolation pretends to more detail.
"""

import dataclasses
import zipfile
from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float32, Int, Int16

from ctclip_jax.checkpoints.exports import BASELINE_FILE
from data_pipelines import slices
from data_pipelines.errors import InputError, one_line
from data_pipelines.files import publish, renewing_checksums, scratch_folder
from data_pipelines.geometry import from_lps
from data_pipelines.resample import Geometry, grid_positions
from data_pipelines.shard_tasks import PreparedVolume

MAX_PANELS, PANELS_PER_ROW, PANEL_INCHES = 8, 4, 3.2
MAX_OPACITY = 0.65


@dataclasses.dataclass(frozen=True)
class Baseline:
    """Mean `attribution.normalized_tokens` of a split, subtracted from heatmaps.

    `source` describes the volumes.
    """

    normalized_tokens: Float32[np.ndarray, "t h w e"]
    source: str


def save_baseline(folder: Path, baseline: Baseline) -> None:
    """Writes the baseline into an export."""
    with renewing_checksums(folder, BASELINE_FILE), scratch_folder(folder) as scratch:
        path = scratch / BASELINE_FILE
        np.savez(path, unit_tokens=baseline.normalized_tokens, of=baseline.source)
        publish(path, folder / BASELINE_FILE)


def load_baseline(folder: Path) -> Baseline | None:
    """Returns the baseline of an export, None if it has none."""
    path = folder / BASELINE_FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return Baseline(file["unit_tokens"], str(file["of"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from error


def save_png(
    path: Path,
    volume: Int16[np.ndarray, "f h w"],
    contributions: Float32[np.ndarray, "t h w"],
    *,
    spacing: tuple[float, float, float],
    title: str,
) -> None:
    """Writes the axial slices with the largest contributions, from feet to head, blue against a
    finding and red for it.

    Args:
      volume: in steps of 1/16 HU; f toward the head, h toward Left, w toward Posterior.
      contributions: of each patch, to the logit of the finding.
      spacing: mm along f, h, w.
      title: of the figure.
    """
    # Half a second that a program without heatmaps does not pay.
    from matplotlib.figure import Figure

    strength = np.abs(contributions).sum(axis=(1, 2))
    slabs = np.sort(np.argsort(-strength, kind="stable")[:MAX_PANELS])
    limit = max(float(np.abs(contributions).max()), np.finfo(np.float32).tiny)
    num_columns = min(PANELS_PER_ROW, len(slabs))
    num_rows = -(-len(slabs) // num_columns)
    size = PANEL_INCHES * num_columns + 1, PANEL_INCHES * num_rows + 0.6
    figure = Figure(figsize=size, layout="constrained")
    panels = figure.subplots(num_rows, num_columns, squeeze=False)
    for panel in panels.flat:
        panel.axis("off")
    for panel, slab in zip(panels.flat, slabs, strict=False):
        frame = int((slab + 0.5) * len(volume) / len(contributions))
        axial = slices.cut(volume, "axial", spacing=spacing, index=frame)
        axial.draw(panel, window=slices.LUNG_WINDOW)
        values = contributions[slab].T
        overlay = panel.imshow(
            values,
            cmap="bwr",
            vmin=-limit,
            vmax=limit,
            # Patches that add nothing stay transparent, so that the anatomy shows.
            alpha=MAX_OPACITY * np.abs(values) / limit,
            extent=axial.extent,
        )
        panel.set_title(f"slice {frame + 1} of {len(volume)}: {values.sum():+.3f}", fontsize=9)
    figure.suptitle(title, fontsize=11)
    figure.colorbar(overlay, ax=panels, shrink=0.6, label="contribution of a patch to the logit")
    with scratch_folder(path.parent) as scratch:
        figure.savefig(scratch / path.name, dpi=90)
        publish(scratch / path.name, path)


def save_nifti(
    path: Path,
    contributions: Float32[np.ndarray, "t h w"],
    prepared: PreparedVolume,
    *,
    geometry: Geometry,
    description: str,
) -> None:
    """Writes PATH (.nii.gz) in the scan's own geometry; ITK-SNAP and 3D Slicer overlay it."""
    values, affine = to_scan_space(contributions, prepared, geometry)
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.header.set_xyzt_units("mm")
    with scratch_folder(path.parent) as scratch:
        nib.save(image, scratch / path.name)
        publish(scratch / path.name, path)


def to_scan_space(
    contributions: Float32[np.ndarray, "t h w"], prepared: PreparedVolume, geometry: Geometry
) -> tuple[Float32[np.ndarray, "x y z"], np.ndarray]:
    """Returns the contribution of the patch that each voxel of a scan lies in, 0 outside the grid;
    and the affine of the scan that preparation chose, from voxel indices to RAS mm.

    A scan whose header has no axes is returned along Left, Posterior, Superior, as it was read.
    """
    oriented = prepared.oriented
    f, h, w = patch_indices(prepared, geometry, contributions.shape)
    # Of index -1, outside the grid, the last one, 0.
    values = np.pad(contributions, (0, 1)).transpose(1, 2, 0)[np.ix_(h, w, f)]
    if oriented.affine is not None:
        return from_lps(values, oriented.orientation), oriented.affine
    dx, dy, dz = oriented.spacing_xyz
    return values, np.diag([-dx, -dy, dz, 1.0])


def patch_indices(
    prepared: PreparedVolume, geometry: Geometry, grid: tuple[int, int, int]
) -> tuple[Int[np.ndarray, " f"], Int[np.ndarray, " h"], Int[np.ndarray, " w"]]:
    """The patch of `grid` that each voxel of a scan lies in, along f, h and w, which are the scan's
    z, x and y; -1 outside the grid."""
    oriented = prepared.oriented
    x, y, z = grid_positions(
        oriented.voxels.shape, oriented.spacing_xyz, geometry, prepared.coverage.z_center
    )
    indices = []
    for positions, num_voxels, num_patches in zip((z, x, y), geometry.shape, grid, strict=True):
        patch = np.floor((positions + 0.5) * (num_patches / num_voxels)).astype(np.intp)
        is_inside = (positions >= -0.5) & (positions < num_voxels - 0.5)
        indices.append(np.where(is_inside, np.clip(patch, 0, num_patches - 1), -1))
    return tuple(indices)
