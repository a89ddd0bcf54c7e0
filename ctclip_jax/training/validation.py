"""What a configuration must keep to beyond the types of its values, checked before a run starts."""

import math
import re
from collections.abc import Sequence

import jax
from jax.sharding import Mesh

from ctclip_jax.common import trees
from ctclip_jax.common.sharding import local_batch_size
from ctclip_jax.evaluation.protocol import SCORES
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.lora import abstract_params
from ctclip_jax.models.vit import ViTConfig
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.losses import LOSSES
from ctclip_jax.training.wandb_run import import_wandb
from data_pipelines.errors import InputError
from data_pipelines.loader import common_geometry
from data_pipelines.reports import FORMS, LABELS, SENTENCE_FORMS, prompt_text
from data_pipelines.shards import preparation, read_reports
from data_pipelines.text_pairs import OBJECTIVES
from data_pipelines.tokenizers import Tokenizer


def check_config(config: TrainConfig, *, tokenizer: Tokenizer | None, mesh: Mesh) -> None:
    """Compares the parts of a configuration with each other, the devices, and a tokenizer if any.

    Raises:
      InputError: it names the first value that cannot be used.
    """
    _check_names(config)
    _check_image(config.model.image)
    _check_attention(config, mesh)
    _check_numbers(config)
    _check_prompts(config)
    _check_texts(config, tokenizer)
    if config.wandb and jax.process_index() == 0:
        import_wandb()
    local_batch_size(config.batch_size, mesh)
    _check_micro_batches(config, mesh)
    _check_rows(config, mesh)
    _check_rules(config)
    _check_labels(config)
    _check_frozen_latents(config)
    if config.evaluation.every:
        local_batch_size(config.evaluation.batch_size, mesh, name="config.evaluation.batch_size")
    if config.text_warmup.steps:
        local_batch_size(config.text_warmup.batch_size, mesh, name="config.text_warmup.batch_size")


def check_shards(config: TrainConfig) -> None:
    """Compares the volumes of the shards with what the model takes.

    Raises:
      InputError: no such shards, or volumes of another shape or window.
    """
    _check_volumes(config, config.data.folders, config.data.split)
    if config.loss.normal_share:
        for folder in config.data.folders:
            if not preparation(folder, config.data.split)["labels"]:
                raise InputError(f"{folder}: config.loss.normal_share needs labels, it has none")
    if config.loss.reads_labels:
        for folder in config.data.folders:
            if tuple(preparation(folder, config.data.split)["labels"]) != LABELS:
                raise InputError(
                    f"{folder}: config.loss reads the {len(LABELS)} labels of CT-RATE,"
                    " it has others"
                )
            rows = read_reports(folder, config.data.split)
            if all(label < 0 for row in rows for label in row["labels"]):
                raise InputError(f"{folder}: config.loss reads labels, and nobody has read any")
    if config.evaluation.every > 0:
        try:
            _check_volumes(config, [config.evaluation_shards], config.evaluation.split)
        except InputError as error:
            raise InputError(f"{error}; config.evaluation.every=0 trains without") from error


def _check_volumes(config: TrainConfig, folders: Sequence[str], split: str) -> None:
    prepared = common_geometry(folders, split)
    config.model.image.check(prepared, source=",".join(folders), name="config.model.image")


def _check_names(config: TrainConfig) -> None:
    for name, value, known in (
        ("loss.name", config.loss.name, (*LOSSES, "labels", "report_labels", "prompts")),
        ("text_warmup.objective", config.text_warmup.objective, OBJECTIVES),
        ("data.report", config.data.report, FORMS),
        ("evaluation.report", config.evaluation.report, FORMS),
        ("evaluation.scores", config.evaluation.scores, SCORES),
    ):
        if value not in known:
            raise InputError(f"config.{name}: {value!r} is none of {', '.join(known)}")


def _check_image(image: CTViTConfig | ViTConfig) -> None:
    sizes = (image.frames, *image.image_size)
    if any(size % patch for size, patch in zip(sizes, image.patch, strict=True)):
        volume, patch = (" x ".join(map(str, each)) for each in (sizes, image.patch))
        raise InputError(f"config.model.image: {volume} voxels in patches of {patch} leave a rest")
    if isinstance(image, ViTConfig) and (image.dim % 6 or image.dim % image.heads):
        raise InputError(
            f"config.model.image.dim: {image.dim}, wanted a multiple of 6"
            f" and of {image.heads} heads"
        )


def _check_attention(config: TrainConfig, mesh: Mesh) -> None:
    if config.model.attention != "cudnn":
        return
    image = config.model.image
    size, tokens = image.dim // image.heads, math.prod(image.grid)
    if image.tower == "ct_vit":
        size, tokens = image.dim_head, math.prod(image.grid[1:])
    for fits, needs in (
        (mesh.devices.flat[0].platform == "gpu", "an NVIDIA GPU"),
        (config.model.dtype == "bfloat16", "config.model.dtype=bfloat16"),
        (size % 8 == 0 and size <= 128, "heads of 8, 16, ... 128 numbers"),
        (tokens % 2 == 0, "an even number of patches that meet"),
    ):
        if not fits:
            raise InputError(f"config.model.attention: 'cudnn' needs {needs}")


def _check_prompts(config: TrainConfig) -> None:
    if not config.evaluation.prompts:
        raise InputError("config.evaluation.prompts: (), wanted one pair or more")
    for pair in (*config.evaluation.prompts, config.loss.prompts):
        for prompt in pair:
            prompt_text(prompt, LABELS[0])


def _check_numbers(config: TrainConfig) -> None:
    (start, end), (first, last) = config.quantize_ramp, config.profile
    loss = config.loss
    for name, value, fits, wanted in (
        ("steps", config.steps, config.steps >= 1, "1 or more"),
        ("log_every", config.log_every, config.log_every >= 1, "1 or more"),
        ("checkpoint.every", config.checkpoint.every, config.checkpoint.every >= 1, "1 or more"),
        ("checkpoint.keep", config.checkpoint.keep, config.checkpoint.keep >= 1, "1 or more"),
        ("checkpoint.best", config.checkpoint.best, config.checkpoint.best >= 0, "0 or more"),
        ("evaluation.every", config.evaluation.every, config.evaluation.every >= 0, "0 or more"),
        (
            "evaluation.volumes",
            config.evaluation.volumes,
            config.evaluation.volumes >= 0,
            "0 or more",
        ),
        ("quantize_ramp", (start, end), 0 <= start <= end, "0 <= start <= end"),
        ("loss.normal_share", loss.normal_share, 0 <= loss.normal_share <= 1, "0 to 1"),
        ("loss.rows", loss.rows, loss.rows >= 0, "0 or more"),
        ("loss.max_temperature", loss.max_temperature, loss.max_temperature >= 0, "0 or more"),
        ("loss.label_weight", loss.label_weight, loss.label_weight >= 0, "0 or more"),
        ("optim.ema", config.optim.ema, 0 <= config.optim.ema < 1, "0 or more and below 1"),
        ("max_skipped", config.max_skipped, config.max_skipped >= 0, "0 or more"),
        (
            "profile",
            (first, last),
            first == last == 0 or 1 <= first <= last <= config.steps,
            f"(0, 0) or 1 <= first <= last <= {config.steps}",
        ),
    ):
        if not fits:
            raise InputError(f"config.{name}: {value}, wanted {wanted}")
    if config.evaluation.pool_sentences and config.evaluation.report not in SENTENCE_FORMS:
        raise InputError(
            f"config.evaluation.pool_sentences: {config.evaluation.report} has no sentences;"
            f" only {', '.join(SENTENCE_FORMS)} do"
        )
    if loss.name == "sigmoid" and config.model.logit_bias is None:
        raise InputError("config.model.logit_bias: none, the sigmoid loss needs one (-10.0)")
    warmup = config.text_warmup
    if warmup.steps and warmup.temperature <= 0:
        raise InputError(f"config.text_warmup.temperature: {warmup.temperature}, wanted above 0")


def _check_rules(config: TrainConfig) -> None:
    names = _parameter_names(config)
    for pattern in config.lora.targets if config.lora.rank else ():
        if not any(re.search(pattern, name) for name in names):
            raise InputError(f"config.lora.targets: {pattern!r} is found in no parameter")
    for which in ("rules", "decay_rules"):
        for pattern, _ in getattr(config.optim, which):
            if not any(re.search(pattern, name) for name in names):
                raise InputError(f"config.optim.{which}: {pattern!r} is found in no parameter")


def _parameter_names(config: TrainConfig) -> list[str]:
    """Of all parameters, adapters included, and of a codebook, as rules see them."""
    params = abstract_params(CTCLIP(config.model).init, config.lora)
    codebook = ["image/codebook"] if CTCLIP(config.model).quantizes else []
    return [*trees.flatten(params), *codebook]


def _check_labels(config: TrainConfig) -> None:
    loss, labels = config.loss, config.model.num_labels
    scores = config.evaluation.every and config.evaluation.scores == "classifier"
    if (loss.classifies or scores) and labels != len(LABELS):
        raise InputError(
            f"config.model.num_labels: {labels}, the classifier of config.loss and"
            f" config.evaluation.scores has {len(LABELS)}"
        )
    if len(loss.positive_weights) not in (0, len(LABELS)):
        raise InputError(
            f"config.loss.positive_weights: {len(loss.positive_weights)} numbers"
            f" for {len(LABELS)} labels"
        )
    if loss.name == "report_labels" and config.model.num_report_labels != len(LABELS):
        raise InputError(
            f"config.model.num_report_labels: {config.model.num_report_labels}, the classifier of"
            f" reports has {len(LABELS)}"
        )
    if loss.label_weight and not loss.compares:
        raise InputError(f"config.loss.label_weight: beside {loss.name!r} there is no other loss")


def _check_frozen_latents(config: TrainConfig) -> None:
    if not config.data.frozen_latents:
        return
    names = [name for name in _parameter_names(config) if re.match("(lora/)?image", name)]
    multipliers = trees.match_rules(config.optim.rules, names, default=1.0)
    trained = [name for name in names if multipliers[name]]
    for fits, needs in (
        (not trained, "a frozen image tower: config.optim.rules=(('^image', 0.0), ...)"),
        (not config.data.shift, "config.data.shift=0"),
        (config.init_from, "config.init_from"),
    ):
        if not fits:
            raise InputError(f"config.data.frozen_latents: needs {needs}")


def _check_rows(config: TrainConfig, mesh: Mesh) -> None:
    texts = config.batch_size * config.data.texts // mesh.size
    if config.loss.rows and texts % min(config.loss.rows, texts):
        raise InputError(
            f"config.loss.rows: {config.loss.rows} does not divide the {texts} texts of a device"
        )


def _check_micro_batches(config: TrainConfig, mesh: Mesh) -> None:
    if config.micro_batch_size:
        local_batch_size(config.micro_batch_size, mesh, name="config.micro_batch_size")
        if config.batch_size % config.micro_batch_size:
            raise InputError(
                f"config.micro_batch_size: {config.micro_batch_size} does not divide"
                f" config.batch_size, {config.batch_size}"
            )


def _check_texts(config: TrainConfig, tokenizer: Tokenizer | None) -> None:
    _ = config.data.text_sampler  # an InputError if there is none
    text = config.model.text
    lengths = {"data": config.data.max_length, "evaluation": config.evaluation.max_length}
    if config.text_warmup.steps:
        lengths["text_warmup"] = config.text_warmup.max_length
    for name, length in lengths.items():
        if not 1 <= length <= text.max_positions:
            raise InputError(
                f"config.{name}.max_length: {length} tokens, the text tower has"
                f" {text.max_positions} positions"
            )
    if config.data.texts > 1 and config.loss.name != "text_to_image":
        raise InputError(
            f"config.data.texts: {config.data.texts} texts of a volume need"
            " config.loss.name='text_to_image'"
        )
    if tokenizer and tokenizer.vocab_size > text.vocab_size:
        raise InputError(
            f"{config.data.tokenizer_path}: {tokenizer.vocab_size} tokens,"
            f" config.model.text.vocab_size is {text.vocab_size}"
        )
