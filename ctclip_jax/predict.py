"""Scores and probabilities of findings in chest CTs, with heatmaps.

    python -m ctclip_jax.predict scan.nii.gz --model=EXPORT
    python -m ctclip_jax.predict 'scans/*.nii.gz' DICOM --model=EXPORT --out=OUT --heatmaps=3

A scan is NIfTI, NRRD, MetaImage, .npz or DICOM (a folder or a zip of it); quoted patterns are
expanded. Of several DICOM series one is chosen (docs/data.md), or named by --series. --scans=TABLE
lists scans in a column `path`, with what their files lack, such as slope, intercept and spacing
(docs/data.md). --model is a run's WORKDIR, an export or a published weight file. Unreadable scans
are reported and skipped; the exit status is then 1.

OUT/scores.csv                  scores in [0, 1], one row per scan; no probabilities by themselves
OUT/calibrated.csv              calibrated probabilities, if the model has a calibration
OUT/ranks.csv                   the share of reference volumes with a lower score, if it has any
OUT/NAME/prediction.json        all of them for one scan, and how its file was interpreted
OUT/NAME/FINDING_map.png        with --heatmaps: what each patch adds to the logit, over the scan
OUT/NAME/FINDING_map.nii.gz     the same in scan space, for ITK-SNAP or 3D Slicer
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_alias("checkpoint", "model")
    flags.DEFINE_string("tokenizer", None, "vocab.txt or *.model, if the export has none.")
    flags.DEFINE_string("scans", None, "Table of scans.")
    flags.DEFINE_string("encoding", "", "Of tables that are not UTF-8, such as cp1254.")
    flags.DEFINE_string("split", "valid", "Rows of a table with a column split.")
    flags.DEFINE_string("series", "", "DICOM series: UID, number or description; all: each.")
    flags.DEFINE_string("out", None, "Output folder.")
    kinds = ("zero_shot", "trained", "classifier")
    flags.DEFINE_enum("classifier", "zero_shot", kinds, "Prompts, or a trained (=classifier) head.")
    flags.DEFINE_alias("scores", "classifier")
    flags.DEFINE_string("prompts", None, "Table of other findings: finding, present, absent.")
    flags.DEFINE_integer("heatmaps", 0, "Findings per scan with heatmaps.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 1, "Scans computed at a time.", lower_bound=1)
    flags.DEFINE_integer("workers", 2, "Threads that read scans ahead.", lower_bound=1)
    flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the large matrix products.")


command_line.parse(__name__, define_flags)

import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from ctclip_jax import Model, load
from ctclip_jax.evaluation import files
from ctclip_jax.inference import classifiers
from ctclip_jax.inference.batching import ProgressBar
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.inference.scans import list_scans, read_ahead
from ctclip_jax.reporting import predictions
from ctclip_jax.reporting.predictions import Prediction
from data_pipelines.errors import InputError
from data_pipelines.shard_tasks import PreparedVolume
from data_pipelines.sources.case import CaseRecord


def predict(
    model: Model,
    classifier: Classifier,
    scans: Iterator[tuple[CaseRecord, PreparedVolume]],
    *,
    batch_size: int,
    attribute: bool,
) -> Iterator[Prediction]:
    """Predicts `batch_size` scans at a time; with `attribute`, predictions have contributions."""
    while batch := list(itertools.islice(scans, batch_size)):
        volumes = np.stack([prepared.volume for _, prepared in batch])
        if attribute:
            features = model.patch_features(volumes, batch_size=len(batch))
            latents, contributions = model.attribute(
                features, classifier.kernel, relu=classifier.relu, batch_size=len(batch)
            )
        else:
            latents = model.encode_image(volumes, batch_size=len(batch))
        scores = classifier.tables(latents)
        for row, (case, prepared) in enumerate(batch):
            by_finding = {}
            if attribute:
                by_finding = dict(zip(classifier.names, contributions[row], strict=True))
            yield Prediction(case, prepared, scores[row], by_finding)


def build_classifier(
    model: Model, *, kind: str, prompts: str | None, encoding: str = ""
) -> Classifier:
    """The classifier of --classifier and --prompts."""
    if kind == "zero_shot":
        findings = classifiers.read_findings(Path(prompts), encoding=encoding) if prompts else None
        return model.zero_shot_classifier(findings)
    if prompts:
        raise InputError("--prompts: only for --classifier=zero_shot")
    return model.trained_classifier()


def main(*patterns: str) -> None:
    values = flags.FLAGS
    out = Path(values.out) if values.out else None
    if values.heatmaps and not out:
        raise InputError("--heatmaps: needs --out")
    if out and (tables := predictions.existing_tables(out)):
        raise InputError(f"{out}: already has {tables[0].name}; choose another --out")
    cases = list_scans(
        patterns,
        values.scans,
        split=values.split,
        encoding=values.encoding,
        series=values.series,
    )
    model = load(values.model, tokenizer=values.tokenizer, dtype=values.dtype)
    for note in model.notes:
        print(f"note: {note}", file=sys.stderr)
    classifier = build_classifier(
        model, kind=values.classifier, prompts=values.prompts, encoding=values.encoding
    )
    if out:
        folders = predictions.folder_names([case.volume_name for case in cases])
        predictions.check_findings(classifier.names)
        files.make_folder(out)
    is_only, skipped, saved = len(cases) == 1, [], []
    is_silent = is_only and not sys.stderr.isatty()
    with ProgressBar(len(cases), unit="scan", disable=is_silent) as progress:

        def skip(reason: str) -> None:
            skipped.append(reason)
            progress.write(f"error: {reason}", file=sys.stderr)
            progress.update()

        scans = read_ahead(model, cases, num_workers=values.workers, on_skip=skip)
        for prediction in predict(
            model,
            classifier,
            scans,
            batch_size=values.batch_size,
            attribute=values.heatmaps > 0,
        ):
            name = prediction.case.volume_name
            if out:
                predictions.save(
                    prediction, model, out, folder=folders[name], num_heatmaps=values.heatmaps
                )
                saved.append(folders[name])
            for note in prediction.prepared.notes:
                progress.write(f"note: {name}: {note}", file=sys.stderr)
            progress.write(predictions.format_prediction(prediction, model, is_only=is_only))
            progress.update()
    if saved:
        num_heatmaps = min(values.heatmaps, len(classifier.names))
        print(predictions.format_outputs(out, saved, num_heatmaps=num_heatmaps))
    if skipped and not is_only:
        header = f"{len(skipped)} of {len(cases)} scans skipped:"
        print(header, *skipped, sep="\n  ", file=sys.stderr)
    if skipped:
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main)
