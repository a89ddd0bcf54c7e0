"""Losses over the global batch: `loss_fn(outputs, batch) -> (loss, metrics)`, all in float32.

`outputs` come from `CTCLIP.outputs`: unit-length latents `image` (b d) and `text` (k b, d), the k
texts of a volume adjacent; `temperature`, the factor on their similarities; `bias` for the sigmoid
loss; `logits` (b labels) or `prompts` (2 labels, d) for the losses on labels. Under jit the arrays
may be sharded along the batch: the loss is always that of the whole batch.

Labels are 1 present, 0 absent, -1 unknown; unknown labels have no part in the loss.
"""

import dataclasses
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ctclip_jax.common.configs import Fraction, NonNegativeFloat, NonNegativeInt
from ctclip_jax.common.shapes import Array, Float, Int
from ctclip_jax.training.pairwise import MASKED, PairSums, Side, pair_sums, ring_sums

Outputs = dict[str, Array]
LossFn = Callable[[Outputs, dict[str, Array]], tuple[Array, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss, and which pairs of the batch are positives and negatives.

    Attributes:
      name: one of CONTRASTIVE_LOSSES between images and texts; 'labels': cross-entropy of a
        classifier on image latents; 'report_labels': of one on text latents, without volumes;
        'prompts': zero-shot detection by two prompts per label.
      mask_duplicates: volumes of the same scan or with identical reports are excluded as negatives.
      normal_target_share: share of the target of a volume without findings that goes, evenly, to
        the other such volumes of the batch; for the sigmoid loss the probability that two of them
        match. Reads the labels of the training volumes.
      block_size: texts of a device that are compared at a time, so that the similarities of a very
        large batch need not fit into memory; 0: all.
      max_temperature: upper bound of the temperature in training; 0: none.
      label_weight: weight of the classifier's loss beside a contrastive one; 0: none.
      positive_weights: per label, weight of its positives in the classifier's loss; (): all 1.
      prompts: (label is present, label is absent); {} stands for the label.
    """

    name: Literal[
        "softmax", "text_to_image", "decoupled", "sigmoid", "labels", "report_labels", "prompts"
    ]
    mask_duplicates: bool = False
    normal_target_share: Fraction = 0.0
    block_size: NonNegativeInt = 0
    max_temperature: NonNegativeFloat = 0.0
    label_weight: NonNegativeFloat = 0.0
    positive_weights: tuple[float, ...] = ()
    prompts: tuple[str, str] = ("{} is present. ", "{} is not present. ")

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of the batch that the loss reads beside the outputs."""
        duplicates = ("scan", "report") if self.mask_duplicates and self.is_contrastive else ()
        normal = ("normal",) if self.normal_target_share and self.is_contrastive else ()
        return duplicates + normal + (("labels",) if self.reads_labels else ())

    @property
    def is_contrastive(self) -> bool:
        """Whether images are compared with the texts of the batch."""
        return self.name in CONTRASTIVE_LOSSES

    @property
    def reads_texts(self) -> bool:
        """Whether the loss needs the reports of the batch."""
        return self.is_contrastive or self.name == "report_labels"

    @property
    def reads_volumes(self) -> bool:
        """Whether the loss needs the volumes of the batch."""
        return self.name != "report_labels"

    @property
    def has_classifier(self) -> bool:
        """Whether the loss needs a classifier on image latents."""
        return self.name == "labels" or self.label_weight > 0

    @property
    def reads_labels(self) -> bool:
        """Whether the loss needs every label of the training volumes."""
        return self.has_classifier or self.name in ("prompts", "report_labels")


def make_loss(config: LossConfig, mesh: Mesh | None = None) -> LossFn:
    """Returns (outputs, batch) -> (loss, metrics); `config.block_size` needs the `mesh`.

    The batch holds `config.columns`: `scan` and `report` int32 (b), equal for the same scan and for
    identical reports; `normal` bool (b); `labels` int8 (b labels).
    """

    def loss_fn(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        if config.name == "prompts":
            temperature = outputs["temperature"]
            prompts = outputs["prompts"].reshape(-1, 2, outputs["prompts"].shape[-1])
            loss = prompt_loss(outputs["image"], prompts, batch["labels"], temperature=temperature)
            return loss, {"temperature": temperature}
        if config.name in ("labels", "report_labels"):
            logits = outputs["logits" if config.name == "labels" else "report_logits"]
            return classifier_loss(
                logits, batch["labels"], positive_weights=config.positive_weights
            ), {}
        loss, metrics = _contrastive_loss(config, outputs, batch, mesh)
        if config.label_weight:
            metrics["label_loss"] = classifier_loss(
                outputs["logits"], batch["labels"], positive_weights=config.positive_weights
            )
            loss += config.label_weight * metrics["label_loss"]
        return loss, metrics

    return loss_fn


# Contrastive losses: (sums of texts over images, sums of images over texts, share) -> loss.


def softmax_loss(texts: PairSums, images: PairSums, share: float) -> Float[Array, ""]:
    """Symmetric cross-entropy of text against image (CLIP, arXiv 2103.00020)."""
    return (_cross_entropy(texts, share) + _cross_entropy(images, share)) / 2


def text_to_image_loss(texts: PairSums, images: PairSums, share: float) -> Float[Array, ""]:
    """Cross-entropy of every text against the images of the batch.

    The half of the symmetric loss that compares images. A text that mentions one finding of many is
    compared with all images on that finding alone; against other texts it would mostly learn which
    findings tend to be mentioned. There may be k texts per image.
    """
    del images
    return _cross_entropy(texts, share)


def decoupled_loss(texts: PairSums, images: PairSums, share: float) -> Float[Array, ""]:
    """Symmetric cross-entropy without the positive in the denominator (arXiv 2110.06848)."""

    def one_side(sums: PairSums) -> Array:
        # A row whose negatives are all masked has nothing to be compared with.
        has_negatives = sums["negatives_lse"] > MASKED / 2
        return jnp.mean(jnp.where(has_negatives, sums["negatives_lse"] - _target(sums, share), 0.0))

    return (one_side(texts) + one_side(images)) / 2


def sigmoid_loss(texts: PairSums, images: PairSums, share: float) -> Float[Array, ""]:
    """Every pair is a binary classification (SigLIP, arXiv 2303.15343); needs `logit_bias`."""
    del images
    negatives = texts["negatives_softplus"] - share * texts["normal_logits"]
    return jnp.mean(jax.nn.softplus(-texts["positive"]) + negatives)


CONTRASTIVE_LOSSES: dict[str, Callable[[PairSums, PairSums, float], Array]] = {
    "softmax": softmax_loss,
    "text_to_image": text_to_image_loss,
    "decoupled": decoupled_loss,
    "sigmoid": sigmoid_loss,
}


def _contrastive_loss(
    config: LossConfig, outputs: Outputs, batch: dict[str, Array], mesh: Mesh | None
) -> tuple[Array, dict[str, Array]]:
    pair_columns = {name: batch[name] for name in config.columns if name != "labels"}
    text, image = _sides(outputs, pair_columns)
    scalars = {name: outputs[name] for name in ("temperature", "bias") if name in outputs}
    if config.block_size:
        texts, images = ring_sums(text, image, scalars, block_size=config.block_size, mesh=mesh)
    else:
        texts, images = pair_sums(text, image, scalars)
    loss = CONTRASTIVE_LOSSES[config.name](texts, images, config.normal_target_share)
    accuracy = jnp.mean(texts["positive"] >= texts["hardest_negative"])
    return loss, {"text_to_image_accuracy": accuracy, "temperature": outputs["temperature"]}


def _sides(outputs: Outputs, columns: dict[str, Array]) -> tuple[Side, Side]:
    """Texts and images with the columns of their volumes; `pair_id` is equal for positives."""
    num_texts, num_images = len(outputs["text"]), len(outputs["image"])
    if num_texts % num_images:
        raise ValueError(f"got {num_texts} texts for {num_images} images, expected a multiple")
    per_image = {"pair_id": jnp.arange(num_images)} | columns
    per_text = {
        name: jnp.repeat(column, num_texts // num_images) for name, column in per_image.items()
    }
    return {"latents": outputs["text"]} | per_text, {"latents": outputs["image"]} | per_image


def _cross_entropy(sums: PairSums, share: float) -> Float[Array, ""]:
    lse = jnp.logaddexp(sums["negatives_lse"], sums["positive"])
    return jnp.mean(lse - _target(sums, share))


def _target(sums: PairSums, share: float) -> Float[Array, " n"]:
    """The logit of the positive, mixed with those of the other normal volumes."""
    normal_share = share * (sums["num_normal"] > 0)
    normal = sums["normal_logits"] / jnp.maximum(sums["num_normal"], 1.0)
    return (1 - normal_share) * sums["positive"] + normal_share * normal


# Losses on labels.


def classifier_loss(
    logits: Float[Array, "b labels"],
    labels: Int[Array, "b labels"],
    *,
    positive_weights: tuple[float, ...] = (),
) -> Float[Array, ""]:
    """Mean binary cross-entropy over known labels; `positive_weights` per label, (): all 1."""
    weights = jnp.asarray(positive_weights or 1.0, jnp.float32).reshape(1, -1)
    present = weights * jax.nn.softplus(-logits)
    return _mean_over_labeled(jnp.where(labels == 1, present, jax.nn.softplus(logits)), labels)


def prompt_loss(
    image: Float[Array, "b d"],
    prompts: Float[Array, "labels 2 d"],
    labels: Int[Array, "b labels"],
    *,
    temperature: Float[Array, ""],
) -> Float[Array, ""]:
    """Mean squared error of the probability of the true prompt of two (VocabFine, 2403.17834).

    `prompts` are latents of (label is present, label is absent); their probabilities are the
    softmax of their similarities to the volume, as in zero-shot detection.
    """
    margin = temperature * jnp.einsum("bd,ld->bl", image, prompts[:, 0] - prompts[:, 1])
    true_margin = jnp.where(labels == 1, margin, -margin)
    return _mean_over_labeled(jnp.square(jax.nn.sigmoid(-true_margin)), labels)


def _mean_over_labeled(values: Float[Array, "b labels"], labels: Int[Array, "b labels"]) -> Array:
    is_labeled = labels >= 0
    return jnp.sum(jnp.where(is_labeled, values, 0.0)) / jnp.maximum(jnp.sum(is_labeled), 1)
