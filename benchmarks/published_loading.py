"""A volume as the published loaders read it: nibabel to float64, resampled by torch.

Written from the description of CT-CLIP's preprocessing (arXiv 2403.17834).
"""

from pathlib import Path

import nibabel as nib
import numpy as np
import torch

from data_pipelines.resample import Geometry


def load(path: Path, *, spacing_xyz: tuple[float, float, float]) -> np.ndarray:
    """HU / 1000 on the published grid, float32 (1, 240, 480, 480).

    Clipped before resampling, as in inference; training clips after it, at the same cost.
    """
    geometry = Geometry()
    hu = np.clip(nib.load(path).get_fdata(), -1000, 1000).transpose(2, 0, 1)
    x, y, z = spacing_xyz
    size = [
        int(n * (old / new))
        for n, old, new in zip(hu.shape, (z, x, y), geometry.spacing, strict=True)
    ]
    resampled = torch.nn.functional.interpolate(
        torch.from_numpy(hu)[None, None], size=size, mode="trilinear", align_corners=False
    )
    volume = (resampled[0, 0].numpy() / 1000).astype(np.float32)
    for axis, target in enumerate(geometry.shape):
        start = max(volume.shape[axis] - target, 0) // 2
        volume = volume.take(range(start, start + min(volume.shape[axis], target)), axis)
    missing = [target - n for target, n in zip(geometry.shape, volume.shape, strict=True)]
    widths = [(n // 2, n - n // 2) for n in missing]
    return np.pad(volume, widths, constant_values=-1.0)[None]
