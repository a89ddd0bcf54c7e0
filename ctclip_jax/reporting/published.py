"""Published results of CT-CLIP (arXiv 2403.17834) and its baselines, for tables beside a model's.

The page says (overview.html) why they are comparable on the same volumes only.
"""

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Any

from data_pipelines.reports import LABELS

CT_CLIP = "CT-CLIP zero-shot"
METRICS = ("auroc", "f1_weighted", "accuracy", "precision")


@dataclass(frozen=True)
class Benchmark:
    """Published results for one set of labels.

    Attributes:
      name: the volumes and labels.
      source: what source.json says of these volumes.
      detection: model -> metric, as in metrics.json -> mean over the labels.
      recall: K -> Recall@K of `CT_CLIP`, report to volume; the gallery size is not published.
    """

    name: str
    source: Mapping[str, str]
    labels: frozenset[str]
    detection: Mapping[str, Mapping[str, float]]
    recall: Mapping[int, float] = field(default_factory=dict)


def _by_metric(rows: Mapping[str, tuple[float, ...]]) -> dict[str, dict[str, float]]:
    return {model: dict(zip(METRICS, row, strict=False)) for model, row in rows.items()}


BENCHMARKS = (
    Benchmark(
        name="CT-RATE valid, 18 labels",
        source={"data_source": "ct_rate", "split": "valid"},
        labels=frozenset(LABELS),
        detection=_by_metric(
            {
                CT_CLIP: (0.731, 0.707, 0.668, 0.323),
                "CT-Net": (0.629, 0.657, 0.617, 0.263),
                "VocabFine": (0.756, 0.738, 0.705),
                "ClassFine": (0.756, 0.724, 0.689),
            }
        ),
        recall={5: 0.029, 10: 0.050, 50: 0.180, 100: 0.287},
    ),
    Benchmark(
        name="RAD-ChestCT, 16 labels",
        source={"data_source": "rad_chestct"},
        labels=frozenset(LABELS)
        - {
            "Mosaic attenuation pattern",
            "Arterial wall calcification",
            "Coronary artery wall calcification",
        }
        | {"Calcification"},
        detection=_by_metric(
            {
                CT_CLIP: (0.629, 0.637, 0.592),
                "CT-Net": (0.544, 0.564, 0.517),
                "VocabFine": (0.650, 0.677, 0.636),
                "ClassFine": (0.643, 0.644, 0.599),
            }
        ),
    ),
)


def find_benchmark(labels: Collection[str], source: Mapping[str, Any]) -> Benchmark | None:
    """The benchmark with exactly these labels, in any order, if `source`, the content of
    source.json, says that the volumes are of its data set."""
    for benchmark in BENCHMARKS:
        if benchmark.labels == frozenset(labels) and benchmark.source.items() <= source.items():
            return benchmark
    return None
