"""Cross-checks of a training config: keys against each other, the shards, the tokenizer, the mesh.

Types, choices and ranges of single keys are checked by `common.configs.from_dict`.
"""

import math
import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from ctclip_jax.common import trees
from ctclip_jax.common.sharding import local_batch_size
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.kernels import attention_tpu
from ctclip_jax.models.lora import abstract_params
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.metric_writer import import_wandb
from data_pipelines.errors import InputError
from data_pipelines.loader import check_mixture_weights, common_geometry
from data_pipelines.reports import LABELS, SENTENCE_FORMATS, prompt_text
from data_pipelines.shards import preparation, read_reports
from data_pipelines.tokenizers import Tokenizer


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
    loss = config.loss
    _validate_volumes(config, config.data.folders, config.data.split)
    check_mixture_weights(config.data.mixture_weights, config.data.folders)
    for folder in config.data.folders:
        labels = tuple(preparation(folder, config.data.split)["labels"])
        if loss.normal_target_share and not labels:
            raise InputError(f"{folder}: config.loss.normal_target_share needs labels; got none")
        if not loss.reads_labels:
            continue
        if labels != LABELS:
            raise InputError(
                f"{folder}: config.loss.name={loss.name} needs the {len(LABELS)} labels of CT-RATE;"
                f" got {', '.join(labels) or 'none'}"
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


def _check(holds: object, message: str) -> None:
    if not holds:
        raise InputError(f"config.{message}")


def _validate_image(image: CTViTConfig | ViTConfig) -> None:
    shape = (image.frames, *image.image_size)
    volume, patch = ("x".join(map(str, sizes)) for sizes in (shape, image.patch))
    is_divisible = not any(size % step for size, step in zip(shape, image.patch, strict=True))
    _check(is_divisible, f"model.image: volume {volume} is not divisible by patch {patch}")
    if isinstance(image, ViTConfig):
        _check(
            image.dim % 6 == 0 and image.dim % image.heads == 0,
            f"model.image.dim: got {image.dim}, expected a multiple of 6 (position encoding along"
            f" three axes) and of {image.heads} heads",
        )


def _validate_attention(config: TrainConfig, mesh: Mesh) -> None:
    platform = mesh.devices.flat[0].platform
    image = config.model.image
    head_dim, num_tokens = image.dim // image.heads, math.prod(image.grid)
    if image.tower == "ct_vit":
        head_dim, num_tokens = image.dim_head, math.prod(image.grid[1:])
    if config.model.attention == "pallas":
        _check(
            attention_tpu.fills_blocks(image.heads, head_dim),
            f"model.attention=pallas: got {image.heads} heads of {head_dim};"
            f" {attention_tpu.BLOCKS_RULE}",
        )
        _check(platform == "tpu", "model.attention=pallas: needs a TPU")
    if config.model.attention != "cudnn":
        return
    where = "model.attention=cudnn: needs"
    _check(platform == "gpu", f"{where} an NVIDIA GPU")
    _check(config.model.dtype == "bfloat16", f"{where} config.model.dtype=bfloat16")
    _check(head_dim % 8 == 0 and head_dim <= 128, f"{where} a head dimension of 8, 16, ... 128")
    _check(num_tokens % 2 == 0, f"{where} an even number of tokens")


def _validate_steps(config: TrainConfig) -> None:
    start, end = config.vq_ramp_steps
    _check(0 <= start <= end, f"vq_ramp_steps: got {start, end}, expected 0 <= start <= end")
    first, last = config.profile
    _check(
        first == last == 0 or 1 <= first <= last <= config.steps,
        f"profile: got {first, last}, expected (0, 0) or 1 <= first <= last <= {config.steps}",
    )


def _validate_texts(config: TrainConfig, tokenizer: Tokenizer | None) -> None:
    _ = config.data.text_sampler  # raises InputError if its keys conflict
    evaluation, warmup, text = config.evaluation, config.text_warmup, config.model.text
    max_lengths = {"data": config.data.max_length, "evaluation": evaluation.max_length}
    if warmup.steps:
        max_lengths["text_warmup"] = warmup.max_length
        _check(warmup.temperature > 0, "text_warmup.temperature: needs a value above 0")
    for section, length in max_lengths.items():
        _check(
            length <= text.max_positions,
            f"{section}.max_length: got {length}, expected at most {text.max_positions},"
            " config.model.text.max_positions",
        )
    _check(
        config.data.texts_per_volume == 1 or config.loss.name == "text_to_image",
        f"data.texts_per_volume: {config.data.texts_per_volume} needs"
        " config.loss.name='text_to_image'",
    )
    _check(
        not evaluation.pool_sentences or evaluation.report_format in SENTENCE_FORMATS,
        "evaluation.pool_sentences: needs a report_format with sentences; got"
        f" {evaluation.report_format}, expected one of {', '.join(SENTENCE_FORMATS)}",
    )
    _check(evaluation.prompts, "evaluation.prompts: needs at least one pair")
    for pair in (*evaluation.prompts, config.loss.prompts):
        for prompt in pair:
            prompt_text(prompt, LABELS[0])  # raises InputError without a place for the label
    if tokenizer and tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"{config.data.tokenizer_path}: got {tokenizer.vocab_size} tokens, expected at most"
            f" {text.vocab_size}, config.model.text.vocab_size"
        )


def _validate_labels(config: TrainConfig) -> None:
    loss, model, num_labels = config.loss, config.model, len(LABELS)
    scores_by_classifier = config.evaluation.every and config.evaluation.classifier == "trained"
    if loss.has_classifier or scores_by_classifier:
        _check(model.num_labels == num_labels, f"model.num_labels: needs {num_labels} labels")
    if loss.name == "report_labels":
        is_complete = model.num_report_labels == num_labels
        _check(is_complete, f"model.num_report_labels: needs {num_labels} labels")
    _check(
        len(loss.positive_weights) in (0, num_labels),
        f"loss.positive_weights: got {len(loss.positive_weights)} weights, expected 0 or"
        f" {num_labels}",
    )
    if loss.label_weight:
        _check(loss.is_contrastive, "loss.label_weight: needs a contrastive config.loss.name")
    if loss.name == "sigmoid":
        has_bias = model.logit_bias is not None
        _check(has_bias, "loss.name=sigmoid: needs config.model.logit_bias, e.g. -10.0")


def _validate_batches(config: TrainConfig, mesh: Mesh) -> None:
    sizes = {"batch_size": config.batch_size}
    if config.micro_batch_size:
        sizes["micro_batch_size"] = config.micro_batch_size
    if config.evaluation.every:
        sizes["evaluation.batch_size"] = config.evaluation.batch_size
    if config.text_warmup.steps:
        sizes["text_warmup.batch_size"] = config.text_warmup.batch_size
    for key, size in sizes.items():
        local_batch_size(size, mesh, name=f"config.{key}")
    _check(
        config.micro_batch_size == 0 or config.batch_size % config.micro_batch_size == 0,
        f"micro_batch_size: got {config.micro_batch_size}, expected a divisor of"
        f" config.batch_size, {config.batch_size}",
    )
    block_size = config.loss.block_size
    num_texts = config.batch_size * config.data.texts_per_volume // mesh.size
    _check(
        block_size == 0 or num_texts % min(block_size, num_texts) == 0,
        f"loss.block_size: got {block_size}, expected a divisor of the {num_texts} texts per"
        " device",
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
            has_match = any(re.search(pattern, name) for name in parameter_names)
            _check(has_match, f"{key}: {pattern!r} matches no parameter")


def _validate_frozen_latents(config: TrainConfig, parameter_names: Sequence[str]) -> None:
    if not config.data.frozen_latents:
        return
    image_names = [name for name in parameter_names if re.match("(lora/)?image", name)]
    rates = trees.match_rules(config.optim.rules, image_names, default=1.0)
    where = "data.frozen_latents: needs"
    _check(
        not any(rates.values()),
        f"{where} a frozen image tower: config.optim.rules=(('^image', 0.0), ...)",
    )
    _check(config.data.random_shift_voxels == 0, f"{where} config.data.random_shift_voxels=0")
    _check(config.init_from, f"{where} config.init_from")
