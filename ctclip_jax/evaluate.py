"""Evaluates a model: detection and retrieval with confidence intervals, and a report page.

    python -m ctclip_jax.evaluate --model=EXPORT --shards=SHARDS --out=OUT    encode and evaluate
    python -m ctclip_jax.evaluate --from_latents=OUT --out=OTHER              evaluate again
    python -m ctclip_jax.evaluate --from_scores=DIR --out=OUT                 any scores.csv

docs/evaluation.md describes the files in OUT. The same command resumes an interrupted run.
"""

from absl import flags

from data_pipelines import command_line, config_files


def define_flags() -> None:
    config_files.define("config", "evaluation", help="The protocol (docs/evaluation.md).")
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.")
    flags.DEFINE_string("tokenizer", None, "vocab.txt or *.model, if not in the export.")
    flags.DEFINE_bool("label_informed", False, "Trained with labels, and its file cannot say so.")
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.")
    flags.DEFINE_string("split", "valid", "Split of the shards.")
    flags.DEFINE_string("from_latents", None, "Folder with latents.npz and labels.csv.")
    flags.DEFINE_string("from_scores", None, "Folder with scores.csv and labels.csv.")
    flags.DEFINE_string(
        "validation", None, "Folder with scores of other volumes, to fit thresholds on."
    )
    flags.DEFINE_enum("protocol", "sound", ["sound", "published"], "How metrics are computed.")
    flags.DEFINE_string("task", "0/1", "I/N: encode the I-th, from 0, of N slices of the shards.")
    flags.DEFINE_string("out", None, "Folder to write into.", required=True)


command_line.parse(__name__, define_flags)

import dataclasses
import functools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_jax import Model, load
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluation import encode, files, scores, suite
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.detection import Predictions
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.reporting import examples, latex
from ctclip_jax.reporting.report import render_report
from data_pipelines import shards, slices
from data_pipelines.errors import InputError
from data_pipelines.files import write_text

NUM_RETRIEVALS = 4  # examples on the report page
LATENT_MAP_SEED = 0


@dataclasses.dataclass(frozen=True)
class Inputs:
    """What is evaluated, by the flags of these names: a model on a prepared split, or the files of
    an earlier evaluation, whose `shards` serve only for the thumbnails of the report page."""

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
    """Writes an evaluation folder and returns the content of metrics.json; None while shards of
    other tasks are missing."""
    check_inputs(inputs, out, published=published)
    validation = files.read_scores(Path(inputs.validation)) if inputs.validation else None
    eval_set = load_eval_set(inputs, out, protocol=protocol)
    if eval_set is None:
        return None
    files.claim_output_dir(out, eval_set.source)
    metrics, predictions = suite.evaluate(
        eval_set, protocol=protocol, published=published, validation=validation
    )
    metrics["validation"] = inputs.validation
    files.write_eval_set(out, eval_set)
    files.write_metrics(out, metrics)
    write_report(inputs, out, eval_set, metrics=metrics, predictions=predictions)
    return metrics


def check_inputs(inputs: Inputs, out: Path, *, published: bool) -> None:
    """Raises InputError for inputs that contradict each other."""
    folders = [Path(folder) for folder in (inputs.from_latents, inputs.from_scores) if folder]
    if not folders and not (inputs.model and inputs.shards):
        raise InputError("pass --model and --shards, or --from_latents, or --from_scores")
    if inputs.from_scores and (inputs.model or inputs.from_latents):
        raise InputError("--from_scores: cannot be combined with --model or --from_latents")
    if folders and inputs.task != (0, 1):
        raise InputError("--task: there is nothing to encode")
    if published and inputs.validation:
        raise InputError("--validation: published thresholds are fitted to the evaluated volumes")
    if any(folder.absolute() == out.absolute() for folder in folders):
        raise InputError(f"--out={out}: is also the input; choose another folder")


def load_eval_set(inputs: Inputs, out: Path, *, protocol: ProtocolConfig) -> EvalSet | None:
    """Reads or encodes the volumes and scores them by the classifier of the protocol; None while
    shards of other tasks are missing."""
    if inputs.from_scores:
        return files.read_scores(Path(inputs.from_scores))
    model = open_model(inputs, protocol) if inputs.model else None
    if inputs.from_latents:
        eval_set, heads, prompts_dir = read_saved_latents(Path(inputs.from_latents), model)
        labels, dim = eval_set.label_names, eval_set.image.shape[1]
        if protocol.classifier == "zero_shot" and "temperature" not in heads:
            if (Path(inputs.from_latents) / "scores.csv").exists():
                return files.with_scores(eval_set, Path(inputs.from_latents))
            return eval_set.with_notes(
                "no scores: latents.npz has no temperature, and there is no scores.csv or --model"
            )
    else:
        source = encode.provenance(model, inputs.model, folder=inputs.shards, split=inputs.split)
        files.claim_output_dir(out, source)
        heads, prompts_dir = encode.head_arrays(model.variables["params"]), out
        labels = shards.preparation(inputs.shards, inputs.split)["labels"]
        eval_set, dim = None, model.config.dim_latent
    # Before the volumes are encoded, so that a wrong prompt costs seconds.
    classifier = scores.make_classifier(
        labels,
        heads,
        encode_prompts=functools.partial(
            scores.encode_prompts, dim=dim, model=model, folder=prompts_dir, out=out
        ),
        protocol=protocol,
    )
    if eval_set is None:
        eval_set = encode.encode_split(
            model, source, out, batch_size=protocol.batch_size, task=inputs.task
        )
    return eval_set and scores.add_scores(eval_set, classifier, protocol=protocol)


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


def read_saved_latents(
    folder: Path, model: Model | None
) -> tuple[EvalSet, dict[str, np.ndarray], Path | None]:
    """The volumes, the heads of the model that encoded them, and the folder of its prompts."""
    eval_set, heads = files.read_latents(folder)
    model_sha256 = eval_set.source.get("model_sha256")
    if model and model_sha256 is None:
        eval_set = eval_set.with_notes(
            "the latents do not say which model they are from; they are taken to be from --model"
        )
        # Prompts that were saved beside them may be from another model.
        return eval_set, heads | encode.head_arrays(model.variables["params"]), None
    if model and model_sha256 != encode.fingerprint(model):
        raise InputError(f"{folder}: its latents are from another model than --model")
    return eval_set, heads, folder


def write_report(
    inputs: Inputs,
    out: Path,
    eval_set: EvalSet,
    *,
    metrics: dict[str, Any],
    predictions: Predictions | None,
) -> None:
    """Writes report.html, with thumbnails if the shards are available, and table.tex."""
    cases = examples.confident_cases(eval_set, predictions) if predictions else ()
    retrievals = examples.sample_retrievals(eval_set, NUM_RETRIEVALS)
    rows = examples.rows_with_thumbnails(cases, retrievals)
    latent_map = None
    if eval_set.image is not None:
        latent_map = examples.latent_map(eval_set.image, LATENT_MAP_SEED)
    html = render_report(
        metrics,
        eval_set,
        predictions=predictions,
        latent_map=latent_map,
        cases=cases,
        retrievals=retrievals,
        thumbnails=load_thumbnails(inputs, eval_set, rows=rows),
    )
    write_text(out / "report.html", html)
    write_text(out / "table.tex", latex.render_tables(metrics, "This model"))


def load_thumbnails(inputs: Inputs, eval_set: EvalSet, *, rows: Sequence[int]) -> dict[int, bytes]:
    """Thumbnails by row, as far as --shards, or the shards that were encoded, have the volumes."""
    folder = inputs.shards or eval_set.source.get("shards", "")
    split = inputs.split if inputs.shards else eval_set.source.get("split", "")
    try:
        source, spacing = shards.read(folder, split), shards.preparation(folder, split)["spacing"]
    except InputError:
        if inputs.shards:
            raise
        return {}  # removed since the evaluation
    names = [row["volume_name"] for row in shards.read_reports(folder, split)]
    index = {name: i for i, name in enumerate(names)}
    return {
        row: slices.thumbnail(source[index[name]]["volume"], spacing=spacing)
        for row in rows
        if (name := eval_set.names[row]) in index
    }


def main() -> None:
    values = flags.FLAGS
    arguments = {field.name: values[field.name].value for field in dataclasses.fields(Inputs)}
    inputs = Inputs(**arguments | {"task": command_line.parse_slice(values.task)})
    protocol = from_dict(ProtocolConfig, config_files.read("config"))
    out = Path(values.out)
    metrics = evaluate(inputs, out, protocol=protocol, published=values.protocol == "published")
    if metrics is None:
        print(f"{out}: waiting for the shards of other tasks")
    else:
        for note in metrics["notes"]:
            print(f"note: {note}", file=sys.stderr)
        print(f"{suite.headline(metrics)}: {out / 'report.html'}")


if __name__ == "__main__":
    command_line.run(main)
