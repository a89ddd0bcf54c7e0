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
from ctclip_jax.reporting import examples, latex
from ctclip_jax.reporting.report import render_report
from data_pipelines import shards, slices
from data_pipelines.errors import InputError, parse_slice, run_main
from data_pipelines.files import write_text

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
    cases = examples.confident_cases(study, predictions) if predictions else ()
    retrievals = examples.sample_retrievals(study, EXAMPLES)
    rows = examples.rows_with_thumbnails(cases, retrievals)
    html = render_report(
        metrics,
        study,
        predictions=predictions,
        latent_map=None if study.image is None else examples.latent_map(study.image, MAP_SEED),
        cases=cases,
        retrievals=retrievals,
        thumbnails=load_thumbnails(inputs, study, rows=rows),
    )
    write_text(out / "report.html", html)
    write_text(out / "table.tex", latex.tables(metrics, "This model"))


def load_thumbnails(inputs: Inputs, study: EvalSet, *, rows: Sequence[int]) -> dict[int, bytes]:
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
        row: slices.thumbnail(source[place]["volume"], spacing=spacing)
        for row, place in found.items()
    }


def check_inputs(inputs: Inputs, out: Path, *, published: bool) -> None:
    """Raises InputError for inputs that contradict each other."""
    given = [name for name in ("model", "from_latents", "from_scores") if getattr(inputs, name)]
    folders = [Path(folder) for folder in (inputs.from_latents, inputs.from_scores) if folder]
    if given == ["model"] and not inputs.shards or not given:
        raise InputError("pass --model and --shards, or --from_latents, or --from_scores")
    if "from_scores" in given and len(given) > 1:
        raise InputError(f"--from_scores: cannot be combined with --{given[0]}")
    if folders and inputs.task != (0, 1):
        raise InputError("--task: there is nothing to encode")
    if published and inputs.validation:
        raise InputError("--validation: published thresholds are fitted to the evaluated volumes")
    if any(folder.absolute() == out.absolute() for folder in folders):
        raise InputError(f"--out={out}: is also the input; choose another folder")


def load_eval_set(inputs: Inputs, out: Path, *, protocol: ProtocolConfig) -> EvalSet | None:
    """Reads or encodes the volumes with their scores; None while shards of other tasks are missing."""
    if inputs.from_scores:
        return files.read_scores(Path(inputs.from_scores))
    model = open_model(inputs, protocol) if inputs.model else None
    if inputs.from_latents:
        return score_saved_latents(Path(inputs.from_latents), model, out=out, protocol=protocol)
    labels = shards.preparation(inputs.shards, inputs.split)["labels"]
    scores.check_classifier(labels, model, protocol=protocol)
    source = encode.provenance(model, inputs.model, folder=inputs.shards, split=inputs.split)
    eval_set = encode.encode_split(
        model, source, out, batch_size=protocol.batch_size, task=inputs.task
    )
    if eval_set is None:
        return None
    arrays = encode.head_arrays(model)
    return scores.add_scores(
        eval_set, arrays, model=model, prompts_dir=out, out=out, protocol=protocol
    )


def open_model(inputs: Inputs, protocol: ProtocolConfig) -> Model:
    """Loads the model; what the protocol leaves open is as in its export."""
    return load(
        inputs.model,
        tokenizer=inputs.tokenizer,
        max_length=protocol.max_length,
        dtype=protocol.dtype,
        report_format=protocol.report_format,
        pool_sentences=protocol.pool_sentences,
        label_informed=inputs.label_informed or None,
    )


def score_saved_latents(
    folder: Path, model: Model | None, *, out: Path, protocol: ProtocolConfig
) -> EvalSet:
    """Reads latents and scores them by the classifier of the protocol, or else reads scores.csv."""
    eval_set, arrays = files.read_latents(folder)
    model_sha256 = eval_set.source.get("model_sha256")
    prompts_dir = folder
    if model and model_sha256 is None:
        eval_set = eval_set.with_notes(
            "the latents do not say which model they are from; they are taken to be from --model"
        )
        arrays |= encode.head_arrays(model)
        prompts_dir = None  # its prompts may be from another model
    elif model and model_sha256 != encode.fingerprint(model):
        raise InputError(f"{folder}: its latents are from another model than --model")
    scored = scores.add_scores(
        eval_set, arrays, model=model, prompts_dir=prompts_dir, out=out, protocol=protocol
    )
    if scored is not None:
        return scored
    if (folder / "scores.csv").exists():
        return files.with_scores(eval_set, folder)
    return eval_set.with_notes(
        "no scores: latents.npz has no temperature, and there is no scores.csv or --model"
    )


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
