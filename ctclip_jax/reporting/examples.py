"""Examples of the report page: confident cases, sampled retrievals, the t-SNE map of latents."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import numpy as np
from jaxtyping import Float
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.evaluation.metrics.ranking import retrieval_ranks

NUM_NEAREST = 3
PCA_COMPONENTS, PERPLEXITY = 50, 30.0
MIN_MAP_VOLUMES, MAX_MAP_VOLUMES = 4, 5000  # t-SNE of more takes minutes


@dataclass(frozen=True)
class Case:
    """A volume with the most confident prediction of its kind for a label.

    Attributes:
      row: of the volume in the EvalSet.
    """

    label: str
    kind: Literal["true positive", "false positive", "false negative"]
    row: int
    score: float
    threshold: float


@dataclass(frozen=True)
class Retrieval:
    """The result of a search with one report.

    Attributes:
      row: of the volume that the report belongs to.
      rank: of this volume among all; 1 is the nearest.
      nearest: rows of the nearest volumes, nearest first.
    """

    row: int
    rank: int
    nearest: tuple[int, ...]


def confident_cases(eval_set: EvalSet, predictions: Predictions) -> tuple[Case, ...]:
    """Per label the true positive and the false positive with the highest score, and the false
    negative with the lowest, as far as there are any."""
    predicted = predictions.of(eval_set.scores)
    is_decided = ~np.isnan(predictions.thresholds) & ~np.isnan(eval_set.scores)
    cases = []
    for column, label in enumerate(eval_set.label_names):
        scores, truth = eval_set.scores[:, column], eval_set.labels[:, column]
        positive = is_decided[:, column] & predicted[:, column]
        negative = is_decided[:, column] & ~predicted[:, column]
        kinds = (
            ("true positive", positive & (truth == 1), -scores),
            ("false positive", positive & (truth == 0), -scores),
            ("false negative", negative & (truth == 1), scores),
        )
        for kind, is_candidate, order in kinds:
            if is_candidate.any():
                row = int(np.where(is_candidate, order, np.inf).argmin())
                threshold = predictions.thresholds[row, column]
                cases.append(Case(label, kind, row, float(scores[row]), float(threshold)))
    return tuple(cases)


def sample_retrievals(eval_set: EvalSet, count: int) -> tuple[Retrieval, ...]:
    """Searches with `count` reports, evenly spaced over the scans that have one.

    Even spacing instead of a choice by rank: the examples must not flatter the model.
    """
    if eval_set.text is None or eval_set.image is None:
        return ()
    has_text = np.array([bool(report.strip()) for report in eval_set.reports])
    rows = np.flatnonzero(has_text & np.isfinite(eval_set.text).all(axis=1))
    first_of_scan = np.sort(rows[np.unique(eval_set.scans[rows], return_index=True)[1]])
    last = len(first_of_scan) - 1
    places = np.linspace(0, last, min(count, last + 1)).round().astype(int)
    return tuple(_retrieve(eval_set, int(row)) for row in first_of_scan[places])


def _retrieve(eval_set: EvalSet, row: int) -> Retrieval:
    text, names = eval_set.text[[row]], eval_set.names
    # The ranks of the metrics, ties included, so that page and tables agree.
    ranks = retrieval_ranks(text, eval_set.image, query_names=names[[row]], gallery_names=names)
    similarity = eval_set.image.astype(np.float64) @ text[0].astype(np.float64)
    nearest = np.argsort(-similarity, kind="stable")[:NUM_NEAREST]
    return Retrieval(row, int(ranks.rank[0]), tuple(nearest.tolist()))


def rows_with_thumbnails(cases: Iterable[Case], retrievals: Iterable[Retrieval]) -> list[int]:
    """The rows whose slices the page shows, in increasing order."""
    rows = {case.row for case in cases}
    return sorted(rows.union(*(retrieval.nearest for retrieval in retrievals)))


def latent_map(image: Float[np.ndarray, "n d"], seed: int) -> Float[np.ndarray, "n 2"] | None:
    """t-SNE of unit latents after PCA, scaled into [0, 1]; deterministic for a seed.

    Of more than MAX_MAP_VOLUMES an evenly spaced subset is placed, the others are NaN. None for
    fewer than MIN_MAP_VOLUMES, or if all latents are equal.
    """
    size = len(image)
    if size < MIN_MAP_VOLUMES:
        return None
    rows = np.unique(np.linspace(0, size - 1, min(size, MAX_MAP_VOLUMES)).round().astype(int))
    latents = image[rows].astype(np.float64)
    if (latents == latents[0]).all():
        return None
    components = min(PCA_COMPONENTS, *latents.shape)
    reduced = PCA(components, svd_solver="full").fit_transform(latents)
    perplexity = min(PERPLEXITY, (len(rows) - 1) / 3)
    tsne = TSNE(
        perplexity=perplexity, init="pca", learning_rate="auto", random_state=seed, n_jobs=-1
    )
    points = tsne.fit_transform(reduced)
    points -= points.min(axis=0)
    extent = points.max(axis=0)
    # One scale for both axes, the shorter one centered: distances keep their proportions.
    scaled = np.full((size, 2), np.nan)
    scaled[rows] = (points + (extent.max() - extent) / 2) / extent.max()
    return scaled
