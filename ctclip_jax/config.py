"""The configuration of a run as frozen dataclasses, made strictly from nested dicts."""

import dataclasses
import difflib
import types
import typing
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from ctclip_jax.lora import LoraConfig
from ctclip_jax.losses import LossConfig
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.patches import PatchGrid
from ctclip_jax.optim import OptimConfig
from ctclip_jax.sharding import MeshConfig
from data_pipelines.errors import InputError
from data_pipelines.texts import TextChoice

T = TypeVar("T")

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
    def text_choice(self) -> TextChoice:
        """What of a report is a text. Raises InputError if it cannot be chosen."""
        return TextChoice(self.report, self.shuffle_sentences, self.sentences, self.texts)

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
class CheckpointConfig:
    """A checkpoint every `every` steps and at every evaluation.

    The newest `keep` stay, and the `best` ones by the mean AUROC of the evaluation inside the run.
    """

    every: int
    keep: int
    best: int


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
        names = ("report", "pool_sentences", "max_length")
        return {name: getattr(self, name) for name in names}


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """One experiment. What a file in configs/ says is what runs.

    Attributes:
      batch_size: volumes of one step, over all devices.
      micro_batch_size: volumes that are in the towers at a time, over all devices, when the whole
        batch would not fit (ctclip_jax.gradient_cache); 0: all of them.
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
    def evaluation_shards(self) -> str:
        """The directory that is evaluated."""
        return self.evaluation.shards or next(iter(self.data.folders), "")


def check_volumes(
    prepared: Mapping[str, Any], image: PatchGrid, *, shards: str, wanted_by: str
) -> None:
    """Compares the shape, spacing and window of prepared volumes with what an image tower takes.

    Raises:
      InputError: they differ.
    """
    wanted = {
        "shape": (image.frames, *image.image_size),
        "spacing": image.spacing,
        "window": image.window,
    }
    for what, value in wanted.items():
        if (found := tuple(prepared[what])) != tuple(value):
            raise InputError(
                f"{shards}: volumes of {what} {found}; {wanted_by} wants {tuple(value)}"
            )


def from_dict(cls: type[T], mapping: Mapping[str, Any], *, name: str = "config") -> T:
    """Makes the dataclass `cls` from a nested mapping, with lists accepted for tuples.

    Args:
      cls: a dataclass; fields may be dataclasses, tuples, unions with None, and plain values.
      mapping: its fields; those with a default may be left out.
      name: what error messages call the mapping.

    Raises:
      InputError: an unknown or missing key, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    for key in mapping:
        if key not in fields:
            close = difflib.get_close_matches(str(key), fields) or sorted(fields)
            raise InputError(f"{name}.{key}: unknown key; close matches: {', '.join(close)}")
    for key, field in fields.items():
        required = field.default is field.default_factory is dataclasses.MISSING
        if required and key not in mapping:
            raise InputError(f"{name}.{key}: missing key")
    hints = typing.get_type_hints(cls)
    return cls(**{k: _convert(v, hints[k], f"{name}.{k}") for k, v in mapping.items()})


def _one_of(classes: Sequence[type], mapping: Mapping[str, Any], *, name: str) -> Any:
    """Makes that of several dataclasses whose `tower` the mapping names; by default the first."""
    towers = {cls.tower: cls for cls in classes}
    tower = mapping.get("tower", classes[0].tower)
    if tower not in towers:
        raise InputError(f"{name}.tower: {tower!r} is none of {', '.join(towers)}")
    return from_dict(towers[tower], mapping, name=name)


def _convert(value: Any, hint: Any, name: str) -> Any:
    """Returns `value` as the type `hint`, or raises an InputError that names it."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value, name=name)
    if arguments and all(map(dataclasses.is_dataclass, arguments)) and isinstance(value, Mapping):
        return _one_of(arguments, value, name=name)
    if origin is tuple and isinstance(value, (list, tuple)):
        if arguments[-1] is Ellipsis:
            arguments = arguments[:1] * len(value)
        if len(arguments) == len(value):
            pairs = enumerate(zip(value, arguments, strict=True))
            return tuple(_convert(v, h, f"{name}[{i}]") for i, (v, h) in pairs)
    if origin in (types.UnionType, typing.Union) and type(None) in arguments:
        if value is None:
            return None
        (inner,) = set(arguments) - {type(None)}
        return _convert(value, inner, name)
    if hint is float and type(value) is int:
        return float(value)
    if origin is None and not dataclasses.is_dataclass(hint) and type(value) is hint:
        return value
    expected = hint.__name__ if origin is None else str(hint)
    raise InputError(f"{name}: expected {expected}, got {value!r}")
