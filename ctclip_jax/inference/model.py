"""Inference handle: jitted, batched encoding on all local devices."""

import functools
from collections.abc import Callable, Sequence

import jax
import nibabel as nib
import numpy as np
from etils import epath
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float, Float32, Int, Num

from ctclip_jax.checkpoints.run import check_shapes
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.inference import attribution, classifiers, heatmaps
from ctclip_jax.inference.batching import group_by_length, map_batches
from ctclip_jax.inference.calibration import Calibration
from ctclip_jax.inference.classifiers import Classifier, ClassifierKind, Finding
from ctclip_jax.inference.detection import Detection
from ctclip_jax.inference.reference import Reference
from ctclip_jax.inference.volumes import (
    Scan,
    Volumes,
    as_several,
    batches,
    check_volumes,
    scan_names,
)
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.resample import Geometry
from data_pipelines.shard_tasks import PreparedVolume, prepare_scan
from data_pipelines.sources.case import CaseRecord
from data_pipelines.tokenizers import Tokenizer

SYNTHETIC = "the model was trained on phantoms alone: what it says of a patient means nothing"

_encode_image = jax.jit(CTCLIP.encode_image, static_argnums=0)
_encode_text = jax.jit(CTCLIP.encode_text, static_argnums=0)
_patch_features = jax.jit(attribution.patch_features, static_argnums=0)
_normalized_tokens = jax.jit(attribution.normalized_tokens, static_argnums=0)
_attribute = jax.jit(attribution.attribute, static_argnums=0, static_argnames=("relu",))


class Model:
    """A trained CT-CLIP: chest CTs and texts in, numpy float32 arrays out.

    `detect`, `encode_image` and `heatmap` take a path, in any format of `prepare`; a
    `PreparedVolume` or a `CaseRecord`; a list of them; or an array (n, f, h, w) or (f, h, w) on the
    grid of `geometry`, f toward the head, h toward Left, w toward Posterior: floats in [-1, 1]
    (published: HU / 1000), or int16 in steps of 1/16 HU.

    Attributes:
      labels: the 18 findings that are detected by default.
      config: the model's configuration.
      mesh: the devices: each has all weights and a share of every batch.
      variables: parameters and codebook, replicated over the mesh.
      tokenizer: for `encode_text` and `detect`; None if unknown.
      max_length: tokens that texts are truncated to.
      report_format: a `data_pipelines.reports.ReportFormat`, the text that it expects of a report.
      pool_sentences: whether the latent of a report is the mean over its sentences.
      label_informed: whether it was trained with labels, so that its detection is not zero-shot.
      data_sources: of its training shards, as `prepare --source`; empty if unknown.
      calibration: of its probabilities (`python -m ctclip_jax.calibrate`), or None.
      reference: volumes that scores and heatmaps are compared with (the same program), or None.
    """

    labels = LABELS

    def __init__(
        self,
        config: CTCLIPConfig,
        variables: Variables,
        *,
        tokenizer: Tokenizer | None = None,
        max_length: int | None = None,
        report_format: str = "published_inference",
        pool_sentences: bool = False,
        label_informed: bool = False,
        data_sources: Sequence[str] = (),
        calibration: Calibration | None = None,
        reference: Reference | None = None,
        devices: Sequence[jax.Device] | None = None,
    ):
        """Puts `variables`, nested dicts of numpy or jax arrays, on `devices`; None: all here."""
        expected = CTCLIP(config).abstract_variables()
        if "temperature" not in variables["params"]:  # a published image tower, without projections
            expected["params"] = {"image": expected["params"]["image"]}
        check_shapes("variables", variables, expected)
        if tokenizer and tokenizer.vocab_size > config.text.vocab_size:
            raise InputError(
                f"tokenizer: got {tokenizer.vocab_size} tokens,"
                f" expected at most {config.text.vocab_size}, the model's"
            )
        if reference:
            reference.check(dim=config.dim_latent, tokens=(*config.image.grid, config.image.dim))
        self.config = config
        self.tokenizer = tokenizer
        self.max_length = max_length or config.text.max_positions
        self.report_format, self.pool_sentences = report_format, pool_sentences
        self.label_informed = label_informed or "classifier" in variables["params"]
        self.data_sources = tuple(data_sources)
        self.calibration, self.reference = calibration, reference
        devices = jax.local_devices() if devices is None else list(devices)
        self.mesh = make_mesh(MeshConfig(data=-1, fsdp=1), devices=devices)
        self.variables = jax.device_put(variables, NamedSharding(self.mesh, P()))

    def __repr__(self) -> str:
        shape, spacing = self.geometry.shape, self.geometry.spacing
        num_parameters = sum(leaf.size for leaf in jax.tree.leaves(self.variables["params"]))
        return (
            f"Model({self.config.image.tower}, voxels (z, x, y): {shape} of {spacing} mm,"
            f" {len(self.labels)} labels, {num_parameters / 1e6:.1f} M parameters,"
            f" {self.mesh.size} x {self.mesh.devices.flat[0].device_kind})"
        )

    @property
    def notes(self) -> list[str]:
        """What a user must know of everything that it says."""
        return [SYNTHETIC] if self.data_sources == ("phantoms",) else []

    @property
    def geometry(self) -> Geometry:
        """The grid of its volumes: voxels, mm and window (HU)."""
        image = self.config.image
        return Geometry((image.frames, *image.image_size), image.spacing, image.window)

    @property
    def temperature(self) -> float:
        """The factor of the cosine in the logits: exp of the trained parameter."""
        return float(np.exp(self._parameter("temperature")))

    def prepare(self, scan: Scan) -> PreparedVolume:
        """Reads a chest CT (NIfTI, DICOM, NRRD, MetaImage, .npz) onto the model's grid.

        HU, axes and spacing are decided from the data and, for a `CaseRecord`, its tables. The
        `volume` of the result is int16 in steps of 1/16 HU.
        """
        if isinstance(scan, PreparedVolume):
            return scan
        if not isinstance(scan, CaseRecord):
            scan = CaseRecord(volume_name=str(scan), patient="", scan="", paths=(epath.Path(scan),))
        try:
            return prepare_scan(scan, geometry=self.geometry)
        except InputError as error:
            path, message = str(scan.path()), str(error)
            raise InputError(message if path in message else f"{path}: {message}") from error

    def encode_image(self, volumes: Volumes, *, batch_size: int = 1) -> Float32[np.ndarray, "n d"]:
        """Returns the unit latents (n, d) of chest CTs, in any form that a `Model` takes.

        `batch_size` is the number of volumes computed at a time, rounded up to the number of
        devices.
        """
        return self._map_volumes(_encode_image, volumes, batch_size=batch_size)

    def patch_features(self, volumes: Volumes, *, batch_size: int = 1) -> Num[np.ndarray, "n ..."]:
        """Returns the input of `attribute`, so that the image tower runs once for all findings."""
        return self._map_volumes(_patch_features, volumes, batch_size=batch_size)

    def attribute(
        self,
        features: Num[np.ndarray, "n ..."],
        kernel: Float[np.ndarray, "d k"],
        *,
        relu: bool = False,
        batch_size: int = 1,
    ) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n k t h w"]]:
        """Returns the unit latents of `patch_features`, and what each patch adds to
        `latents @ kernel`, or with `relu` to `relu(latents) @ kernel`, minus the baseline if there
        is one (inference/attribution.py)."""

        def compute(model, variables, batch):
            return _attribute(model, variables, batch, kernel, baseline, relu=relu)

        kernel = np.asarray(kernel, np.float32)
        baseline = self.reference and self.reference.normalized_tokens
        return self._map(compute, features, batch_size=batch_size)

    def normalized_tokens(
        self, features: Float[np.ndarray, "n t h w e"], *, batch_size: int = 1
    ) -> tuple[Float32[np.ndarray, "n d"], Float32[np.ndarray, "n t h w e"]]:
        """Returns the unit latents of `patch_features`, and the tokens over the norm of their
        latent, for a `Reference`."""
        return self._map(_normalized_tokens, features, batch_size=batch_size)

    @property
    def attribution_method(self) -> str:
        """How `attribute` works for this model, for captions."""
        method = attribution.method(CTCLIP(self.config))
        if self.reference is None or self.reference.normalized_tokens is None:
            return method
        return f"{method}, minus the mean of {self.reference.source}"

    def encode_text(
        self,
        text: Sequence[str] | Int[np.ndarray, "n l"],
        attention_mask: Int[np.ndarray, "n l"] | None = None,
        *,
        batch_size: int = 32,
    ) -> Float32[np.ndarray, "n d"]:
        """Returns unit latents of texts, or of token ids with their mask (1 token, 0 padding).

        Texts need a tokenizer. `batch_size` is rounded up to the number of devices.
        """
        self._parameter("text_projection")
        if attention_mask is None:
            text, attention_mask = self._tokenize(text)
        input_ids, mask = np.asarray(text, np.int32), np.asarray(attention_mask, np.int32)
        config = self.config.text
        if input_ids.ndim != 2 or not input_ids.size or input_ids.shape != mask.shape:
            raise InputError(
                f"input_ids and attention_mask: got {input_ids.shape} and {mask.shape},"
                " expected one shape (n, length), not empty"
            )
        if not 0 <= input_ids.min() <= input_ids.max() < config.vocab_size:
            raise InputError(
                f"input_ids: got {input_ids.min()} to {input_ids.max()},"
                f" expected 0 to {config.vocab_size - 1}"
            )
        # Padding does not change a latent, so texts of similar length are encoded without it.
        groups = group_by_length(mask)
        longest = max(length for _, length in groups)
        if longest > config.max_positions:
            raise InputError(
                f"input_ids: got {longest} tokens, expected at most {config.max_positions}"
            )
        latents = np.empty((len(mask), self.config.dim_latent), np.float32)
        for rows, length in groups:
            arrays = input_ids[rows, :length], mask[rows, :length]
            latents[rows] = self._map(_encode_text, *arrays, batch_size=batch_size)
        return latents

    def detect(
        self,
        volumes: Volumes,
        *,
        labels: Sequence[str] = LABELS,
        prompts: tuple[str, str] = PROMPTS,
        batch_size: int = 1,
    ) -> Detection:
        """Returns zero-shot probabilities (CT-CLIP, arXiv 2403.17834): the softmax over a pair of
        `prompts`, label present and absent, with {} for the label.

        The result is an array (n, labels) with names: `detect("scan.nii.gz").to_frame()`.
        """
        findings = None  # in the published wording, which alone is calibrated
        if (tuple(labels), tuple(prompts)) != (LABELS, PROMPTS):
            findings = [classifiers.finding_prompts(label, [prompts]) for label in labels]
        classifier, several = self.zero_shot_classifier(findings), as_several(volumes)
        probabilities = classifier.probabilities(self.encode_image(several, batch_size=batch_size))
        return Detection(
            probabilities.astype(np.float32),
            classifier.names,
            scans=scan_names(several),
            calibrated=classifier.calibrate(probabilities),
            ranks=classifier.rank(probabilities),
        )

    def heatmap(
        self, volumes: Volumes, finding: str | Finding
    ) -> nib.Nifti1Image | list[nib.Nifti1Image]:
        """Returns what each patch adds to the logit of a finding, one of `labels` or in your words.

        An image has the grid and affine of its scan, so that viewers overlay it, or of an array
        those of the model; each voxel has the contribution of its patch. Of a list or an array (n,
        f, h, w) it is a list of images.
        """
        if isinstance(finding, str):
            finding = classifiers.finding_prompts(finding)
        classifier = self.zero_shot_classifier([finding])
        description = f"{finding.name}: {self.attribution_method}"

        def image_of(scan: PreparedVolume | np.ndarray) -> nib.Nifti1Image:
            _, contributions = self.attribute(self.patch_features(scan), classifier.kernel)
            prepared = scan if isinstance(scan, PreparedVolume) else None
            return heatmaps.to_nifti(
                contributions[0, 0], prepared, geometry=self.geometry, description=description
            )

        several = as_several(volumes)
        prepared = several if isinstance(several, np.ndarray) else map(self.prepare, several)
        images = [image_of(scan) for scan in prepared]
        return images[0] if isinstance(volumes, Scan) or np.ndim(volumes) == 3 else images

    def zero_shot_classifier(self, findings: Sequence[Finding] | None = None) -> Classifier:
        """Returns the zero-shot classifier of `findings`, whose prompts are encoded here, once.

        None: the 18 labels in the published wording, the only ones that are calibrated.
        """
        calibration = None
        if findings is None:
            findings = [classifiers.finding_prompts(label) for label in LABELS]
            calibration = self._calibration_of("zero_shot")
        return classifiers.zero_shot_classifier(
            findings,
            self.encode_text,
            temperature=self.temperature,
            calibration=calibration,
            reference=self.reference,
        )

    def trained_classifier(self) -> Classifier:
        """Returns the trained head of a fine-tuned model."""
        return classifiers.trained_classifier(
            **self._parameter("classifier"),
            calibration=self._calibration_of("trained"),
            reference=self.reference,
        )

    def label_reports(
        self, texts: Sequence[str], *, batch_size: int = 32
    ) -> Float32[np.ndarray, "n labels"]:
        """Returns the probabilities of the 18 labels by the report classifier of the model."""
        head = self._parameter("report_classifier")
        labeler = classifiers.trained_classifier(**head, relu=False)
        return labeler.probabilities(self.encode_text(texts, batch_size=batch_size))

    def _calibration_of(self, kind: ClassifierKind) -> Calibration | None:
        return self.calibration if self.calibration and self.calibration.is_of(kind) else None

    def _parameter(self, name: str):
        if name not in self.variables["params"]:
            raise InputError(f"this model has no {name}")
        return self.variables["params"][name]

    def _tokenize(self, texts: Sequence[str]) -> tuple[np.ndarray, np.ndarray]:
        if isinstance(texts, str) or not all(isinstance(text, str) for text in texts):
            raise InputError("encode_text: expected a list of texts, or input_ids and their mask")
        if self.tokenizer is None:
            raise InputError("encode_text: no tokenizer; pass load(..., tokenizer='vocab.txt')")
        return self.tokenizer(texts, self.max_length)

    def _map_volumes(self, compute: Callable, volumes: Volumes, *, batch_size: int):
        self._parameter("image_projection")
        size = max(batch_size, self.mesh.size)
        parts = batches(as_several(volumes), self.prepare, size=size)
        checked = (check_volumes(part, self.geometry) for part in parts)
        return np.concatenate([self._map(compute, part, batch_size=size) for part in checked])

    def _map(self, compute: Callable, *arrays: np.ndarray, batch_size: int):
        compute = functools.partial(compute, CTCLIP(self.config), self.variables)
        return map_batches(compute, self.mesh, *arrays, batch_size=batch_size)
