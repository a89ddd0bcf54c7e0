"""How figures are made of a study: everything that a reader of them may ask."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from data_pipelines.errors import InputError

ENSEMBLES = ("latents", "probabilities")
SCORES = ("zero_shot", "classifier")


@dataclasses.dataclass(frozen=True)
class ProtocolConfig:
    """What a file such as configs/evaluation.py says.

    Attributes:
      prompts: pairs of wordings, that a label is present and that it is not; {} stands for the
        label as it is written, {lower} for it with a small first letter. Several are an ensemble.
      ensemble: 'latents': the mean of their latents is the prompt; 'probabilities': the mean of
        their probabilities is the score.
      scores: 'zero_shot', by prompts; 'classifier', by the trained classifier of the model.
      combined: labels that are several of the model's: (label, its parts); the greatest counts.
      left_out: labels that a second mean leaves out, as other papers do.
      report, pool_sentences, max_length: how reports are read; None: as the model's export says.
      batch_size: volumes encoded at a time.
      dtype: of the large matrix products; None: the model's.
      folds: of patients, over which thresholds are cross-fitted.
      resamples, level, seed: of the bootstrap over patients.
    """

    prompts: tuple[tuple[str, str], ...]
    ensemble: str = "latents"
    scores: str = "zero_shot"
    combined: tuple[tuple[str, tuple[str, ...]], ...] = (
        ("Calcification", ("Arterial wall calcification", "Coronary artery wall calcification")),
    )
    left_out: tuple[str, ...] = ("Medical material", "Lymphadenopathy")
    report: str | None = None
    pool_sentences: bool | None = None
    max_length: int | None = None
    batch_size: int = 8
    dtype: str | None = None
    folds: int = 5
    resamples: int = 1000
    level: float = 0.95
    seed: int = 0

    def parts_of(self, label: str) -> tuple[str, ...]:
        """The labels of the model that `label` is made of: itself, if it is not a combined one."""
        return dict(self.combined).get(label, (label,))

    def combine(
        self, labels: Sequence[str], score: Callable[[str], Float[np.ndarray, " n"]]
    ) -> Float[np.ndarray, "n labels"]:
        """The scores of labels from those of their parts, the greatest of which counts."""
        parts = [[score(part) for part in self.parts_of(label)] for label in labels]
        return np.stack([np.max(each, axis=0) for each in parts], axis=1)

    def __post_init__(self):
        for name, value, fits, wanted in (
            ("ensemble", self.ensemble, self.ensemble in ENSEMBLES, " or ".join(ENSEMBLES)),
            ("scores", self.scores, self.scores in SCORES, " or ".join(SCORES)),
            ("prompts", self.prompts, len(self.prompts) > 0, "one pair or more"),
            ("batch_size", self.batch_size, self.batch_size >= 1, "1 or more"),
            ("folds", self.folds, self.folds >= 2, "2 or more"),
            ("resamples", self.resamples, self.resamples >= 0, "0 or more"),
            ("level", self.level, 0 < self.level < 1, "between 0 and 1"),
        ):
            if not fits:
                raise InputError(f"config.{name}: {value}, wanted {wanted}")
