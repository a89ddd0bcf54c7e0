"""Losses over the global batch: `loss_fn(outputs, batch) -> (loss, metrics)`.

`outputs` holds unit-length latents `image` (b d) and `text` (k b, d), the k texts of a volume
together, `temperature` (the factor on their similarities) and, for the sigmoid loss, `bias`; for
the losses of labels `logits` (b labels) or `prompts` (labels 2 d). Under jit the arrays may be
sharded along the batch: the loss is that of the whole batch. All of it is float32.
"""

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from ctclip_jax.common.shapes import Array, Float
from ctclip_jax.training.label_losses import classifier_loss, prompt_loss
from ctclip_jax.training.pairwise import MASKED, Side, Sums, pair_sums, ring_sums

Outputs = dict[str, Array]
LossFn = Callable[[Outputs, dict[str, Array]], tuple[Array, dict[str, Array]]]


@dataclasses.dataclass(frozen=True)
class LossConfig:
    """The loss, and which pairs of the batch count as what.

    Attributes:
      name: in LOSSES, of images and their texts; 'labels', of a classifier on the image latents;
        'report_labels', of one on those of the reports, volumes unseen; or 'prompts', of zero-shot
        detection by two prompts for each label.
      mask_twins: two volumes of one scan, or of identical reports, are no negatives of each other.
      normal_share: of the target of a volume without any finding, the part that it gives to the
        other such volumes of the batch in equal shares; for the sigmoid loss the probability that
        two of them match. It reads the labels of the training volumes.
      rows: texts of a device that are compared at a time, so that the similarities of a very large
        batch need not lie in memory at once; 0: all.
      max_temperature: the largest factor on the similarities that training may reach; 0: any.
      label_weight: of the loss of the classifier beside one of images and texts; 0: none.
      positive_weights: factors on the classifier's loss where a label is present; (): all 1.
      prompts: that a label ({}) is present, and that it is not.
    """

    name: str
    mask_twins: bool = False
    normal_share: float = 0.0
    rows: int = 0
    max_temperature: float = 0.0
    label_weight: float = 0.0
    positive_weights: tuple[float, ...] = ()
    prompts: tuple[str, str] = ("{} is present. ", "{} is not present. ")

    @property
    def columns(self) -> tuple[str, ...]:
        """What it reads of a batch beside the outputs."""
        twins = ("scan", "report") if self.mask_twins and self.compares else ()
        normal = ("normal",) if self.normal_share and self.compares else ()
        return twins + normal + (("labels",) if self.reads_labels else ())

    @property
    def compares(self) -> bool:
        """Whether images are compared with the reports of the batch."""
        return self.name in LOSSES

    @property
    def reads_texts(self) -> bool:
        """Whether it reads the reports of the batch."""
        return self.compares or self.name == "report_labels"

    @property
    def reads_volumes(self) -> bool:
        """Whether it reads the volumes of the batch."""
        return self.name != "report_labels"

    @property
    def classifies(self) -> bool:
        """Whether the model needs a classifier of volumes."""
        return self.name == "labels" or self.label_weight > 0

    @property
    def reads_labels(self) -> bool:
        """Whether it reads each label of the training volumes."""
        return self.classifies or self.name in ("prompts", "report_labels")


def softmax_loss(texts: Sums, images: Sums, share: float) -> Float[Array, ""]:
    """Symmetric cross-entropy of text against image (CLIP, arXiv 2103.00020)."""
    return (_cross_entropy(texts, share) + _cross_entropy(images, share)) / 2


def text_to_image_loss(texts: Sums, images: Sums, share: float) -> Float[Array, ""]:
    """Cross-entropy of every text against the images of the batch: whose text is it?

    The half of the symmetric loss that compares images. A text that mentions one finding of many
    is compared with all images on that finding alone; against other texts it would mostly learn
    which findings happen to be mentioned. There may be k texts of each image.
    """
    del images
    return _cross_entropy(texts, share)


def decoupled_loss(texts: Sums, images: Sums, share: float) -> Float[Array, ""]:
    """Symmetric cross-entropy without the match in the denominator (arXiv 2110.06848)."""

    def side(sums: Sums) -> Array:
        # Without any negative there is nothing to tell apart.
        some = sums["negatives"] > MASKED / 2
        return jnp.mean(jnp.where(some, sums["negatives"] - _target(sums, share), 0.0))

    return (side(texts) + side(images)) / 2


def sigmoid_loss(texts: Sums, images: Sums, share: float) -> Float[Array, ""]:
    """Every pair a yes-or-no question (SigLIP, arXiv 2303.15343); needs `logit_bias`."""
    del images
    others = texts["questions"] - share * texts["normals"]
    return jnp.mean(jax.nn.softplus(-texts["own"]) + others)


LOSSES: dict[str, Callable[[Sums, Sums, float], Array]] = {
    "softmax": softmax_loss,
    "text_to_image": text_to_image_loss,
    "decoupled": decoupled_loss,
    "sigmoid": sigmoid_loss,
}


def make_loss(config: LossConfig, mesh: Mesh | None = None) -> LossFn:
    """Returns (outputs, batch) -> (loss, metrics); with `config.rows` it is cut over `mesh`.

    The batch holds `config.columns`: `scan` and `report` int32, equal where these are the same, and
    `normal` bool, (b) each; `labels` int8 (b labels).
    """

    def contrast(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        pairs = {name: batch[name] for name in config.columns if name != "labels"}
        text, image = _sides(outputs, pairs)
        scalars = {name: outputs[name] for name in ("temperature", "bias") if name in outputs}
        if config.rows:
            texts, images = ring_sums(text, image, scalars, rows=config.rows, mesh=mesh)
        else:
            texts, images = pair_sums(text, image, scalars)
        loss = LOSSES[config.name](texts, images, config.normal_share)
        hits = jnp.mean(texts["own"] >= texts["rival"])
        return loss, {"text_to_image_accuracy": hits, "temperature": outputs["temperature"]}

    def classify(logits: Array, batch: dict[str, Array]) -> Array:
        return classifier_loss(logits, batch["labels"], positive_weights=config.positive_weights)

    def loss_fn(outputs: Outputs, batch: dict[str, Array]) -> tuple[Array, dict[str, Array]]:
        if config.name == "labels":
            return classify(outputs["logits"], batch), {}
        if config.name == "report_labels":
            return classify(outputs["report_logits"], batch), {}
        if config.name == "prompts":
            temperature = outputs["temperature"]
            prompts = outputs["prompts"].reshape(-1, 2, outputs["prompts"].shape[-1])
            loss = prompt_loss(outputs["image"], prompts, batch["labels"], temperature=temperature)
            return loss, {"temperature": temperature}
        loss, metrics = contrast(outputs, batch)
        if config.label_weight:
            metrics["label_loss"] = classify(outputs["logits"], batch)
            loss += config.label_weight * metrics["label_loss"]
        return loss, metrics

    return loss_fn


def _sides(outputs: Outputs, columns: dict[str, Array]) -> tuple[Side, Side]:
    """Texts and images with what is known of their volumes."""
    texts, images = len(outputs["text"]), len(outputs["image"])
    if texts % images:
        raise ValueError(f"{texts} texts cannot belong to {images} images in equal numbers")
    known = {"owner": jnp.arange(images)} | columns
    of_texts = {name: jnp.repeat(each, texts // images) for name, each in known.items()}
    return {"latents": outputs["text"]} | of_texts, {"latents": outputs["image"]} | known


def _cross_entropy(sums: Sums, share: float) -> Float[Array, ""]:
    return jnp.mean(jnp.logaddexp(sums["negatives"], sums["own"]) - _target(sums, share))


def _target(sums: Sums, share: float) -> Float[Array, " n"]:
    """The logit of the match, mixed with those of the other normal volumes."""
    shared = share * (sums["count"] > 0)
    others = sums["normals"] / jnp.maximum(sums["count"], 1.0)
    return (1 - shared) * sums["own"] + shared * others
