"""The configuration of a run as frozen dataclasses."""

import dataclasses
from pathlib import Path
from typing import Any

from ctclip_jax.checkpoints.run import CheckpointConfig
from ctclip_jax.common.sharding import MeshConfig
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.lora import LoraConfig
from ctclip_jax.training.losses import LossConfig
from ctclip_jax.training.optim import OptimConfig
from data_pipelines.text_sampler import TextSampler

PROMPT_TOKENS = 16  # about the longest of a prompt, where no tokenizer can say


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Where the volumes and reports come from.

    Attributes:
      shards: directories written by data_pipelines.prepare, comma separated.
      weights: how often each directory is drawn from; (): by its size.
      split: 'train' or 'valid'.
      one_per_scan: an epoch is one random reconstruction of each scan, not all volumes.
      report: how Findings and Impressions become one text (data_pipelines.reports).
      shuffle_sentences: train on the whole report with its sentences in random order.
      sentences: (lo, hi): train on random subsets of lo..hi sentences; (0, 0): the whole report.
      texts: such subsets of each volume in a batch.
      shift: voxels by which training moves a volume at most, along every axis.
      frozen_latents: the image tower is frozen: every volume is encoded once, before the first
        step, and the latents stay in WORKDIR.
      tokenizer: vocab.txt or *.model; '' is the tokenizer.model beside the first shards.
      max_length: tokens of a text.
      workers: loader processes; 0 reads in this one.
    """

    shards: str
    weights: tuple[float, ...]
    split: str
    one_per_scan: bool
    report: str
    shuffle_sentences: bool
    sentences: tuple[int, int]
    texts: int
    shift: int
    tokenizer: str
    max_length: int
    workers: int
    frozen_latents: bool = False

    @property
    def folders(self) -> tuple[str, ...]:
        """The directories of shards."""
        return tuple(filter(None, self.shards.split(",")))

    @property
    def text_sampler(self) -> TextSampler:
        """What of a report is a text. Raises InputError if it cannot be chosen."""
        return TextSampler(self.report, self.shuffle_sentences, self.sentences, self.texts)

    @property
    def tokenizer_path(self) -> Path:
        """The tokenizer's file."""
        return Path(self.tokenizer or Path(*self.folders[:1]) / "tokenizer.model")


@dataclasses.dataclass(frozen=True)
class TextWarmupConfig:
    """The stage that trains the text tower alone on reports; steps=0 leaves it out.

    `objective` is one of data_pipelines.text_pairs; `temperature` is the factor on the similarities
    at its start; `max_length` is that of a sentence in tokens.
    """

    steps: int
    batch_size: int
    learning_rate: float
    temperature: float
    max_length: int
    objective: str = "matched_sentences"


@dataclasses.dataclass(frozen=True)
class EvaluationConfig:
    """The evaluation inside a run, and how the model that comes of it reads reports.

    Attributes:
      every: steps between two evaluations; 0: none.
      volumes: how many, spread evenly over the split; 0: all.
      shards: one directory; '' is the first one of the training.
      batch_size: volumes and texts at a time, over all devices.
      prompts: pairs of wordings, that a label ({}) is present and that it is not.
      scores: of detection, 'zero_shot' by the prompts, or 'classifier' by the trained one (then
        nothing is retrieved).
      report: the form of reports (data_pipelines.reports).
      pool_sentences: a report is read sentence by sentence and its latent is the mean of theirs, as
        suits a model that was trained on sentences; else it is read whole.
      max_length: tokens of a text.

    `report`, `pool_sentences` and `max_length` are also what an export says of itself.
    """

    every: int
    volumes: int
    shards: str
    split: str
    batch_size: int
    prompts: tuple[tuple[str, str], ...]
    report: str
    pool_sentences: bool
    max_length: int
    scores: str = "zero_shot"

    @property
    def reading(self) -> dict[str, str | bool | int]:
        """How reports are read, as an export says it."""
        return {
            "report_format": self.report,
            "pool_sentences": self.pool_sentences,
            "max_length": self.max_length,
        }


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One experiment. What a file in configs/ says is what runs.

    Attributes:
      batch_size: volumes of one step, over all devices.
      micro_batch_size: volumes that are in the towers at a time, over all devices, when the whole
        batch would not fit (ctclip_jax.training.gradient_cache); 0: all of them.
      quantize_ramp: (start, end) steps over which the quantizer's weight goes from 0 to 1;
        (0, 0): always 1, as published.
      max_skipped: steps in a row that may be skipped because a loss or gradient is not finite.
      log_every: steps between two lines of metrics.
      wandb: a project of Weights & Biases that gets the metrics too; '': none.
      profile: (first, last) steps of a trace in WORKDIR/profile; (0, 0): none.
      init_from: weights to start from, any path `ctclip_jax.load` opens; '': random weights.
      from_labels: those weights were trained with labels; a run finds it out by itself.
    """

    seed: int
    model: CTCLIPConfig
    data: DataConfig
    batch_size: int
    micro_batch_size: int
    steps: int
    loss: LossConfig
    optim: OptimConfig
    quantize_ramp: tuple[int, int]
    text_warmup: TextWarmupConfig
    mesh: MeshConfig
    checkpoint: CheckpointConfig
    max_skipped: int
    log_every: int
    wandb: str
    profile: tuple[int, int]
    init_from: str
    evaluation: EvaluationConfig
    from_labels: bool = False
    lora: LoraConfig = LoraConfig()

    @property
    def micro_batches(self) -> int:
        """The parts in which a step goes through its batch."""
        return self.batch_size // self.micro_batch_size if self.micro_batch_size else 1

    @property
    def label_informed(self) -> bool:
        """Whether labels have a part in the weights: what they detect is not zero-shot then."""
        loss = self.loss
        return self.from_labels or loss.reads_labels or loss.normal_share > 0

    @property
    def export_description(self) -> dict[str, Any]:
        """The config.json of an export of this run (`checkpoints.exports`)."""
        return {
            "model": dataclasses.asdict(self.model),
            **self.evaluation.reading,
            "label_informed": self.label_informed,
            "tokenizer": str(self.data.tokenizer_path.absolute()),
        }

    @property
    def evaluation_shards(self) -> str:
        """The directory that is evaluated."""
        return self.evaluation.shards or next(iter(self.data.folders), "")
