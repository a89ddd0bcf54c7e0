"""Evaluation protocol config: prompts, classifier, thresholds, bootstrap."""

import dataclasses
from collections.abc import Sequence
from typing import Annotated, Any, Literal

import numpy as np
from jaxtyping import Float

from ctclip_jax.common.configs import FractionBelowOne, NonNegativeInt, PositiveInt, Range
from ctclip_jax.inference.classifiers import (
    Classifier,
    ClassifierKind,
    Ensemble,
    Finding,
    PromptPair,
    finding_prompts,
)
from data_pipelines.errors import InputError
from data_pipelines.reports import ReportFormat


@dataclasses.dataclass(frozen=True)
class ProtocolConfig:
    """The keys of configs/evaluation.py.

    Attributes:
      prompts: pairs of templates, that a label is present and that it is not; {} stands for the
        label as written, {lower} for it with a small first letter. Several pairs are an ensemble.
      ensemble: average the 'latents' of several prompts or the 'probabilities' of several pairs.
      classifier: 'zero_shot', by prompts, or 'trained', the head of a fine-tuned model.
      merged_labels: (label, its parts): labels that the data set has as one and the model as
        several; their probability is the greatest of the parts.
      excluded_labels: labels that a second mean leaves out, as other papers do.
      report_format, pool_sentences, max_length: how reports are read; None: as the export says.
      batch_size: volumes encoded at a time.
      dtype: of the large matrix products; None: the model's.
      folds: of patients, over which thresholds are cross-fitted.
      resamples, level, seed: of the bootstrap over patients.
    """

    prompts: tuple[PromptPair, ...]
    ensemble: Ensemble = "latents"
    classifier: ClassifierKind = "zero_shot"
    merged_labels: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("Calcification", ("Arterial wall calcification", "Coronary artery wall calcification")),
    )
    excluded_labels: tuple[str, ...] = ("Medical material", "Lymphadenopathy")
    report_format: ReportFormat | None = None
    pool_sentences: bool | None = None
    max_length: PositiveInt | None = None
    batch_size: PositiveInt = 8
    dtype: Literal["float32", "bfloat16"] | None = None
    folds: Annotated[int, Range(2)] = 5
    resamples: NonNegativeInt = 1000
    level: FractionBelowOne = 0.95
    seed: int = 0

    def __post_init__(self):
        if not self.prompts:
            raise InputError("config.prompts: got none, expected one pair or more")

    def parts_of(self, label: str) -> tuple[str, ...]:
        """The model's labels that `label` is merged from; itself if it is not a merged one."""
        return dict(self.merged_labels).get(label, (label,))

    def findings(self, labels: Sequence[str]) -> list[Finding]:
        """What a zero-shot classifier needs to know for these labels."""
        parts = dict.fromkeys(part for label in labels for part in self.parts_of(label))
        return [finding_prompts(part, self.prompts) for part in parts]

    def scores(
        self, labels: Sequence[str], classifier: Classifier, latents: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "n labels"]:
        """The probability of each label; of a merged label, the greatest of its parts."""
        by_name = dict(zip(classifier.names, classifier.probabilities(latents).T, strict=True))
        parts = [self.parts_of(label) for label in labels]
        if unknown := [part for group in parts for part in group if part not in by_name]:
            raise InputError(f"config.classifier: it does not know the label {unknown[0]!r}")
        merged = [np.max([by_name[part] for part in group], axis=0) for group in parts]
        return np.stack(merged, axis=1)

    def score_metadata(self) -> dict[str, Any]:
        """How scores are computed, for source.json."""
        if self.classifier == "trained":
            return {"scores": self.classifier}
        metadata = {"scores": self.classifier, "prompts": [list(pair) for pair in self.prompts]}
        return metadata | ({"ensemble": self.ensemble} if len(self.prompts) > 1 else {})

    def interval_metadata(self, clusters: str) -> dict[str, Any]:
        """How intervals are computed, for metrics.json."""
        return {
            "by": f"percentiles of a bootstrap over {clusters}",
            "resamples": self.resamples,
            "level": self.level,
            "seed": self.seed,
        }
