"""A picture with one slice per abnormality: `python -m data_pipelines.sources.phantoms.montage`."""

import textwrap
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from absl import flags
from jaxtyping import Float

from data_pipelines.errors import run_main
from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.abnormalities import SIGNS
from data_pipelines.sources.phantoms.anatomy import random_anatomy, random_grid
from data_pipelines.sources.phantoms.chest import draw_chest

_OUT = flags.DEFINE_string("montage_out", "docs/images/phantoms.png", "The PNG file to write.")
_WINDOW_HU = (-1000, 300)


def sign_slice(label: str, seed: int) -> Float[np.ndarray, "x y"]:
    """The axial slice (HU) of a random chest in which the sign of `label` changes most."""
    rng = np.random.default_rng((seed, LABELS.index(label)))
    anatomy = random_anatomy(rng)
    healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
    chest, _ = SIGNS[label](healthy, rng)
    change = np.abs(np.clip(chest.hu, *_WINDOW_HU) - np.clip(healthy.hu, *_WINDOW_HU))
    return chest.hu[:, :, int(change.sum(axis=(0, 1)).argmax())]


def write_montage(path: str | Path, *, seed: int) -> None:
    """Writes a PNG of 2 rows of 9 slices, titled with their labels."""
    figure, axes = plt.subplots(2, 9, figsize=(16, 4.4))
    for axis, label in zip(axes.flat, LABELS, strict=True):
        plane = sign_slice(label, seed)
        axis.imshow(plane.T, cmap="gray", vmin=_WINDOW_HU[0], vmax=_WINDOW_HU[1])
        axis.set_title(textwrap.fill(label, 20), size=9)
        axis.axis("off")
    figure.tight_layout(pad=0.3, h_pad=1)
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=64)
    plt.close(figure)


def main() -> None:
    write_montage(_OUT.value, seed=2)


if __name__ == "__main__":
    run_main(main)
