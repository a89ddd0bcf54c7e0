"""A scan as the page shows it: HU at its own resolution, and the patch that each voxel lies in."""

import dataclasses

import numpy as np
from jaxtyping import Float, Int, Int16

from ctclip_jax.inference.heatmaps import padding_share, patch_indices
from data_pipelines.resample import Geometry
from data_pipelines.shard_tasks import PreparedVolume

MAX_BYTES = 256 << 20  # of the voxels of one scan: 512 x 512 x 512


@dataclasses.dataclass(frozen=True)
class ScanView:
    """Voxels of a scan, f toward Superior, h toward Left, w toward Posterior.

    Attributes:
      hu: of the voxels.
      spacing: mm along f, h, w.
      step: every how many slices along f is here, so that `hu` has at most MAX_BYTES.
      patches: along f, h and w, which patch of the model a voxel lies in; -1 outside its grid.
      padding: the share of each patch that is outside the scan.
    """

    hu: Int16[np.ndarray, "f h w"]
    spacing: tuple[float, float, float]
    step: int
    patches: tuple[Int[np.ndarray, " f"], Int[np.ndarray, " h"], Int[np.ndarray, " w"]]
    padding: Float[np.ndarray, "t h w"]

    @property
    def patches_inside(self) -> tuple[np.ndarray, ...]:
        """The open mesh (`np.ix_`) of the patches that hold voxels of the scan."""
        return np.ix_(*(np.unique(along[along >= 0]) for along in self.patches))


def view_scan(
    prepared: PreparedVolume, geometry: Geometry, *, grid: tuple[int, int, int]
) -> ScanView:
    """The view of a scan for a model of this geometry, with `grid` patches along f, h, w."""
    oriented = prepared.oriented
    step = -(-2 * oriented.voxels.size // MAX_BYTES)
    voxels = oriented.voxels[:, :, ::step]
    hu = np.empty((voxels.shape[2], *voxels.shape[:2]), np.int16)
    for frame, plane in enumerate(hu):  # one at a time: floats of a whole scan would take twice it
        values = voxels[:, :, frame] * np.float32(oriented.slope) + np.float32(oriented.intercept)
        plane[:] = np.clip(np.rint(values), -(2**15), 2**15 - 1)
    f, h, w = patch_indices(prepared, geometry, grid)
    dx, dy, dz = oriented.spacing_xyz
    padding = padding_share(prepared, geometry, grid)
    return ScanView(hu, (dz * step, dx, dy), step, (f[::step], h, w), padding)
