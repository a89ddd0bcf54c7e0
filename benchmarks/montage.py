"""The picture of all 18 signs on synthetic chest CTs: docs/images/phantoms.png.

python -m benchmarks.montage
"""

import textwrap
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
from absl import flags

from data_pipelines import command_line
from data_pipelines.reports import LABELS
from data_pipelines.slices import Slice
from data_pipelines.sources.phantoms.anatomy import random_anatomy, random_grid
from data_pipelines.sources.phantoms.chest import draw_chest
from data_pipelines.sources.phantoms.signs import SIGNS

OUT = flags.DEFINE_string("out", "docs/images/phantoms.png", "PNG file.")
SEED = 2
WINDOW_HU = (-1000.0, 300.0)


def sign_slice(label: str) -> Slice:
    """The axial slice of a random chest in which the sign of `label` changes most."""
    rng = np.random.default_rng((SEED, LABELS.index(label)))
    anatomy = random_anatomy(rng)
    healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
    chest, _ = SIGNS[label].draw(healthy, rng)
    change = np.abs(np.clip(chest.hu, *WINDOW_HU) - np.clip(healthy.hu, *WINDOW_HU))
    in_plane, _ = chest.grid.spacing
    plane = chest.hu[:, :, int(change.sum(axis=(0, 1)).argmax())]
    return Slice(plane.T, (in_plane, in_plane))


def main() -> None:
    plt.switch_backend("Agg")
    figure, axes = plt.subplots(2, 9, figsize=(16, 4.4))
    for axis, label in zip(axes.flat, LABELS, strict=True):
        sign_slice(label).draw(axis, window=WINDOW_HU)
        axis.set_title(textwrap.fill(label, 20), size=9)
    figure.tight_layout(pad=0.3, h_pad=1)
    figure.savefig(Path(OUT.value), dpi=64)


if __name__ == "__main__":
    command_line.run(main)
