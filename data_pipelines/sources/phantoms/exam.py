"""One exam of a synthetic patient: the chest, its report, and what a scanner stores of it."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Int16

from data_pipelines.sources.phantoms.anatomy import Anatomy, random_grid
from data_pipelines.sources.phantoms.chest import Chest, draw_chest
from data_pipelines.sources.phantoms.report_writer import Report, write_report
from data_pipelines.sources.phantoms.signs import add_signs, choose_labels

AIR_HU, METAL_HU = -1024, 3071
# Some scanners store HU + 8192, and 0 outside of their circular field of view.
PADDED_INTERCEPT = -8192


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
class Exam:
    """The labels present, the report, and one to three reconstructions."""

    labels: tuple[str, ...]
    report: Report
    reconstructions: tuple[Reconstruction, ...]


def draw_exam(anatomy: Anatomy, rng: np.random.Generator) -> Exam:
    """Draws a chest with random abnormalities, describes it and reconstructs it."""
    grid = random_grid(rng, anatomy)
    labels = choose_labels(rng)
    chest, findings = add_signs(draw_chest(grid, anatomy, rng), labels, rng)
    report = write_report(
        findings, rng, has_contrast=anatomy.contrast > 0, slice_spacing=grid.spacing[1]
    )
    count = int(rng.choice((1, 2, 3), p=(0.83, 0.13, 0.04)))
    intercept = int(rng.choice((-1024, PADDED_INTERCEPT, -1000, 0), p=(0.66, 0.26, 0.04, 0.04)))
    reconstructions = tuple(
        _reconstruct(chest, rng, intercept=intercept, is_resliced=number > 0)
        for number in range(count)
    )
    return Exam(labels, report, reconstructions)


def _reconstruct(
    chest: Chest, rng: np.random.Generator, *, intercept: int, is_resliced: bool
) -> Reconstruction:
    """Samples a chest as a scanner would: slices, kernel, noise, stored values.

    `is_resliced` changes the slice spacing to one drawn between 6 and 11 mm.
    """
    hu, (in_plane, slice_spacing) = chest.hu, chest.grid.spacing
    if is_resliced:
        hu, slice_spacing = _reslice(hu, slice_spacing, rng.uniform(6, 11))
    kernel = str(rng.choice(("B30f", "B60f", "B70f", "LUNG", "STANDARD")))
    is_sharp = kernel not in ("B30f", "STANDARD")
    noise = rng.standard_normal(hu.shape, dtype="f4")
    if not is_sharp:
        noise = (noise + np.roll(noise, 1, 0) + np.roll(noise, 1, 1) + np.roll(noise, 1, 2)) / 2
    noise *= np.float32(rng.uniform(15, 45) if is_sharp else rng.uniform(6, 22))
    noise += hu
    stored = np.clip(np.rint(noise), AIR_HU, METAL_HU).astype(np.int16) - np.int16(intercept)
    if intercept == PADDED_INTERCEPT:
        stored[_outside_view(hu.shape)] = 0
    return Reconstruction(stored, (in_plane, slice_spacing), intercept, kernel)


def _reslice(hu: np.ndarray, old_spacing: float, spacing: float) -> tuple[np.ndarray, float]:
    """Linear interpolation to 28-44 slices that fill the same height; with their spacing (mm)."""
    count = int(np.clip(round(hu.shape[2] * old_spacing / spacing), 28, 44))
    spacing = hu.shape[2] * old_spacing / count
    position = np.clip((np.arange(count) + 0.5) * spacing / old_spacing - 0.5, 0, hu.shape[2] - 1)
    lower = np.minimum(position.astype(int), hu.shape[2] - 2)
    weight = (position - lower).astype("f4")
    return hu[:, :, lower] * (1 - weight) + hu[:, :, lower + 1] * weight, spacing


def _outside_view(shape: tuple[int, int, int]) -> np.ndarray:
    """The corners of the slices beyond the circular field of view, as a mask (x, y)."""
    across = np.arange(shape[0])[:, None] - (shape[0] - 1) / 2
    down = np.arange(shape[1])[None, :] - (shape[1] - 1) / 2
    return across**2 + down**2 > (max(shape[:2]) / 2) ** 2
