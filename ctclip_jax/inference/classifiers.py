"""Classifiers: probabilities of findings from volume latents, by text prompts or a trained head.

Both are linear: a zero-shot classifier (CT-CLIP, arXiv 2403.17834) weighs the latent by the
difference of two prompts, that a finding is present and that it is not; a trained head (ClassFine,
LiPro) reads the positive part of the latent. No other module turns a latent into a probability.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
import pandas as pd
from einops import rearrange
from jaxtyping import Float, Float32

from ctclip_jax.inference.calibration import Calibration
from ctclip_jax.inference.reference import Reference
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS, prompt_text
from data_pipelines.sources.tables import read_table, warn_of_unknown_columns

ClassifierKind = Literal["zero_shot", "trained"]
Ensemble = Literal["latents", "probabilities"]
PromptPair = tuple[str, str]  # present, absent


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding and the texts that say it is present and absent; several pairs are an ensemble."""

    name: str
    prompts: tuple[PromptPair, ...]


def finding_prompts(name: str, templates: Sequence[PromptPair] = (PROMPTS,)) -> Finding:
    """The finding in the wording of prompt templates such as "{} is present."."""
    pairs = (tuple(prompt_text(template, name) for template in pair) for pair in templates)
    return Finding(name, tuple(pairs))


def read_findings(path: Path, *, encoding: str = "") -> list[Finding]:
    """Reads a table: a column `finding` and, for findings that the published prompts do not fit,
    columns `present` and `absent`. `encoding`: of a table that is not UTF-8."""
    columns = ("finding", "present", "absent")
    table = read_table(path, key="finding", optional=columns, encoding=encoding)
    warn_of_unknown_columns(path, table, columns)
    for name, fault in table.faults.items():
        raise InputError(f"{path}: {name}: {fault}")
    findings = []
    for name, row in table.rows.items():
        pair = row.get("present", ""), row.get("absent", "")
        if any(pair) and not all(pair):
            raise InputError(f"{path}: {name}: needs both present and absent, or neither")
        findings.append(Finding(name, (pair,)) if all(pair) else finding_prompts(name))
    if not findings:
        raise InputError(f"{path}: no findings")
    return findings


def prompt_texts(findings: Sequence[Finding]) -> list[str]:
    """The distinct texts that `zero_shot_classifier` encodes."""
    texts = (text for finding in findings for pair in finding.prompts for text in pair)
    return list(dict.fromkeys(texts))


@dataclasses.dataclass(frozen=True)
class Classifier:
    """Probabilities `sigmoid(latents @ kernel + bias)`, computed in the precision of the kernel.

    Attributes:
      names: the k findings.
      kernel: (d, k), or (pairs, d, k) of an ensemble whose probabilities are averaged.
      bias: (k,).
      relu: the kernel multiplies `relu(latents)`.
      calibration: of these probabilities, if the model has one.
      reference: volumes whose probabilities they are compared with, if the model has any.
    """

    names: tuple[str, ...]
    kernel: Float[np.ndarray, "*pairs d k"]
    bias: Float[np.ndarray, " k"]
    relu: bool = False
    calibration: Calibration | None = None
    reference: Reference | None = None

    def probabilities(self, latents: Float[np.ndarray, "n d"]) -> Float[np.ndarray, "n k"]:
        """The probability of each finding, from unit latents of volumes."""
        features = np.maximum(latents, 0) if self.relu else latents
        logits = features.astype(self.kernel.dtype) @ self.kernel + self.bias
        # The sigmoid by tanh, which does not overflow.
        probabilities = 0.5 * (1 + np.tanh(logits / 2))
        return probabilities if self.kernel.ndim == 2 else probabilities.mean(axis=0)

    def calibrate(
        self, probabilities: Float[np.ndarray, "n k"]
    ) -> Float32[np.ndarray, "n k"] | None:
        """Calibrated `probabilities`, NaN for findings without a curve; None if not calibrated."""
        return self.calibration and self.calibration.apply(self.names, probabilities)

    @property
    def thresholds(self) -> Float[np.ndarray, " k"] | None:
        """The probability above which a finding counts as present, NaN for findings without one;
        None if not calibrated."""
        return self.calibration and self.calibration.thresholds(self.names)

    def rank(self, probabilities: Float[np.ndarray, "n k"]) -> Float[np.ndarray, "n k"] | None:
        """The share of the reference volumes with a lower probability; None without a reference."""
        if self._reference_probabilities is None:
            return None
        return (self._reference_probabilities[:, None] < probabilities[None]).mean(axis=0)

    @property
    def usual(self) -> Float[np.ndarray, " k"] | None:
        """The median probability of the reference volumes; None without a reference."""
        if self._reference_probabilities is None:
            return None
        return np.median(self._reference_probabilities, axis=0)

    def tables(self, latents: Float[np.ndarray, "n d"]) -> list[pd.DataFrame]:
        """For each volume a row per finding: the column `probability` and, where the model has
        them, `calibrated`, `rank`, `usual` and `threshold`."""
        probabilities = self.probabilities(latents)
        columns = {
            "probability": probabilities,
            "calibrated": self.calibrate(probabilities),
            "rank": self.rank(probabilities),
            "usual": self.usual,
            "threshold": self.thresholds,
        }
        columns = {
            name: np.broadcast_to(values, probabilities.shape)
            for name, values in columns.items()
            if values is not None
        }
        return [
            pd.DataFrame({name: values[row] for name, values in columns.items()}, index=self.names)
            for row in range(len(probabilities))
        ]

    @functools.cached_property
    def _reference_probabilities(self) -> Float[np.ndarray, "m k"] | None:
        if self.reference is None or self.reference.latents is None:
            return None
        return self.probabilities(self.reference.latents)


def zero_shot_classifier(
    findings: Sequence[Finding],
    encode_text: Callable[[list[str]], Float[np.ndarray, "m d"]],
    *,
    temperature: float,
    ensemble: Ensemble = "latents",
    calibration: Calibration | None = None,
    reference: Reference | None = None,
) -> Classifier:
    """Zero-shot: the softmax over two prompts of temperature * cosine.

    Args:
      findings: with equally many prompt pairs each.
      encode_text: texts to unit latents; called once, with `prompt_texts(findings)`.
      temperature: the factor of the cosine, exp of the trained parameter.
      ensemble: of several prompt pairs, average the latents or the probabilities.
    """
    texts = prompt_texts(findings)
    # float64: float32 probabilities would round to ties, which change AUROC.
    latents = dict(zip(texts, np.asarray(encode_text(texts), np.float64), strict=True))
    pairs = np.array([[[latents[t] for t in pair] for pair in f.prompts] for f in findings])
    if ensemble == "latents":
        mean = pairs.mean(axis=1, keepdims=True)
        pairs = mean / np.linalg.norm(mean, axis=-1, keepdims=True)
    present, absent = rearrange(pairs, "k pairs two d -> two pairs d k")
    kernel = temperature * (present - absent)
    return Classifier(
        names=tuple(finding.name for finding in findings),
        kernel=kernel[0] if len(kernel) == 1 else kernel,
        bias=np.zeros(len(findings)),
        calibration=calibration,
        reference=reference,
    )


def trained_classifier(
    kernel: Float[np.ndarray, "d k"],
    bias: Float[np.ndarray, " k"],
    *,
    relu: bool = True,
    calibration: Calibration | None = None,
    reference: Reference | None = None,
) -> Classifier:
    """The trained head of a fine-tuned model, which knows the 18 labels."""
    if len(bias) != len(LABELS):
        raise InputError(f"trained classifier: got {len(bias)} labels, expected {len(LABELS)}")
    return Classifier(LABELS, np.asarray(kernel), np.asarray(bias), relu, calibration, reference)
