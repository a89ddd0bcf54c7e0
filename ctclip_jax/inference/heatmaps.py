"""Heatmaps: patch contributions in the space of their scan, and what of them is from padding.

A patch has one number, and heatmaps show it as one: no interpolation pretends to more detail.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float, Float32, Int

from data_pipelines.files import publish, scratch_folder
from data_pipelines.geometry import from_lps
from data_pipelines.resample import Geometry, filled_slices, grid_positions
from data_pipelines.shard_tasks import PreparedVolume


def padding_share(
    prepared: PreparedVolume, geometry: Geometry, grid: tuple[int, int, int]
) -> Float[np.ndarray, "t h w"]:
    """The share of each patch of `grid` that is padding, outside the scan."""
    oriented = prepared.oriented
    x, y, z = filled_slices(
        oriented.voxels.shape, oriented.spacing_xyz, geometry, prepared.coverage.z_center
    )
    shares = []
    for part, num_voxels, num_patches in zip((z, x, y), geometry.shape, grid, strict=True):
        is_filled = np.zeros(num_voxels)
        is_filled[part] = 1
        shares.append(is_filled.reshape(num_patches, -1).mean(axis=1))
    return 1 - np.einsum("t,h,w->thw", *shares)


def save_nifti(
    path: Path,
    contributions: Float32[np.ndarray, "t h w"],
    prepared: PreparedVolume,
    *,
    geometry: Geometry,
    description: str,
) -> None:
    """Writes PATH (.nii.gz) in the scan's own geometry; ITK-SNAP and 3D Slicer overlay it."""
    image = to_nifti(contributions, prepared, geometry=geometry, description=description)
    with scratch_folder(path.parent) as scratch:
        nib.save(image, scratch / path.name)
        publish(scratch / path.name, path)


def to_nifti(
    contributions: Float32[np.ndarray, "t h w"],
    prepared: PreparedVolume | None,
    *,
    geometry: Geometry,
    description: str,
) -> nib.Nifti1Image:
    """Returns an image in the scan's own geometry, or on the grid of a volume without a scan."""
    if prepared is None:
        values, affine = _to_grid_space(contributions, geometry)
    else:
        values, affine = to_scan_space(contributions, prepared, geometry)
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.header.set_xyzt_units("mm")
    return image


def _to_grid_space(
    contributions: Float32[np.ndarray, "t h w"], geometry: Geometry
) -> tuple[Float32[np.ndarray, "x y z"], np.ndarray]:
    """The contribution of the patch of each voxel of a grid, and an affine with its axes."""
    for axis, size in enumerate(geometry.shape):
        contributions = contributions.repeat(size // contributions.shape[axis], axis)
    dz, dx, dy = geometry.spacing
    return contributions.transpose(1, 2, 0), np.diag([-dx, -dy, dz, 1.0])


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
