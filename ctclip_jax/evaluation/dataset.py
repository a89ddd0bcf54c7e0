"""What is evaluated: a set of volumes, what is known of them, and what a model made of them."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from data_pipelines.errors import InputError
from data_pipelines.sources.ct_rate import parse_volume_name

STRATA = ("sex", "age", "manufacturer", "kernel", "slice_spacing")


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """One row a volume, sorted by name, so that no figure depends on the order of files.

    Attributes:
      names, patients, scans: (n,) of the volumes; the reconstructions of a scan share its report.
      reports: (n,) the text that is shown; empty where unknown.
      label_names: what `labels` (n, labels) are of: 0, 1, or -1 where unknown.
      scores: (n, labels) in [0, 1], NaN where a model gave none; None if there are no scores.
      image, text: (n, d) unit latents of the volumes and of their reports; None if there are none.
      strata: what results are split by, name -> (n,) values as the tables have them, empty where
        unknown.
      source: where model and data come from, as metrics.json tells it.
      notes: what a reader of the figures should know of the input.
    """

    names: np.ndarray
    patients: np.ndarray
    scans: np.ndarray
    reports: np.ndarray
    label_names: tuple[str, ...]
    labels: Integer[np.ndarray, "n labels"]
    scores: Float[np.ndarray, "n labels"] | None = None
    image: Float[np.ndarray, "n d"] | None = None
    text: Float[np.ndarray, "n d"] | None = None
    strata: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if len(twice := repeated(self.names)):
            raise InputError(f"{twice[0]}: two volumes of this name")
        if (self.names[:-1] > self.names[1:]).any():
            raise ValueError("a study is sorted by the names of its volumes")

    def labeled(
        self, column: int
    ) -> tuple[Integer[np.ndarray, " m"], Float[np.ndarray, " m"], Integer[np.ndarray, " m"]]:
        """Of the volumes with a label known: 0 or 1, their scores, and their rows."""
        rows = np.flatnonzero(self.labels[:, column] >= 0)
        return self.labels[rows, column], self.scores[rows, column], rows

    def take(self, rows: np.ndarray) -> "EvalSet":
        """The study of these rows, in increasing order, alone."""
        cut = {
            field.name: value[rows]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        strata = {name: values[rows] for name, values in self.strata.items()}
        return dataclasses.replace(self, **cut, strata=strata)


def repeated(names: np.ndarray) -> np.ndarray:
    """The names that are there more than once."""
    found, counts = np.unique(names, return_counts=True)
    return found[counts > 1]


def from_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    texts: Sequence[str],
    labels: Sequence[str],
    source: Mapping[str, Any],
) -> EvalSet:
    """The study of the rows of a prepared split (`data_pipelines.shards.read_reports`).

    Args:
      texts: the text of each row that is shown.
      labels: the names of the labels of the rows.
      source: where they come from.

    Raises:
      InputError: two volumes of one name.
    """
    order = np.argsort(np.array([row["volume_name"] for row in rows]), kind="stable")
    rows = [rows[i] for i in order]
    strata = [row["strata"] | {"slice_spacing": _slice_spacing(row)} for row in rows]
    return EvalSet(
        names=np.array([row["volume_name"] for row in rows]),
        patients=np.array([row["patient"] for row in rows]),
        scans=np.array([f"{row['patient']}/{row['scan']}" for row in rows]),
        label_names=tuple(labels),
        labels=np.array([row["labels"] for row in rows], np.int8).reshape(len(rows), -1),
        reports=np.array([texts[i] for i in order], object),
        source=source,
        strata={name: np.array([each.get(name, "") for each in strata]) for name in STRATA},
    )


def _slice_spacing(row: Mapping[str, Any]) -> str:
    """Millimeters along z in the file that the volume was made of."""
    return row["provenance"].get("spacing", "").rpartition("x")[2]


def identity(volume_name: str) -> tuple[str, str]:
    """Patient and scan of a volume named as in CT-RATE; of another name, a patient of its own."""
    return parse_volume_name(volume_name) or (volume_name, volume_name)
