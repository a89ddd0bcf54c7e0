"""Anatomy: random proportions of a patient, landmarks that follow from them, the scanned grid."""

from dataclasses import dataclass

import numpy as np

from data_pipelines.sources.phantoms.geometry import Grid, Point, Tube


@dataclass(frozen=True)
class Anatomy:
    """Proportions of one patient. Lengths in mm, attenuations in HU, z = 0 at mid-lung."""

    half_width: float
    half_depth: float
    lung_height: float
    wall: float
    fat: float
    dome: float
    heart_scale: float
    heart_shift: float
    aorta: float
    contrast: float
    lung_hu: float
    rib_phase: float
    curve: float
    female: bool

    @property
    def apex(self) -> float:
        return self.lung_height / 2

    @property
    def base(self) -> float:
        return -self.lung_height / 2

    @property
    def arch(self) -> float:
        return self.apex - 58

    @property
    def carina(self) -> float:
        return self.arch - 24

    @property
    def heart_radii(self) -> Point:
        scale = self.heart_scale * self.half_width / 130
        return 60 * scale, 45 * scale, 50 * scale

    @property
    def heart(self) -> Point:
        """Center of the heart, which rests on the diaphragm."""
        long, short, tall = self.heart_radii
        down = self.base + 0.75 * self.dome + 0.8 * tall
        return 14 + 0.2 * long + self.heart_shift, -0.72 * self.half_depth + short, down

    @property
    def outer(self) -> tuple[float, float]:
        """Half width and half depth of the body."""
        margin = self.wall + self.fat
        return self.half_width + margin, self.half_depth + margin * 0.9 + 8

    @property
    def aorta_line(self) -> tuple[Point, ...]:
        depth, arch = self.half_depth, self.arch
        return (
            (-10, -0.22 * depth, self.heart[2] + 15),
            (-13, -0.25 * depth, arch - 22),
            (-4, -0.12 * depth, arch),
            (13, 0.15 * depth, arch + 3),
            (24, 0.42 * depth, arch - 14),
            (24, 0.48 * depth, arch - 50),
            (20, 0.52 * depth, self.base - 60),
        )

    @property
    def airways(self) -> tuple[Tube, ...]:
        """Lumens: the trachea, two main bronchi, then six lobar bronchi."""
        depth, fork = self.half_depth, self.carina
        right, left = (-26.0, 0.2 * depth, fork - 26), (32.0, 0.22 * depth, fork - 30)
        return (
            (((0.0, 0.0, self.apex + 50), (-1.0, 0.16 * depth, fork)), (8.5, 8.5)),
            (((-1.0, 0.16 * depth, fork), right), (7.0, 6.0)),
            (((-1.0, 0.16 * depth, fork), left), (6.5, 5.5)),
            ((right, (-46.0, 0.4 * depth, fork - 62), (-62.0, 0.5 * depth, fork - 92)), (5, 2.5)),
            ((left, (52.0, 0.42 * depth, fork - 64), (66.0, 0.5 * depth, fork - 92)), (5, 2.5)),
            ((right, (-50.0, -0.05 * depth, fork - 8), (-62.0, -0.1 * depth, fork + 24)), (4, 2)),
            ((left, (52.0, -0.05 * depth, fork - 10), (62.0, -0.1 * depth, fork + 22)), (4, 2)),
            ((right, (-56.0, -0.35 * depth, fork - 56)), (4, 2)),
            ((left, (62.0, -0.35 * depth, fork - 56)), (4, 2)),
        )


def random_anatomy(rng: np.random.Generator) -> Anatomy:
    width = rng.uniform(118, 146)
    return Anatomy(
        half_width=width,
        half_depth=width * rng.uniform(0.66, 0.8),
        lung_height=rng.uniform(212, 272),
        wall=rng.uniform(12, 18),
        fat=rng.uniform(5, 24),
        dome=rng.uniform(52, 82),
        heart_scale=rng.uniform(0.86, 1.06),
        heart_shift=rng.uniform(-8, 8),
        aorta=rng.uniform(12, 16.5),
        contrast=0.0 if rng.random() < 0.72 else rng.uniform(60, 170),
        lung_hu=rng.uniform(-885, -815),
        rib_phase=rng.random(),
        curve=rng.uniform(-1, 1),
        female=bool(rng.random() < 0.5),
    )


def random_grid(rng: np.random.Generator, anatomy: Anatomy) -> Grid:
    """A field of view of 300-420 mm around the chest, in 28-44 slices of 6-11 mm."""
    view = float(np.clip(2 * anatomy.outer[0] + rng.uniform(0, 45), 300, 420))
    size = int(np.clip(rng.integers(56, 81), np.ceil(view / 7), view // 4.5))
    low = anatomy.base - rng.uniform(4, 24)
    high = anatomy.apex + rng.uniform(4, 20)
    slices = int(np.clip(rng.integers(28, 45), np.ceil((high - low) / 11), (high - low) // 6))
    return Grid(
        shape=(size, size, slices),
        spacing=(view / size, (high - low) / slices),
        center=(rng.uniform(-8, 8), rng.uniform(-8, 8) + 6, (low + high) / 2),
        rotation=rng.normal(0, 0.05),
    )
