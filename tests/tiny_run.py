"""Fixtures of the smallest size: shards, an export and a training config."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from configs import phantoms
from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.common.configs import from_dict
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from data_pipelines import shards
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.tokenizers import train_sentencepiece
from tests.records import make_record, settings

VOCABULARY = 100


def write_tiny_shards(
    folder: Path, *, shape: tuple[int, int, int], volumes: int = 24, **changes
) -> Path:
    """Shards of noise and a tokenizer; volume i has label i modulo 18."""
    records = [_record(index, shape) for index in range(volumes)]
    demo_geometry = {"spacing": [12.0, 7.5, 7.5]}
    (shard,) = shards.begin(folder, "train", settings=settings(shape, **demo_geometry | changes))
    shards.write_shard(shard, records)
    shards.finish(folder)
    texts = [record[part] for record in records for part in ("findings", "impressions")]
    train_sentencepiece(texts, folder / "tokenizer.model", VOCABULARY)
    return folder


def write_tiny_export(folder: Path, **changes) -> Path:
    """FOLDER/export of the smallest model with random weights and `changes` to its config."""
    tokenizer, export = folder / "tokenizer.model", folder / "export"
    texts = [prompt.format(label) for label in LABELS for prompt in PROMPTS]
    train_sentencepiece(texts, tokenizer, VOCABULARY)
    config = dataclasses.replace(tiny_config(folder).model, **changes)
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    description = {"model": dataclasses.asdict(config), "max_length": 24, "report": "joined"}
    save_export(export, variables, config=description, tokenizer=tokenizer)
    return export


def tiny_config(folder: Path, **changes) -> TrainConfig:
    """configs/phantoms.py:smoke on `folder`, with `changes` like {'optim.clip_norm': 1.0}."""
    config = phantoms.get_config("smoke")
    config.data.shards = str(folder)
    config.text_warmup.steps = 0
    config.update_from_flattened_dict(changes)
    return from_dict(TrainConfig, config.to_dict())


def _record(index: int, shape: tuple[int, int, int]) -> shards.Record:
    rng = np.random.default_rng(index)
    present, absent = LABELS[index % 18], LABELS[(index + 7) % 18]
    return make_record(
        f"train_{index}_a_1.nii.gz",
        rng.integers(-16000, 16000, shape).astype(np.int16),
        labels=np.array([label == present for label in LABELS], np.int8),
        findings=f"{present} is seen. {absent} is not seen. Case {index}.",
        impressions=f"{present}. No {absent}.",
    )
