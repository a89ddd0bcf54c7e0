"""Findings in chest CTs: their probabilities, and what each patch of a volume adds to them.

By prompts (zero-shot) or by a trained classifier (ClassFine, LiPro), the logit of a finding is
linear in the latent of the volume, or in its positive part: one `Detector` serves both.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float32, Num

from ctclip_jax.inference.calibration import Calibration
from ctclip_jax.inference.load import Model
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS, prompt_text
from data_pipelines.sources.tables import read_table


@dataclasses.dataclass(frozen=True)
class Finding:
    """A finding, and the two texts that say it is present and that it is not."""

    name: str
    present: str
    absent: str


def worded(name: str, prompts: tuple[str, str] = PROMPTS) -> Finding:
    """The finding `name` in the wording of `prompts`, with {} for the name."""
    present, absent = (prompt_text(prompt, name) for prompt in prompts)
    return Finding(name, present, absent)


def read_findings(path: Path) -> list[Finding]:
    """Findings of a table, CSV or .jsonl, with a column `finding` and, where the wording of the
    published prompts does not do, `present` and `absent`.

    Raises:
      InputError: no such table, no finding in it, or a row with one of the two texts alone.
    """
    table = read_table(path, key="finding")
    for name, fault in table.faults.items():
        raise InputError(f"{path}: {name}: {fault}")
    found = []
    for name, row in table.rows.items():
        texts = row.get("present", ""), row.get("absent", "")
        if any(texts) and not all(texts):
            raise InputError(f"{path}: {name}: needs both present and absent, or neither")
        found.append(Finding(name, *texts) if all(texts) else worded(name))
    if not found:
        raise InputError(f"{path}: no finding in it")
    return found


@dataclasses.dataclass(frozen=True)
class Detection:
    """What was found in n volumes.

    `calibrated` are the probabilities that the model's calibration makes of `probabilities`, NaN
    for findings that it does not know; None without one.
    """

    names: tuple[str, ...]
    latents: Float32[np.ndarray, "n d"]
    probabilities: Float32[np.ndarray, "n k"]
    calibrated: Float32[np.ndarray, "n k"] | None


@dataclasses.dataclass(frozen=True)
class Detector:
    """Logits `latents @ kernel + bias`, or of `relu(latents)` where `positive`, of a model."""

    model: Model
    names: tuple[str, ...]
    kernel: Float32[np.ndarray, "d k"]
    bias: Float32[np.ndarray, " k"]
    positive: bool
    calibration: Calibration | None

    def detect(self, volumes: Num[np.ndarray, "n f h w"], *, batch_size: int = 1) -> Detection:
        """Encodes every volume once, for all findings."""
        return self.read(self.model.encode_image(volumes, batch_size=batch_size))

    def explain(
        self, features: Num[np.ndarray, "n ..."], *, batch_size: int = 1
    ) -> tuple[Detection, Float32[np.ndarray, "n k t h w"]]:
        """Of `Model.patch_features`, also what each patch adds to the logit of each finding.

        Where they are exact, their sum and the bias are the logit; of a model with a reference,
        their sum is the logit less that of the reference, of which a classifier then reads the
        numbers that it reads of the volume.
        """
        latents, contributions = self.model.attribute(
            features, self.kernel, relu=self.positive, batch_size=batch_size
        )
        return self.read(latents), contributions

    def read(self, latents: Float32[np.ndarray, "n d"]) -> Detection:
        """What the latents of volumes say."""
        logits = (np.maximum(latents, 0) if self.positive else latents) @ self.kernel + self.bias
        probabilities = (0.5 * (1 + np.tanh(logits / 2))).astype(np.float32)
        calibrated = self.calibration and self.calibration.apply(self.names, probabilities)
        return Detection(self.names, latents, probabilities, calibrated)


def zero_shot_classifier(model: Model, findings: Sequence[Finding] | None = None) -> Detector:
    """Zero-shot detection (CT-CLIP, arXiv 2403.17834); the texts are encoded here, once.

    `findings` are the 18 labels in the published wording if None: only they are calibrated.
    """
    published = findings is None
    if published:
        findings = [worded(label) for label in LABELS]
    texts = [text for finding in findings for text in (finding.present, finding.absent)]
    text = model.encode_text(texts).reshape(len(findings), 2, -1)
    kernel = (model.temperature * (text[:, 0] - text[:, 1])).T
    return Detector(
        model=model,
        names=tuple(finding.name for finding in findings),
        kernel=kernel.astype(np.float32),
        bias=np.zeros(len(findings), np.float32),
        positive=False,
        calibration=_calibration(model, "zero_shot") if published else None,
    )


def trained_classifier(model: Model) -> Detector:
    """Detection by the trained classifier of a fine-tuned model. Raises InputError without one."""
    classifier = model.classifier
    if len(classifier["bias"]) != len(LABELS):
        raise InputError(f"a classifier of {len(classifier['bias'])} labels, not of {len(LABELS)}")
    return Detector(
        model=model,
        names=LABELS,
        kernel=np.asarray(classifier["kernel"], np.float32),
        bias=np.asarray(classifier["bias"], np.float32),
        positive=True,
        calibration=_calibration(model, "classifier"),
    )


def _calibration(model: Model, scores: str) -> Calibration | None:
    found = model.calibration
    return found if found and found.scores == scores else None
