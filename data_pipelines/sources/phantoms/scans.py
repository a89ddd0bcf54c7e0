"""One visit of a synthetic patient: its chest, its report, its reconstructions."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16

from data_pipelines.sources.phantoms.abnormalities import add_abnormalities, choose_abnormalities
from data_pipelines.sources.phantoms.anatomy import Anatomy, random_grid
from data_pipelines.sources.phantoms.chest import Chest, draw_chest
from data_pipelines.sources.phantoms.wording import Report, write_report

AIR_HU, METAL_HU = -1024, 3071


@dataclass(frozen=True)
class Reconstruction:
    """Stored voxels, axes (x to the left, y to posterior, z to superior); HU = voxels + intercept.

    `spacing` is (in-plane, slice) in mm.
    """

    voxels: Int16[np.ndarray, "x y z"]
    spacing: tuple[float, float]
    intercept: int
    kernel: str


@dataclass(frozen=True)
class PhantomScan:
    """One visit: the labels drawn, the report, and one to three reconstructions."""

    labels: tuple[str, ...]
    report: Report
    reconstructions: tuple[Reconstruction, ...]


def make_scan(anatomy: Anatomy, rng: np.random.Generator) -> PhantomScan:
    """Draws a chest with random abnormalities, describes it and reconstructs it."""
    grid = random_grid(rng, anatomy)
    labels = choose_abnormalities(rng)
    chest, findings = add_abnormalities(draw_chest(grid, anatomy, rng), labels, rng)
    report = write_report(findings, rng, contrast=anatomy.contrast > 0, thickness=grid.spacing[1])
    count = int(rng.choice((1, 2, 3), p=(0.83, 0.13, 0.04)))
    intercept = int(rng.choice((-1024, -8192, -1000, 0), p=(0.66, 0.26, 0.04, 0.04)))
    reconstructions = [reconstruct(chest, rng, intercept=intercept, resliced=False)]
    for _ in range(count - 1):
        reconstructions.append(reconstruct(chest, rng, intercept=intercept, resliced=True))
    return PhantomScan(labels, report, tuple(reconstructions))


def reconstruct(
    chest: Chest, rng: np.random.Generator, *, intercept: int, resliced: bool
) -> Reconstruction:
    """Samples a chest as a scanner would: slices, kernel, noise, stored values.

    `resliced` changes the slice spacing to one drawn between 6 and 11 mm.
    """
    hu, (in_plane, slices) = chest.hu, chest.grid.spacing
    if resliced:
        hu, slices = _reslice(hu, slices, rng.uniform(6, 11))
    kernel = str(rng.choice(("B30f", "B60f", "B70f", "LUNG", "STANDARD")))
    sharp = kernel not in ("B30f", "STANDARD")
    noise = rng.standard_normal(hu.shape, dtype="f4")
    if not sharp:
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)) / 2
    noise *= np.float32(rng.uniform(15, 45) if sharp else rng.uniform(6, 22))
    noise += hu
    stored = np.clip(np.rint(noise), AIR_HU, METAL_HU).astype(np.int16) - np.int16(intercept)
    if intercept == -8192:
        stored[_outside_view(hu.shape)] = 0
    return Reconstruction(stored, (in_plane, slices), intercept, kernel)


def _reslice(hu: np.ndarray, slices: float, spacing: float) -> tuple[np.ndarray, float]:
    count = int(np.clip(round(hu.shape[2] * slices / spacing), 28, 44))
    spacing = hu.shape[2] * slices / count
    position = np.clip((np.arange(count) + 0.5) * spacing / slices - 0.5, 0, hu.shape[2] - 1)
    lower = np.minimum(position.astype(int), hu.shape[2] - 2)
    share = (position - lower).astype("f4")
    return hu[:, :, lower] * (1 - share) + hu[:, :, lower + 1] * share, spacing


def _outside_view(shape: tuple[int, int, int]) -> np.ndarray:
    """The corners beyond the circular field of view, which such scanners fill with 0."""
    across = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2
    down = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2
    return across**2 + down**2 > (max(shape[:2]) / 2) ** 2
