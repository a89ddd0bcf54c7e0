"""A trained CT-CLIP at work: numpy arrays in, numpy arrays out."""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path

import jax
import numpy as np
from etils import epath
from jaxtyping import Float, Float32, Int, Num

from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.trees import flatten
from ctclip_jax.inference import attribution, classifiers
from ctclip_jax.inference.baseline import Reference
from ctclip_jax.inference.batching import LocalDevices, by_length
from ctclip_jax.inference.calibration import Calibration
from ctclip_jax.inference.classifiers import Classifier, ClassifierKind, Finding
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.resample import STEPS_PER_HU, Geometry
from data_pipelines.shard_tasks import PreparedVolume, prepare_scan
from data_pipelines.sources.case import CaseRecord
from data_pipelines.tokenizers import Tokenizer

_encode_image = jax.jit(CTCLIP.encode_image, static_argnums=0)
_encode_text = jax.jit(CTCLIP.encode_text, static_argnums=0)
_evidence = jax.jit(attribution.evidence, static_argnums=0)
_unit_tokens = jax.jit(attribution.unit_tokens, static_argnums=0)
_contributions = jax.jit(attribution.contributions, static_argnums=0, static_argnames=("positive",))


class Model:
    """A CT-CLIP on all local devices: numpy arrays in, numpy float32 arrays out.

    Work is jitted, done in batches, and each batch is cut over the devices.

    Attributes:
      config: the model's configuration.
      variables: its parameters and codebook, replicated over the local devices.
      tokenizer: what `encode_text` and `detect` use on texts; None if unknown.
      max_length: the most tokens of a text.
      report, pool_sentences: how it reads reports (`ctclip_jax.training.config.EvaluationConfig`).
      label_informed: whether it was trained with labels, so that its detection is not zero-shot.
      calibration: what its probabilities are worth (`python -m ctclip_jax.calibrate`), if known.
      reference: what heatmaps are held against (`python -m ctclip_jax.reference`), if there is one.
    """

    def __init__(
        self,
        config: CTCLIPConfig,
        variables: Variables,
        *,
        tokenizer: Tokenizer | None = None,
        max_length: int | None = None,
        report: str = "published_inference",
        pool_sentences: bool = False,
        label_informed: bool = False,
        calibration: Calibration | None = None,
        reference: Reference | None = None,
    ):
        """Puts `variables`, nested dicts of numpy or jax arrays, on the local devices.

        Raises InputError when their names or shapes are not those of `config`.
        """
        _check(variables, config)
        if tokenizer and tokenizer.vocab_size > config.text.vocab_size:
            raise InputError(
                f"the tokenizer has {tokenizer.vocab_size} tokens,"
                f" the model {config.text.vocab_size}"
            )
        self.config = config
        self.tokenizer = tokenizer
        self.max_length = max_length or config.text.max_positions
        self.report, self.pool_sentences = report, pool_sentences
        tokens = (*config.image.grid, config.image.dim)
        if reference and reference.unit_tokens.shape != tokens:
            raise InputError(f"a reference of {reference.unit_tokens.shape}, wanted {tokens}")
        self.calibration, self.reference = calibration, reference
        self.label_informed = label_informed or "classifier" in variables["params"]
        self._devices = LocalDevices()
        self.variables = self._devices.replicate(variables)

    @property
    def geometry(self) -> Geometry:
        """The grid of the volumes that it takes: voxels, mm and window."""
        image = self.config.image
        return Geometry((image.frames, *image.image_size), image.spacing, image.window)

    @property
    def temperature(self) -> float:
        """The factor of the cosine in the logits: exp of the trained parameter."""
        return float(np.exp(self._parameter("temperature")))

    def prepare(self, scan: str | Path | CaseRecord) -> PreparedVolume:
        """Reads a chest CT, NIfTI, a DICOM folder or .npz, onto the grid that the model takes.

        HU, axes and spacing come from the data and, for a `CaseRecord`, from its tables.
        The `volume` of what is returned is int16 in steps of 1/16 HU.

        Raises InputError, which names the file, if it cannot be used.
        """
        if not isinstance(scan, CaseRecord):
            scan = CaseRecord(volume_name=str(scan), patient="", scan="", paths=(epath.Path(scan),))
        try:
            found = prepare_scan(scan, geometry=self.geometry)
        except InputError as error:
            path, told = str(scan.path()), str(error)
            raise InputError(told if path in told else f"{path}: {told}") from error
        steps = STEPS_PER_HU // found.steps_per_hu
        return dataclasses.replace(
            found, volume=found.volume * np.int16(steps), steps_per_hu=STEPS_PER_HU
        )

    def encode_image(
        self, volumes: Num[np.ndarray, "n f h w"], *, batch_size: int = 1
    ) -> Float32[np.ndarray, "n d"]:
        """Returns the unit latents of CT volumes.

        Args:
          volumes: (n, f, h, w) or (n, 1, f, h, w); f toward the head, h toward Left, w toward
            Posterior; floating in [-1, 1] (published: HU / 1000), or int16 in steps of 1/16 HU.
          batch_size: volumes computed at a time, rounded up to the number of devices.
        """
        return self._in_batches(_encode_image, self._volumes(volumes), batch_size=batch_size)

    def evidence(
        self, volumes: Num[np.ndarray, "n f h w"], *, batch_size: int = 1
    ) -> Num[np.ndarray, "n ..."]:
        """Returns what `explain` takes of volumes: the work of the image tower, done once."""
        return self._in_batches(_evidence, self._volumes(volumes), batch_size=batch_size)

    def explain(
        self,
        evidence: Num[np.ndarray, "n ..."],
        kernel: Float[np.ndarray, "d k"],
        *,
        positive: bool = False,
        batch_size: int = 1,
    ) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n k t h w"]]:
        """Returns the unit latents of the volumes of `evidence`, and what each of their patches
        adds to `latents @ kernel`, or with `positive` to `relu(latents) @ kernel`
        (inference/attribution.py); less what it adds to those of the reference, if there is one."""

        def encode(model, variables, batch):
            return _contributions(model, variables, batch, kernel, reference, positive=positive)

        kernel = np.asarray(kernel, np.float32)
        reference = self.reference and self.reference.unit_tokens
        return self._in_batches(encode, evidence, batch_size=batch_size)

    def unit_tokens(
        self, evidence: Float[np.ndarray, "n t h w e"], *, batch_size: int = 1
    ) -> Float32[np.ndarray, "n t h w e"]:
        """Returns what a reference is the mean of (`attribution.unit_tokens`)."""
        return self._in_batches(_unit_tokens, evidence, batch_size=batch_size)

    @property
    def attribution_method(self) -> str:
        """What `explain` makes of this tower, in words."""
        how = attribution.method(CTCLIP(self.config))
        return f"{how}, against the mean of {self.reference.of}" if self.reference else how

    def _volumes(self, volumes: Num[np.ndarray, "n f h w"]) -> Num[np.ndarray, "n f h w"]:
        self._parameter("image_projection")
        volumes = np.asarray(volumes)
        if volumes.ndim == 5 and volumes.shape[1] == 1:
            volumes = volumes[:, 0]
        expected = (self.config.image.frames, *self.config.image.image_size)
        if volumes.ndim != 4 or volumes.shape[1:] != expected:
            shape = ", ".join(map(str, ("n", *expected)))
            raise InputError(f"volumes: expected shape ({shape}), got {volumes.shape}")
        if volumes.dtype != np.int16 and not np.issubdtype(volumes.dtype, np.floating):
            raise InputError(f"volumes: expected floating or int16, got {volumes.dtype}")
        return volumes

    def encode_text(
        self,
        text: Sequence[str] | Int[np.ndarray, "n l"],
        attention_mask: Int[np.ndarray, "n l"] | None = None,
        *,
        batch_size: int = 32,
    ) -> Float32[np.ndarray, "n d"]:
        """Returns the unit latents of texts, or of token ids with their mask (1 token, 0 padding).

        Texts need a tokenizer. `batch_size` is rounded up to the number of devices.
        """
        self._parameter("text_projection")
        if attention_mask is None:
            text, attention_mask = self._tokenize(text)
        input_ids, mask = np.asarray(text, np.int32), np.asarray(attention_mask, np.int32)
        sizes = self.config.text
        if input_ids.ndim != 2 or not input_ids.size or input_ids.shape != mask.shape:
            raise InputError(
                f"input_ids and attention_mask: expected one shape (n, length), not empty,"
                f" got {input_ids.shape} and {mask.shape}"
            )
        if not 0 <= input_ids.min() <= input_ids.max() < sizes.vocab_size:
            raise InputError(f"input_ids: expected 0 to {sizes.vocab_size - 1}, got others")
        # Padding changes no latent, so texts of like length go together, without their padding.
        groups = by_length(mask)
        longest = max(length for _, length in groups)
        if longest > sizes.max_positions:
            raise InputError(f"input_ids: {longest} tokens, the model takes {sizes.max_positions}")
        latents = np.empty((len(mask), self.config.dim_latent), np.float32)
        for rows, length in groups:
            cut = input_ids[rows, :length], mask[rows, :length]
            latents[rows] = self._in_batches(_encode_text, *cut, batch_size=batch_size)
        return latents

    def detect(
        self,
        volumes: Num[np.ndarray, "n f h w"],
        *,
        labels: Sequence[str] = LABELS,
        prompts: tuple[str, str] = PROMPTS,
        batch_size: int = 1,
    ) -> Float32[np.ndarray, "n labels"]:
        """Returns zero-shot probabilities (CT-CLIP, arXiv 2403.17834).

        The softmax over two prompts, that a label is present and that it is not (`prompts`, with {}
        for the label). Every volume is encoded once for all labels.
        """
        findings = [classifiers.finding_prompts(label, [prompts]) for label in labels]
        image = self.encode_image(volumes, batch_size=batch_size)
        return self.zero_shot_classifier(findings).probabilities(image).astype(np.float32)

    def zero_shot_classifier(self, findings: Sequence[Finding] | None = None) -> Classifier:
        """Returns the zero-shot classifier of `findings`, whose prompts are encoded here, once.

        None: the 18 labels in the published wording, the only ones that are calibrated.
        """
        calibration = None
        if findings is None:
            findings = [classifiers.finding_prompts(label) for label in LABELS]
            calibration = self._calibration("zero_shot")
        return classifiers.zero_shot_classifier(
            findings, self.encode_text, temperature=self.temperature, calibration=calibration
        )

    def trained_classifier(self) -> Classifier:
        """Returns the trained head of a fine-tuned model."""
        return classifiers.trained_classifier(
            **self.classifier, calibration=self._calibration("trained")
        )

    def _calibration(self, kind: ClassifierKind) -> Calibration | None:
        return self.calibration if self.calibration and self.calibration.scores == kind else None

    def label_reports(
        self, texts: Sequence[str], *, batch_size: int = 32
    ) -> Float32[np.ndarray, "n labels"]:
        """Returns the probabilities of the 18 labels that a report labeler reads in `texts`."""
        labeler = classifiers.trained_classifier(**self._head("report_classifier"), relu=False)
        return labeler.probabilities(self.encode_text(texts, batch_size=batch_size))

    @property
    def classifier(self) -> dict[str, np.ndarray]:
        """`kernel` (d, labels) and `bias` (labels,) of the trained classifier."""
        return self._head("classifier")

    def _head(self, name: str) -> dict[str, np.ndarray]:
        return {part: np.asarray(array) for part, array in self._parameter(name).items()}

    def _parameter(self, name: str):
        if name not in self.variables["params"]:
            raise InputError(f"this model has no {name}")
        return self.variables["params"][name]

    def _tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError("encode_text: expected a list of texts, or input_ids and their mask")
        if self.tokenizer is None:
            raise InputError(
                "encode_text: texts need a tokenizer: load(..., tokenizer='vocab.txt')"
            )
        return self.tokenizer(texts, self.max_length)

    def _in_batches(self, encode: Callable, *arrays: np.ndarray, batch_size: int):
        compute = functools.partial(encode, CTCLIP(self.config), self.variables)
        return self._devices.in_batches(compute, *arrays, batch_size=batch_size)


def _check(variables: Variables, config: CTCLIPConfig) -> None:
    expected = flatten(CTCLIP(config).abstract_variables())
    given = flatten(variables)
    if "params/temperature" not in given:
        expected = {
            name: leaf
            for name, leaf in expected.items()
            if name.startswith(("params/image/", "codebook/"))
        }
    problems = [f"missing {name}" for name in sorted(expected.keys() - given.keys())]
    problems += [f"unexpected {name}" for name in sorted(given.keys() - expected.keys())]
    problems += [
        f"{name} of shape {given[name].shape} instead of {leaf.shape}"
        for name, leaf in expected.items()
        if name in given and given[name].shape != leaf.shape
    ]
    if problems:
        raise InputError(f"variables do not fit the model: {', '.join(problems)}")
