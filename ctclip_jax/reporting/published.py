"""The published figures (CT-CLIP, arXiv 2403.17834), to stand beside those of a model."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

from data_pipelines.reports import LABELS

CAVEAT = (
    "No comparison unless this model was measured on the same volumes. The published thresholds "
    "were fitted on the test labels, and the published intervals have no width."
)
CT_CLIP = "CT-CLIP zero-shot"
_METRICS = ("auroc", "f1_weighted", "accuracy", "precision")


@dataclass(frozen=True)
class Benchmark:
    """A set of labels that figures are published for.

    Attributes:
      name: the volumes that they are of.
      detection: model -> mean over the labels of each metric, named as in metrics.json.
      recall: K -> Recall@K of `CT_CLIP`, report to volume.
    """

    name: str
    labels: frozenset[str]
    detection: Mapping[str, Mapping[str, float]]
    recall: Mapping[int, float] = field(default_factory=dict)


def _rows(**models: tuple[float, ...]) -> dict[str, dict[str, float]]:
    names = {"zero_shot": CT_CLIP, "ct_net": "CT-Net", "vocab": "VocabFine", "class_": "ClassFine"}
    return {names[key]: dict(zip(_METRICS, row, strict=False)) for key, row in models.items()}


BENCHMARKS = (
    Benchmark(
        name="CT-RATE valid, 18 labels",
        labels=frozenset(LABELS),
        detection=_rows(
            zero_shot=(0.731, 0.707, 0.668, 0.323),
            ct_net=(0.629, 0.657, 0.617, 0.263),
            vocab=(0.756, 0.738, 0.705),
            class_=(0.756, 0.724, 0.689),
        ),
        recall={5: 0.029, 10: 0.050, 50: 0.180, 100: 0.287},
    ),
    Benchmark(
        name="RAD-ChestCT, 16 labels",
        labels=frozenset(LABELS)
        - {
            "Mosaic attenuation pattern",
            "Arterial wall calcification",
            "Coronary artery wall calcification",
        }
        | {"Calcification"},
        detection=_rows(
            zero_shot=(0.629, 0.637, 0.592),
            ct_net=(0.544, 0.564, 0.517),
            vocab=(0.650, 0.677, 0.636),
            class_=(0.643, 0.644, 0.599),
        ),
    ),
)


def benchmark(labels: Collection[str]) -> Benchmark | None:
    """The benchmark of exactly these labels, in any order."""
    return next((each for each in BENCHMARKS if each.labels == frozenset(labels)), None)
