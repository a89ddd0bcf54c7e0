"""Detection: probabilities of findings with the names of their scans and labels."""

import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float, Float32


@dataclasses.dataclass(frozen=True, eq=False, repr=False)
class Detection(np.lib.mixins.NDArrayOperatorsMixin):
    """Probabilities (n, labels) with names; in all else it is their array.

    `scans` are paths, or numbers for volumes of an array. Of a calibrated model `calibrated` (n,
    labels) are frequencies, NaN for labels without a curve; with reference volumes `ranks` (n,
    labels) are the share of them with a lower probability. Both may be None.
    """

    probabilities: Float32[np.ndarray, "n labels"]
    labels: tuple[str, ...]
    scans: tuple[str | int, ...]
    calibrated: Float32[np.ndarray, "n labels"] | None
    ranks: Float[np.ndarray, "n labels"] | None

    def to_frame(self) -> pd.DataFrame:
        """Returns a table with the scans as index and the labels as columns."""
        return pd.DataFrame(self.probabilities, index=list(self.scans), columns=list(self.labels))

    def __repr__(self) -> str:
        return repr(self.to_frame())

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return np.array(self.probabilities, dtype=dtype, copy=copy)

    def __getitem__(self, index: Any) -> Any:
        return self.probabilities[index]

    def __iter__(self) -> Iterator[np.ndarray]:
        return iter(self.probabilities)

    def __len__(self) -> int:
        return len(self.probabilities)

    def __getattr__(self, name: str) -> Any:  # shape, max, ...
        if name.startswith("__"):
            raise AttributeError(name)
        return getattr(self.probabilities, name)
