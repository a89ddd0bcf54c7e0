"""EvalSet: the volumes of an evaluation with labels, scores, latents and subgroups."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Integer

from data_pipelines.errors import InputError
from data_pipelines.reports import report_text

SUBGROUPS = ("sex", "age", "manufacturer", "kernel", "slice_spacing")


@dataclasses.dataclass(frozen=True)
class EvalSet:
    """One row per volume, sorted by name so that no figure depends on the order of files.

    Attributes:
      names, patients, scans: (n,) of the volumes; the reconstructions of a scan share its report.
      reports: (n,) report texts for display; empty if unknown.
      label_names: of the columns of `labels` and `scores`.
      labels: (n, labels) 0, 1 or -1 (unknown).
      scores: (n, labels) probabilities, NaN if missing; None without scores.
      image, text: (n, d) unit latents of the volumes and their reports, the latter NaN without a
        report; None without latents.
      subgroups: name -> (n,) table cells, empty if unknown.
      source: provenance of model and data, the content of source.json.
      notes: remarks about the input for readers of the figures.
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
    subgroups: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    source: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    notes: tuple[str, ...] = ()

    def __post_init__(self):
        if len(repeated := repeated_names(self.names)):
            raise InputError(f"{repeated[0]}: two volumes of this name")
        if (self.names[:-1] > self.names[1:]).any():
            raise ValueError("names: not sorted")

    def labeled(
        self, column: int
    ) -> tuple[Integer[np.ndarray, " m"], Float[np.ndarray, " m"], Integer[np.ndarray, " m"]]:
        """Of the volumes whose label is known: the labels (0 or 1), their scores, their rows."""
        rows = np.flatnonzero(self.labels[:, column] >= 0)
        return self.labels[rows, column], self.scores[rows, column], rows

    def take(self, rows: np.ndarray) -> "EvalSet":
        """The volumes of `rows`, which must increase."""
        arrays = {
            field.name: value[rows]
            for field in dataclasses.fields(self)
            if isinstance(value := getattr(self, field.name), np.ndarray)
        }
        subgroups = {name: values[rows] for name, values in self.subgroups.items()}
        return dataclasses.replace(self, **arrays, subgroups=subgroups)

    def with_notes(self, *notes: str) -> "EvalSet":
        """The same with more notes."""
        return dataclasses.replace(self, notes=(*self.notes, *notes))


def repeated_names(names: np.ndarray) -> np.ndarray:
    """The names that occur more than once."""
    values, counts = np.unique(names, return_counts=True)
    return values[counts > 1]


def from_rows(
    rows: Sequence[Mapping[str, Any]],
    *,
    labels: Sequence[str],
    source: Mapping[str, Any],
    texts: Sequence[str] | None = None,
    image: Float[np.ndarray, "n d"] | None = None,
    text: Float[np.ndarray, "n d"] | None = None,
) -> EvalSet:
    """The EvalSet of rows of a prepared split (`data_pipelines.shards.read_reports`).

    Args:
      labels: names of the labels of the rows.
      texts: reports for display; None: findings and impressions.
      image, text: latents, in the order of `rows`.
    """
    if texts is None:
        texts = [report_text(row["findings"], row["impressions"]) for row in rows]
    order = np.argsort(np.array([row["volume_name"] for row in rows]), kind="stable")
    rows = [rows[i] for i in order]
    subgroups = [row["strata"] | {"slice_spacing": _slice_spacing(row)} for row in rows]
    return EvalSet(
        names=np.array([row["volume_name"] for row in rows]),
        patients=np.array([row["patient"] for row in rows]),
        scans=np.array([f"{row['patient']}/{row['scan']}" for row in rows]),
        label_names=tuple(labels),
        labels=np.array([row["labels"] for row in rows], np.int8).reshape(len(rows), -1),
        reports=np.array([texts[i] for i in order], object),
        source=source,
        subgroups={name: np.array([row.get(name, "") for row in subgroups]) for name in SUBGROUPS},
        image=None if image is None else image[order],
        text=None if text is None else text[order],
    )


def _slice_spacing(row: Mapping[str, Any]) -> str:
    """Millimeters along z in the source file."""
    return row["provenance"].get("spacing", "").rpartition("x")[2]
