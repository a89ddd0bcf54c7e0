"""Training config: one frozen dataclass per section of a file in configs/.

Choices are `Literal` types and ranges are `Annotated` types; `common.configs.from_dict` checks
both. What depends on several keys, on files or on devices is checked in training/validation.py.
"""

import dataclasses
from pathlib import Path
from typing import Literal

from ctclip_jax.checkpoints.run import CheckpointConfig
from ctclip_jax.common.configs import NonNegativeFloat, NonNegativeInt, PositiveInt
from ctclip_jax.common.sharding import MeshConfig
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.lora import LoraConfig
from ctclip_jax.training.losses import LossConfig
from ctclip_jax.training.optim import OptimConfig
from data_pipelines.reports import ReportFormat, TextSampler

# Typical length of a prompt, for FLOPs and shapes where there is no tokenizer (dry run).
PROMPT_TOKENS = 16


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Volumes and reports to train on.

    Attributes:
      shards: directories written by data_pipelines.prepare, comma separated.
      mixture_weights: sampling weight of each directory; (): proportional to its size.
      split: 'train' or 'valid'.
      one_reconstruction_per_scan: an epoch has one random reconstruction of each scan instead of
        all volumes.
      report_format: how Findings and Impressions become one text (data_pipelines.reports).
      shuffle_sentences: train on the whole report with its sentences in random order.
      sentences_per_text: (low, high): train on random subsets of low to high sentences; (0, 0): on
        the whole report.
      texts_per_volume: number of such subsets per volume in a batch.
      random_shift_voxels: augmentation: largest random translation along every axis.
      tokenizer: vocab.txt or *.model; '': tokenizer.model beside the first shards.
      max_length: tokens of a text.
      num_workers: loader processes; 0: threads of this process.
      frozen_latents: encode every volume once before the first step, for a frozen image tower; the
        latents stay in WORKDIR.
    """

    shards: str
    mixture_weights: tuple[float, ...]
    split: str
    one_reconstruction_per_scan: bool
    report_format: ReportFormat
    shuffle_sentences: bool
    sentences_per_text: tuple[int, int]
    texts_per_volume: PositiveInt
    random_shift_voxels: NonNegativeInt
    tokenizer: str
    max_length: PositiveInt
    num_workers: NonNegativeInt
    frozen_latents: bool

    @property
    def folders(self) -> tuple[str, ...]:
        """The directories of shards."""
        return tuple(filter(None, self.shards.split(",")))

    @property
    def text_sampler(self) -> TextSampler:
        """Samples training texts from a report; raises InputError if the keys conflict."""
        return TextSampler(
            self.report_format,
            self.shuffle_sentences,
            self.sentences_per_text,
            self.texts_per_volume,
        )

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file."""
        return Path(self.tokenizer or Path(*self.folders[:1]) / "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class TextWarmupConfig:
    """Stage before the first step that trains the text tower alone, on sentences that match.

    Attributes:
      steps: 0 skips the stage.
      temperature: factor on the similarities at the start of the stage.
      max_length: tokens of a sentence.
    """

    steps: NonNegativeInt
    batch_size: PositiveInt
    learning_rate: NonNegativeFloat
    temperature: NonNegativeFloat
    max_length: PositiveInt


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """Evaluation during training, and how the trained model reads reports.

    Attributes:
      every: steps between evaluations; 0: none.
      volumes: number of volumes, evenly spaced in the split; 0: all.
      shards: one directory; '': the first training directory.
      batch_size: volumes and texts at a time, over all devices.
      prompts: pairs (label is present, label is absent); {} stands for the label.
      classifier: 'zero_shot' scores labels by the prompts, 'trained' by the trained head (then
        there is no retrieval).
      report_format: how Findings and Impressions become one text (data_pipelines.reports).
      pool_sentences: a report's latent is the mean over its sentences, for models trained on single
        sentences; otherwise the report is encoded whole.
      max_length: tokens of a text.

    An export carries `report_format`, `pool_sentences` and `max_length`.
    """

    every: NonNegativeInt
    volumes: NonNegativeInt
    shards: str
    split: str
    batch_size: PositiveInt
    prompts: tuple[tuple[str, str], ...]
    report_format: ReportFormat
    pool_sentences: bool
    max_length: PositiveInt
    classifier: Literal["zero_shot", "trained"]


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One experiment: what a file in configs/ returns.

    Attributes:
      batch_size: volumes per step, over all devices.
      micro_batch_size: volumes encoded at a time, over all devices, if the whole batch does not fit
        (training/gradient_cache.py); 0: all of them.
      vq_ramp_steps: (start, end): steps over which the quantizer's weight goes from 0 to 1; (0, 0):
        always 1, as published.
      max_skipped: number of consecutive non-finite steps that are skipped before the run fails.
      log_every: steps between log lines.
      wandb: Weights & Biases project that receives the metrics too; '': none.
      profile: (first, last) steps of a trace in WORKDIR/profile; (0, 0): none.
      init_from: weights to start from: any path that `ctclip_jax.load` opens; '': random weights.
    """

    seed: int
    model: CTCLIPConfig
    data: DataConfig
    batch_size: PositiveInt
    micro_batch_size: NonNegativeInt
    steps: PositiveInt
    loss: LossConfig
    optim: OptimConfig
    vq_ramp_steps: tuple[int, int]
    text_warmup: TextWarmupConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    max_skipped: NonNegativeInt
    log_every: PositiveInt
    wandb: str
    profile: tuple[int, int]
    init_from: str
    evaluation: EvaluationConfig
    lora: LoraConfig

    @property
    def num_micro_batches(self) -> int:
        """Micro-batches per step."""
        return self.batch_size // self.micro_batch_size if self.micro_batch_size else 1

    @property
    def is_label_informed(self) -> bool:
        """Whether labels shape the weights, so that detection is no longer zero-shot."""
        return self.loss.reads_labels or self.loss.normal_target_share > 0

    @property
    def evaluation_shards(self) -> str:
        """The directory to evaluate on."""
        return self.evaluation.shards or next(iter(self.data.folders), "")
