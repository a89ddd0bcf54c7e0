"""Cross-checks of a training config: keys against each other, the shards, the tokenizer, the mesh.

Types, choices and ranges of single keys are checked by `common.configs.from_dict`.
"""

import math
import re
from collections.abc import Iterable, Sequence

import jax
from jax.sharding import Mesh

from ctclip_jax.common import trees
from ctclip_jax.common.sharding import local_batch_size
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.lora import abstract_params
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.metric_writer import import_wandb
from data_pipelines.errors import InputError
from data_pipelines.loader import common_geometry
from data_pipelines.reports import LABELS, SENTENCE_FORMATS, prompt_text
from data_pipelines.shards import preparation, read_reports
from data_pipelines.tokenizers import Tokenizer

Requirement = tuple[object, str]  # whether it holds, and what the message says it is


def validate_config(config: TrainConfig, *, tokenizer: Tokenizer | None, mesh: Mesh) -> None:
    """Checks the keys of a config against each other, the devices, and a tokenizer if any.

    Raises:
      InputError: the message names the first key that cannot be used.
    """
    _validate_image(config.model.image)
    _validate_attention(config, mesh)
    _validate_steps(config)
    _validate_texts(config, tokenizer)
    _validate_labels(config)
    _validate_batches(config, mesh)
    parameter_names = _parameter_names(config)
    _validate_rules(config, parameter_names)
    _validate_frozen_latents(config, parameter_names)
    if config.wandb and jax.process_index() == 0:
        import_wandb()


def validate_shards(config: TrainConfig) -> None:
    """Checks that the shards hold what the model and the loss read.

    Raises:
      InputError: no such shards, other volumes than the model's, or no labels.
    """
    _validate_volumes(config, config.data.folders, config.data.split)
    for folder in config.data.folders:
        labels = tuple(preparation(folder, config.data.split)["labels"])
        if config.loss.normal_target_share and not labels:
            raise InputError(f"{folder}: config.loss.normal_target_share needs labels; got none")
        if not config.loss.reads_labels:
            continue
        if labels != LABELS:
            raise InputError(
                f"{folder}: config.loss.name={config.loss.name} needs the {len(LABELS)} labels of"
                f" CT-RATE; got {', '.join(labels) or 'none'}"
            )
        rows = read_reports(folder, config.data.split)
        if all(label < 0 for row in rows for label in row["labels"]):
            raise InputError(f"{folder}: loss needs labels, but all labels are unknown (-1)")
    if config.evaluation.every > 0:
        try:
            _validate_volumes(config, [config.evaluation_shards], config.evaluation.split)
        except InputError as error:
            raise InputError(f"{error}; config.evaluation.every=0 trains without") from error


def _validate_volumes(config: TrainConfig, folders: Sequence[str], split: str) -> None:
    prepared = common_geometry(folders, split)
    config.model.image.check(prepared, source=",".join(folders), name="config.model.image")


def _require(key: str, requirements: Iterable[Requirement]) -> None:
    for holds, requirement in requirements:
        if not holds:
            raise InputError(f"config.{key}: needs {requirement}")


def _validate_image(image: CTViTConfig | ViTConfig) -> None:
    volume_shape = (image.frames, *image.image_size)
    if any(size % patch for size, patch in zip(volume_shape, image.patch, strict=True)):
        volume, patch = ("x".join(map(str, shape)) for shape in (volume_shape, image.patch))
        raise InputError(f"config.model.image: volume {volume} is not divisible by patch {patch}")
    if isinstance(image, ViTConfig) and (image.dim % 6 or image.dim % image.heads):
        raise InputError(
            f"config.model.image.dim: got {image.dim}, expected a multiple of 6 (position encoding"
            f" along three axes) and of {image.heads} heads"
        )


def _validate_attention(config: TrainConfig, mesh: Mesh) -> None:
    if config.model.attention != "cudnn":
        return
    image = config.model.image
    head_dim, num_tokens = image.dim // image.heads, math.prod(image.grid)
    if image.tower == "ct_vit":
        head_dim, num_tokens = image.dim_head, math.prod(image.grid[1:])
    requirements = (
        (mesh.devices.flat[0].platform == "gpu", "an NVIDIA GPU"),
        (config.model.dtype == "bfloat16", "config.model.dtype=bfloat16"),
        (head_dim % 8 == 0 and head_dim <= 128, "a head dimension of 8, 16, ... 128"),
        (num_tokens % 2 == 0, "an even number of tokens"),
    )
    _require("model.attention=cudnn", requirements)


def _validate_steps(config: TrainConfig) -> None:
    start, end = config.vq_ramp_steps
    if not 0 <= start <= end:
        raise InputError(f"config.vq_ramp_steps: got {start, end}, expected 0 <= start <= end")
    first, last = config.profile
    if not (first == last == 0 or 1 <= first <= last <= config.steps):
        raise InputError(
            f"config.profile: got {first, last}, expected (0, 0) or 1 <= first <= last <="
            f" {config.steps}"
        )


def _validate_texts(config: TrainConfig, tokenizer: Tokenizer | None) -> None:
    _ = config.data.text_sampler  # raises InputError if its keys conflict
    evaluation, warmup, text = config.evaluation, config.text_warmup, config.model.text
    max_lengths = {"data": config.data.max_length, "evaluation": evaluation.max_length}
    if warmup.steps:
        max_lengths["text_warmup"] = warmup.max_length
        _require("text_warmup.temperature", [(warmup.temperature > 0, "a value above 0")])
    for section, length in max_lengths.items():
        if length > text.max_positions:
            raise InputError(
                f"config.{section}.max_length: got {length}, expected at most"
                f" {text.max_positions}, config.model.text.max_positions"
            )
    if config.data.texts_per_volume > 1 and config.loss.name != "text_to_image":
        raise InputError(
            f"config.data.texts_per_volume: {config.data.texts_per_volume} needs"
            " config.loss.name='text_to_image'"
        )
    if evaluation.pool_sentences and evaluation.report_format not in SENTENCE_FORMATS:
        raise InputError(
            "config.evaluation.pool_sentences: needs a report_format with sentences; got"
            f" {evaluation.report_format}, expected one of {', '.join(SENTENCE_FORMATS)}"
        )
    _require("evaluation.prompts", [(evaluation.prompts, "at least one pair")])
    for pair in (*evaluation.prompts, config.loss.prompts):
        for prompt in pair:
            prompt_text(prompt, LABELS[0])  # raises InputError without a place for the label
    if tokenizer and tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"{config.data.tokenizer_path}: got {tokenizer.vocab_size} tokens, expected at most"
            f" {text.vocab_size}, config.model.text.vocab_size"
        )


def _validate_labels(config: TrainConfig) -> None:
    loss, model = config.loss, config.model
    scores_by_classifier = config.evaluation.every and config.evaluation.classifier == "trained"
    if loss.has_classifier or scores_by_classifier:
        _require("model.num_labels", [(model.num_labels == len(LABELS), f"{len(LABELS)} labels")])
    if loss.name == "report_labels":
        is_complete = model.num_report_labels == len(LABELS)
        _require("model.num_report_labels", [(is_complete, f"{len(LABELS)} labels")])
    if len(loss.positive_weights) not in (0, len(LABELS)):
        raise InputError(
            f"config.loss.positive_weights: got {len(loss.positive_weights)} weights, expected 0"
            f" or {len(LABELS)}"
        )
    if loss.label_weight:
        _require("loss.label_weight", [(loss.is_contrastive, "a contrastive config.loss.name")])
    if loss.name == "sigmoid":
        has_bias = model.logit_bias is not None
        _require("loss.name=sigmoid", [(has_bias, "config.model.logit_bias, e.g. -10.0")])


def _validate_batches(config: TrainConfig, mesh: Mesh) -> None:
    local_batch_size(config.batch_size, mesh)
    if config.micro_batch_size:
        local_batch_size(config.micro_batch_size, mesh, name="config.micro_batch_size")
        if config.batch_size % config.micro_batch_size:
            raise InputError(
                f"config.micro_batch_size: got {config.micro_batch_size}, expected a divisor of"
                f" config.batch_size, {config.batch_size}"
            )
    if config.evaluation.every:
        local_batch_size(config.evaluation.batch_size, mesh, name="config.evaluation.batch_size")
    if config.text_warmup.steps:
        local_batch_size(config.text_warmup.batch_size, mesh, name="config.text_warmup.batch_size")
    num_texts = config.batch_size * config.data.texts_per_volume // mesh.size
    block_size = config.loss.block_size
    if block_size and num_texts % min(block_size, num_texts):
        raise InputError(
            f"config.loss.block_size: got {block_size}, expected a divisor of the {num_texts} texts"
            " per device"
        )


def _parameter_names(config: TrainConfig) -> list[str]:
    """Names of all parameters, adapters included, and of a codebook, as rules see them."""
    model = CTCLIP(config.model)
    params = abstract_params(model.init, config.lora)
    return [*trees.flatten(params), *(["image/codebook"] if model.quantizes else [])]


def _validate_rules(config: TrainConfig, parameter_names: Sequence[str]) -> None:
    patterns = {
        "lora.targets": config.lora.targets if config.lora.rank else (),
        "optim.rules": [pattern for pattern, _ in config.optim.rules],
        "optim.decay_rules": [pattern for pattern, _ in config.optim.decay_rules],
    }
    for key in patterns:
        for pattern in patterns[key]:
            if not any(re.search(pattern, name) for name in parameter_names):
                raise InputError(f"config.{key}: {pattern!r} matches no parameter")


def _validate_frozen_latents(config: TrainConfig, parameter_names: Sequence[str]) -> None:
    if not config.data.frozen_latents:
        return
    image_names = [name for name in parameter_names if re.match("(lora/)?image", name)]
    multipliers = trees.match_rules(config.optim.rules, image_names, default=1.0)
    is_frozen = not any(multipliers.values())
    requirements = (
        (is_frozen, "a frozen image tower: config.optim.rules=(('^image', 0.0), ...)"),
        (config.data.random_shift_voxels == 0, "config.data.random_shift_voxels=0"),
        (config.init_from, "config.init_from"),
    )
    _require("data.frozen_latents", requirements)
