"""Isotonic calibration curves: from a model's scores to frequencies of the finding.

`python -m ctclip_jax.calibrate` writes EXPORT/calibration.json; `ctclip_jax.load` reads it.
"""

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, Float32

from ctclip_jax.checkpoints.exports import CALIBRATION_FILE
from ctclip_jax.common.configs import from_dict
from data_pipelines.errors import InputError
from data_pipelines.files import read_json, renewing_checksums, write_text


@dataclasses.dataclass(frozen=True)
class Curve:
    """A nondecreasing map of scores in [0, 1]: linear between its points, constant outside them.

    `volumes` is the number of volumes that it was fitted on, `positive` of which have the label.
    A score above `threshold` counts as present; None in files of earlier versions.
    """

    score: tuple[float, ...]
    probability: tuple[float, ...]
    volumes: int
    positive: int
    threshold: float | None = None

    def __post_init__(self):
        sizes = len(self.score), len(self.probability)
        if not sizes[0] == sizes[1] > 0:
            raise InputError(f"calibration curve: {sizes[0]} scores, {sizes[1]} probabilities")
        if any(np.diff(points).min(initial=0) < 0 for points in (self.score, self.probability)):
            raise InputError("calibration curve: expected nondecreasing points")


@dataclasses.dataclass(frozen=True)
class Calibration:
    """Curves by label, for the probabilities of one classifier.

    The fields are the keys of calibration.json. `scores` is the kind of the classifier, 'zero_shot'
    or 'trained' (earlier files: 'classifier'); `fitted_on` describes the volumes.
    """

    scores: str
    curves: Mapping[str, Curve]
    fitted_on: str

    def is_of(self, kind: str) -> bool:
        """Whether it is for probabilities of this kind of classifier."""
        return {"classifier": "trained"}.get(self.scores, self.scores) == kind

    def apply(
        self, names: Sequence[str], probabilities: Float[np.ndarray, "n k"]
    ) -> Float32[np.ndarray, "n k"]:
        """Returns calibrated probabilities; NaN for names without a curve."""
        calibrated = np.full(probabilities.shape, np.nan, np.float32)
        for column, name in enumerate(names):
            if curve := self.curves.get(name):
                calibrated[:, column] = np.interp(
                    probabilities[:, column], curve.score, curve.probability
                )
        return calibrated

    def thresholds(self, names: Sequence[str]) -> Float[np.ndarray, " k"]:
        """Returns the probability above which each counts as present; NaN where none was fitted."""
        curves = [self.curves.get(name) for name in names]
        return np.array([curve.threshold if curve else None for curve in curves], float)


def save(folder: Path, calibration: Calibration) -> None:
    """Writes calibration.json into an export."""
    text = json.dumps(dataclasses.asdict(calibration), indent=1)
    with renewing_checksums(folder, CALIBRATION_FILE):
        write_text(folder / CALIBRATION_FILE, text + "\n")


def load(folder: Path) -> Calibration | None:
    """Returns the calibration of an export, None if it has none."""
    path = folder / CALIBRATION_FILE
    if not path.exists():
        return None
    content = read_json(path)
    try:
        curves = {label: from_dict(Curve, curve) for label, curve in content["curves"].items()}
        return Calibration(str(content["scores"]), curves, str(content["fitted_on"]))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise InputError(f"{path}: damaged ({type(error).__name__}: {error})") from error
