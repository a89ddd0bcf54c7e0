"""A synthetic full-size CT that compresses and resamples like a real one: body, lungs, noise."""

import gzip
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

SPACING_XYZ = (0.7, 0.7, 1.0)
_NOISE_HU, _TEXTURE_HU = 20, 30


def write(path: Path, *, shape: tuple[int, int, int] = (512, 512, 300), seed: int = 0) -> None:
    """Writes int16 HU with a full header, gzipped at level 6; axes (x, y, z)."""
    rng = np.random.default_rng(seed)
    x, y, z = np.meshgrid(
        *[np.linspace(-1, 1, n, dtype=np.float32) for n in shape], indexing="ij", sparse=True
    )
    hu = np.where((x / 0.85) ** 2 + (y / 0.65) ** 2 + 0 * z < 1, 40, -1000).astype(np.float32)
    for side in (-1, 1):
        hu[((x - side * 0.4) / 0.3) ** 2 + (y / 0.45) ** 2 + (z / 0.8) ** 2 < 1] = -850
    hu += _field(rng, shape, voxels=3, deviation=_TEXTURE_HU) * (hu > -950)
    hu += _field(rng, shape, voxels=0.7, deviation=_NOISE_HU)
    hu[np.broadcast_to(x**2 + y**2 > 1, shape)] = -1024  # outside the field of view
    voxels = np.rint(np.clip(hu, -1024, 3071)).astype(np.int16)
    dx, dy, dz = SPACING_XYZ
    image = nib.Nifti1Image(voxels, np.diag([-dx, -dy, dz, 1.0]))
    path.write_bytes(gzip.compress(image.to_bytes(), compresslevel=6))


def _field(
    rng: np.random.Generator, shape: tuple[int, int, int], *, voxels: float, deviation: float
) -> np.ndarray:
    """Noise of standard deviation `deviation` (HU), smooth over `voxels` voxels."""
    field = ndimage.gaussian_filter(rng.standard_normal(shape, dtype=np.float32), voxels)
    return field * (deviation / field.std())
