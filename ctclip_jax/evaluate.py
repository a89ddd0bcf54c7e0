"""The evaluation binary: zero-shot detection and retrieval, with intervals, and a page to look at.

    python -m ctclip_jax.evaluate --model=EXPORT --shards=SHARDS --out=OUT    encodes, then measures
    python -m ctclip_jax.evaluate --from_latents=OUT --out=OTHER              measures again
    python -m ctclip_jax.evaluate --from_scores=DIR --out=OUT                 anyone's scores.csv

docs/evaluation.md says what is in OUT. A run that was stopped continues.
"""

import dataclasses
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from ctclip_jax import Model, load
from ctclip_jax.common import configs
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import files, latents, suite
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference.classifiers import (
    Classifier,
    prompt_texts,
    trained_classifier,
    zero_shot_classifier,
)
from ctclip_jax.reporting import examples, latex, thumbnails
from ctclip_jax.reporting.latent_map import latent_map
from ctclip_jax.reporting.report import page
from data_pipelines import shards
from data_pipelines.errors import InputError, parse_slice, run_main
from data_pipelines.files import write_text
from data_pipelines.resample import STEPS_PER_HU

NO_TRAINED_CLASSIFIER = "config.classifier: this model has no trained classifier"
EXAMPLES = 4
MAP_SEED = 0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is evaluated: a model on a prepared split, or what is left of an earlier run.

    Attributes:
      model, tokenizer, label_informed: for `ctclip_jax.load`.
      shards, split: a folder that data_pipelines.prepare wrote; beside saved latents or scores it
        only gives the page its slices.
      from_latents: a folder with latents.npz and labels.csv.
      from_scores: a folder with scores.csv and labels.csv.
      validation: such a folder of other volumes, to fit thresholds and calibration on.
      task: (i, n): encode the i-th of n slices of the shards.
    """

    model: str | None = None
    tokenizer: str | None = None
    label_informed: bool = False
    shards: str | None = None
    split: str = "valid"
    from_latents: str | None = None
    from_scores: str | None = None
    validation: str | None = None
    task: tuple[int, int] = (0, 1)


def evaluate(
    inputs: Inputs, out: Path, *, protocol: ProtocolConfig, published: bool = False
) -> dict[str, Any] | None:
    """Writes all files of an evaluation into `out` and returns the content of metrics.json; None
    while slices of other tasks are still to come.

    Raises:
      InputError: inputs that are missing, unfit for use or unfit for each other.
    """
    check(inputs, out, published=published)
    validation = files.read_scores(Path(inputs.validation)) if inputs.validation else None
    study = read_study(inputs, out, protocol=protocol)
    if study is None:
        return None
    latents.begin(out, study.source)
    metrics, predictions = suite.evaluate(
        study, protocol=protocol, published=published, validation=validation
    )
    metrics["validation"] = inputs.validation
    files.write_study(out, study)
    files.write_metrics(out, metrics)
    write_report(inputs, out, study, metrics=metrics, predictions=predictions)
    return metrics


def write_report(
    inputs: Inputs,
    out: Path,
    study: EvalSet,
    *,
    metrics: dict[str, Any],
    predictions: Predictions | None,
) -> None:
    """Writes report.html, with slices if the shards are at hand, and table.tex."""
    cases = examples.confident(study, predictions) if predictions else ()
    searched = examples.spread(study, EXAMPLES)
    html = page(
        metrics,
        study,
        predictions=predictions,
        latent_map=None if study.image is None else latent_map(study.image, MAP_SEED),
        cases=cases,
        retrievals=searched,
        pictures=read_pictures(inputs, study, rows=examples.rows(cases, searched)),
    )
    write_text(out / "report.html", html)
    write_text(out / "table.tex", latex.table(metrics, "This model"))


def read_pictures(inputs: Inputs, study: EvalSet, *, rows: Sequence[int]) -> dict[int, bytes]:
    """Slices of the volumes of `rows`, as far as the shards that are given, or that the latents
    were made of, are there and have them."""
    folder = inputs.shards or study.source.get("shards", "")
    split = inputs.split if inputs.shards else study.source.get("split", "")
    try:
        source, spacing = shards.read(folder, split), shards.preparation(folder, split)["spacing"]
    except InputError:
        if inputs.shards:
            raise
        return {}  # they have gone since
    places = {
        row["volume_name"]: place for place, row in enumerate(shards.read_reports(folder, split))
    }
    found = {row: places[name] for row in rows if (name := study.names[row]) in places}
    return {
        row: thumbnails.slices(
            source[place]["volume"], spacing=tuple(spacing), steps_per_hu=STEPS_PER_HU
        )
        for row, place in found.items()
    }


def check(inputs: Inputs, out: Path, *, published: bool) -> None:
    """Raises InputError for inputs that contradict each other."""
    given = [name for name in ("model", "from_latents", "from_scores") if getattr(inputs, name)]
    read = [Path(each) for each in (inputs.from_latents, inputs.from_scores) if each]
    if given == ["model"] and not inputs.shards or not given:
        raise InputError("give --model and --shards, or --from_latents, or --from_scores")
    if "from_scores" in given and len(given) > 1:
        raise InputError(f"--from_scores goes without --{given[0]}")
    if read and inputs.task != (0, 1):
        raise InputError("--task is of encoding, and there is nothing to encode")
    if published and inputs.validation:
        raise InputError("--validation: the published thresholds are fitted on the volumes judged")
    if any(folder.absolute() == out.absolute() for folder in read):
        raise InputError(f"--out={out}: is the folder that is read; choose another")


def read_study(inputs: Inputs, out: Path, *, protocol: ProtocolConfig) -> EvalSet | None:
    """The volumes with all that `inputs` give of them; None while slices are missing."""
    if inputs.from_scores:
        return files.read_scores(Path(inputs.from_scores))
    model = open_model(inputs, protocol) if inputs.model else None
    if inputs.from_latents:
        return read_scored(Path(inputs.from_latents), model, protocol=protocol, out=out)
    labels = shards.preparation(inputs.shards, inputs.split)["labels"]
    check_classifier(labels, model, protocol=protocol)
    source = latents.describe(model, inputs.model, folder=inputs.shards, split=inputs.split)
    complete = latents.encode_split(
        model, source, out, batch_size=protocol.batch_size, task=inputs.task
    )
    return read_scored(out, model, protocol=protocol, out=out) if complete else None


def open_model(inputs: Inputs, protocol: ProtocolConfig) -> Model:
    """The model, reading reports as the protocol says, or else as its export does."""
    return load(
        inputs.model,
        tokenizer=inputs.tokenizer,
        max_length=protocol.max_length,
        dtype=protocol.dtype,
        report_format=protocol.report_format,
        pool_sentences=protocol.pool_sentences,
        label_informed=inputs.label_informed or None,
    )


def read_scored(
    folder: Path, model: Model | None, *, protocol: ProtocolConfig, out: Path
) -> EvalSet:
    """The study of a folder of latents, scored by prompts or classifier, or by its scores.csv."""
    study, arrays = files.read_latents(folder)
    known = study.source.get("model_sha256")
    if model and known is None:
        told = "nothing says of which model the latents are; they are taken to be of the one given"
        study = dataclasses.replace(study, notes=(*study.notes, told))
        arrays |= latents.model_arrays(model)
    elif model and known != latents.fingerprint(model):
        raise InputError(f"{folder}: its latents are of another model than the one given")

    def encode_text(texts: list[str]) -> np.ndarray:
        kept = folder if known or not model else None
        prompts = latents.prompt_latents(texts, model=model, folder=kept, out=out)
        return np.stack([prompt_latent(prompts, t, dim=study.image.shape[1]) for t in texts])

    classifier = make_classifier(study.label_names, arrays, encode_text, protocol=protocol)
    if classifier is None and (folder / "scores.csv").exists():
        return files.with_scores(study, folder)
    if classifier is None:
        told = "no scores: latents.npz has no temperature, and no scores.csv or --model is given"
        return dataclasses.replace(study, notes=(*study.notes, told))
    scores = protocol.scores(study.label_names, classifier, study.image)
    source = {**study.source, **protocol.score_metadata()}
    return dataclasses.replace(study, scores=scores, source=source)


def check_classifier(labels: Sequence[str], model: Model, *, protocol: ProtocolConfig) -> None:
    """Raises what `make_classifier` would, before anything is encoded."""
    if protocol.classifier == "zero_shot":
        prompt_texts(protocol.findings(labels))
    elif "classifier" not in model.variables["params"]:
        raise InputError(NO_TRAINED_CLASSIFIER)


def make_classifier(
    labels: Sequence[str],
    arrays: Mapping[str, np.ndarray],
    encode_text: Callable[[list[str]], np.ndarray],
    *,
    protocol: ProtocolConfig,
) -> Classifier | None:
    """The classifier of the model whose arrays are in latents.npz; None without a temperature."""
    if protocol.classifier == "trained":
        if "classifier_kernel" not in arrays:
            raise InputError(NO_TRAINED_CLASSIFIER)
        return trained_classifier(arrays["classifier_kernel"], arrays["classifier_bias"])
    if "temperature" not in arrays:
        return None
    if arrays["temperature"].size != 1:
        raise InputError(f"latents.npz: temperature of shape {arrays['temperature'].shape}")
    return zero_shot_classifier(
        protocol.findings(labels),
        encode_text,
        temperature=arrays["temperature"].item(),
        ensemble=protocol.ensemble,
    )


def prompt_latent(prompts: Mapping[str, np.ndarray], text: str, *, dim: int) -> np.ndarray:
    """The latent of a prompt; an InputError without one or if its size is another."""
    if text not in prompts:
        raise InputError(f"no latent of the prompt {text!r}: it takes the model (--model) as well")
    if prompts[text].shape != (dim,):
        raise InputError(f"the latent of the prompt {text!r} is not of the size {dim}")
    return prompts[text]


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    configs.define(default=configs.PROTOCOL)
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.")
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_bool("label_informed", False, "It has read labels, and its file cannot say so.")
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.")
    flags.DEFINE_string("split", "valid", "Split of the shards.")
    flags.DEFINE_string("from_latents", None, "Folder with latents.npz and labels.csv.")
    flags.DEFINE_string("from_scores", None, "Folder with scores.csv and labels.csv.")
    flags.DEFINE_string("validation", None, "Such a folder of other volumes, to fit thresholds on.")
    flags.DEFINE_enum("protocol", "sound", ["sound", "published"], "How figures are made.")
    flags.DEFINE_string("task", "0/1", "I/N: encode the I-th, from 0, of N slices of the shards.")
    flags.DEFINE_string("out", None, "Folder to write into.", required=True)


def main() -> None:
    """Evaluates what the flags say and prints the headline figures."""
    values = flags.FLAGS
    given = {field.name: values[field.name].value for field in dataclasses.fields(Inputs)}
    inputs = Inputs(**given | {"task": parse_slice(values.task)})
    protocol = from_dict(ProtocolConfig, configs.read())
    out = Path(values.out)
    metrics = evaluate(inputs, out, protocol=protocol, published=values.protocol == "published")
    if metrics is None:
        print(f"{out}: slices of other tasks are still to come")
    else:
        for note in metrics["notes"]:
            print(f"note: {note}", file=sys.stderr)
        print(f"{suite.headline(metrics)}: {out / 'report.html'}")


if __name__ == "__main__":
    run_main(main, define_flags)
