"""Which volumes a page shows: rows of a study; what they look like is the caller's to read."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.evaluation.metrics.ranking import find

NEAREST = 3
TRUE_POSITIVE, FALSE_POSITIVE, FALSE_NEGATIVE = "true positive", "false positive", "false negative"


@dataclass(frozen=True)
class Case:
    """The volume `row` that a model is most sure of, rightly or not, by `kind`, for a label."""

    label: str
    kind: str
    row: int


@dataclass(frozen=True)
class Retrieval:
    """What the report of volume `row` finds.

    Attributes:
      rank: of its own volume among all; 1 is the nearest.
      nearest: the rows of the volumes nearest to it, the nearest first.
    """

    row: int
    rank: int
    nearest: tuple[int, ...]


def confident(study: EvalSet, predictions: Predictions) -> tuple[Case, ...]:
    """For each label the true positive and the false positive of the highest score, and the false
    negative of the lowest; fewer where there is none."""
    predicted = predictions.of(study.scores)
    judged = ~np.isnan(predictions.thresholds) & ~np.isnan(study.scores)
    found = []
    for column, label in enumerate(study.label_names):
        scores, truth = study.scores[:, column], study.labels[:, column]
        hit, known = predicted[:, column], judged[:, column]
        kinds = (
            (TRUE_POSITIVE, known & hit & (truth == 1), -scores),
            (FALSE_POSITIVE, known & hit & (truth == 0), -scores),
            (FALSE_NEGATIVE, known & ~hit & (truth == 1), scores),
        )
        for kind, those, order in kinds:
            if those.any():
                found.append(Case(label, kind, int(np.where(those, order, np.inf).argmin())))
    return tuple(found)


def spread(study: EvalSet, count: int) -> tuple[Retrieval, ...]:
    """What `count` reports find; they are spread evenly over the scans that have a report, so that
    none is chosen by how well it does."""
    if study.text is None or study.image is None:
        return ()
    shown = np.array([bool(report.strip()) for report in study.reports])
    known = np.flatnonzero(shown & np.isfinite(study.text).all(axis=1))
    rows = np.sort(known[np.unique(study.scans[known], return_index=True)[1]])
    places = np.linspace(0, len(rows) - 1, min(count, len(rows))).round().astype(int)
    return tuple(_retrieve(study, int(row)) for row in rows[places])


def _retrieve(study: EvalSet, row: int) -> Retrieval:
    text, names = study.text[[row]], study.names
    found = find(text, study.image, query_names=names[[row]], gallery_names=names)
    similarity = study.image.astype(np.float64) @ text[0].astype(np.float64)
    nearest = np.argsort(-similarity, kind="stable")[:NEAREST]
    return Retrieval(row, int(found.rank[0]), tuple(nearest.tolist()))


def rows(cases: Iterable[Case], retrievals: Iterable[Retrieval]) -> list[int]:
    """The rows that are shown, in increasing order: those to read pictures of."""
    shown = {case.row for case in cases}
    return sorted(shown.union(*(retrieval.nearest for retrieval in retrievals)))
