"""What a model's probabilities are worth: per label, the share of volumes that have it at a score.

EXPORT/calibration.json is written by `python -m ctclip_jax.calibrate` and read with the export.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from ctclip_jax.checkpoints.exports import CALIBRATION_FILE
from data_pipelines.errors import InputError
from data_pipelines.files import read_json, write_text

FILE = CALIBRATION_FILE


@dataclasses.dataclass(frozen=True)
class Curve:
    """A nondecreasing map of scores in [0, 1], linear between its points and flat beyond them.

    It was fitted on `volumes` volumes, `positive` of which have the label.
    """

    score: tuple[float, ...]
    probability: tuple[float, ...]
    volumes: int
    positive: int


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Curves by label, for the probabilities of the 'zero_shot' or the 'trained' classifier.

    `fitted_on` says which volumes they are of.
    """

    scores: str
    curves: Mapping[str, Curve]
    fitted_on: str

    def apply(
        self, names: Sequence[str], probabilities: Float[np.ndarray, "n k"]
    ) -> Float32[np.ndarray, "n k"]:
        """The calibrated probabilities; NaN for names without a curve."""
        calibrated = np.full(probabilities.shape, np.nan, np.float32)
        for column, name in enumerate(names):
            if curve := self.curves.get(name):
                calibrated[:, column] = np.interp(
                    probabilities[:, column], curve.score, curve.probability
                )
        return calibrated


def write(folder: Path, calibration: Calibration) -> None:
    """Writes it into an export."""
    text = json.dumps(dataclasses.asdict(calibration), indent=1)
    write_text(folder / FILE, text + "\n")


def read(folder: Path) -> Calibration | None:
    """The calibration of an export, if it has one. Raises InputError if it is damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    content = read_json(path)
    try:
        curves = {name: _curve(curve) for name, curve in content["curves"].items()}
        kind = {"classifier": "trained"}.get(content["scores"], content["scores"])  # its old name
        return Calibration(str(kind), curves, str(content["fitted_on"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: no calibration ({type(error).__name__}: {error})") from error


def _curve(content: Mapping) -> Curve:
    score, probability = (tuple(map(float, content[n])) for n in ("score", "probability"))
    rising = all(np.diff(points).min(initial=0) >= 0 for points in (score, probability))
    if not score or len(score) != len(probability) or not rising:
        raise ValueError("a curve that does not rise point by point")
    return Curve(score, probability, int(content["volumes"]), int(content["positive"]))
