"""Contributions of patches laid over the scan that they are of: a NIfTI in the scan's own geometry.

ITK-SNAP and 3D Slicer show it over the scan. Every voxel has the contribution of its patch to the
logit of the finding: a patch is one number, and no blur between patches pretends otherwise.
"""

from pathlib import Path

import nibabel as nib
import numpy as np
from jaxtyping import Float32

from data_pipelines.files import publish, scratch_folder
from data_pipelines.hounsfield import from_lps
from data_pipelines.resample import Geometry, grid_positions
from data_pipelines.shard_tasks import PreparedVolume


def over_scan(
    contributions: Float32[np.ndarray, "t h w"], prepared: PreparedVolume, geometry: Geometry
) -> tuple[Float32[np.ndarray, "x y z"], np.ndarray]:
    """The contribution of the patch of each voxel of a scan, 0 outside the grid; and the affine of
    the scan, voxel indices to RAS millimeters.

    A scan whose header knows of no axes comes along Left, Posterior, Superior, as it was read.
    """
    found = prepared.oriented
    positions = grid_positions(found.voxels.shape, found.spacing_xyz, geometry)
    z, x, y = zip(geometry.shape, contributions.shape, strict=True)
    patches, inside = zip(
        *(_patch_of(place, *size) for place, size in zip(positions, (x, y, z), strict=True)),
        strict=True,
    )
    values = contributions.transpose(1, 2, 0)[np.ix_(*patches)]
    for axis, kept in enumerate(inside):
        values[(slice(None),) * axis + (~kept,)] = 0
    if found.axes == "header":
        return from_lps(values, prepared.scan.affine), prepared.scan.affine
    dx, dy, dz = found.spacing_xyz
    return values, np.diag([-dx, -dy, dz, 1.0])


def write_nifti(
    path: Path,
    contributions: Float32[np.ndarray, "t h w"],
    prepared: PreparedVolume,
    *,
    geometry: Geometry,
    description: str,
) -> None:
    """Writes PATH.nii.gz, whole or not at all. Raises InputError if it cannot be written."""
    values, affine = over_scan(contributions, prepared, geometry)
    image = nib.Nifti1Image(np.ascontiguousarray(values), affine)
    image.header["descrip"] = description.encode("ascii", "replace")[:79]
    image.header.set_xyzt_units("mm")
    with scratch_folder(path.parent) as scratch:
        nib.save(image, scratch / path.name)
        publish(scratch / path.name, path)


def _patch_of(place: np.ndarray, voxels: int, patches: int) -> tuple[np.ndarray, np.ndarray]:
    inside = (place >= -0.5) & (place < voxels - 0.5)
    patch = np.floor((place + 0.5) * (patches / voxels)).astype(np.intp)
    return np.clip(patch, 0, patches - 1), inside
