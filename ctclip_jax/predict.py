"""Chest CTs in, the probabilities of findings out.

    python -m ctclip_jax.predict scan.nii.gz --checkpoint=EXPORT
    python -m ctclip_jax.predict 'scans/*.nii.gz' DICOM --checkpoint=EXPORT --out=OUT --heatmaps=3

A scan is NIfTI, a folder of DICOM files or .npz; a quoted pattern is expanded. --scans=TABLE lists
them in a column `path`, and may tell what a file does not know of itself, such as slope, intercept
and spacing (docs/data.md). --checkpoint is a run's WORKDIR, an export, or a published weight file.
A scan that cannot be used is told in one line; the others go on, and the status is 1 at the end.

OUT/scores.csv              the probability of every finding, one scan a line
OUT/calibrated.csv          what they are worth, if the model has been calibrated
OUT/NAME/prediction.json    all of it for one scan, and how its file was understood
OUT/NAME/FINDING.png        with --heatmaps: where in the scan the logit comes from
OUT/NAME/FINDING.nii.gz     the same over the scan itself, for ITK-SNAP or 3D Slicer
"""

import csv
import dataclasses
import re
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from tqdm import tqdm

from ctclip_jax import Model, load
from ctclip_jax.evaluation import files
from ctclip_jax.inference import classifiers, heatmap_png, heatmaps
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.inference.scans import ReadScan, SkippedCase, list_scans, read_ahead
from data_pipelines.errors import InputError, run_main
from data_pipelines.shard_tasks import provenance
from data_pipelines.sources.case import CaseRecord

SHOWN = 3  # findings a line, where there are several scans


@dataclasses.dataclass(frozen=True)
class Predicted:
    """One scan: k findings, and with heatmaps what each patch adds to their logits."""

    scan: ReadScan
    probabilities: np.ndarray
    calibrated: np.ndarray | None
    contributions: np.ndarray | None


def predict(
    model: Model, classifier: Classifier, scans: Sequence[ReadScan], *, explained: bool
) -> Iterator[Predicted]:
    """Of scans that are computed together."""
    volumes = np.stack([scan.prepared.volume for scan in scans])
    contributions = [None] * len(scans)
    if explained:
        evidence = model.evidence(volumes, batch_size=len(scans))
        latents, contributions = model.explain(
            evidence, classifier.kernel, positive=classifier.relu, batch_size=len(scans)
        )
    else:
        latents = model.encode_image(volumes, batch_size=len(scans))
    probabilities = classifier.probabilities(latents)
    calibrated = classifier.calibrate(probabilities)
    if calibrated is None:
        calibrated = [None] * len(scans)
    yield from map(Predicted, scans, probabilities, calibrated, contributions)


def write(
    predicted: Predicted, model: Model, classifier: Classifier, out: Path, *, maps: int
) -> None:
    """Writes OUT/NAME of one scan. Raises InputError if it cannot be written."""
    folder = out / file_name(predicted.scan.case.volume_name)
    files.make_folder(folder)
    drawn = np.argsort(-predicted.probabilities, kind="stable")[:maps]
    content: dict[str, Any] = {
        "name": predicted.scan.case.volume_name,
        **provenance(predicted.scan.prepared),
        "probabilities": _by_name(classifier.names, predicted.probabilities),
    }
    if predicted.calibrated is not None:
        content["calibrated"] = _by_name(classifier.names, predicted.calibrated)
    if maps:
        content["heatmaps"] = {
            "of": model.attribution_method,
            "findings": [classifier.names[column] for column in drawn],
        }
    for column in drawn:
        draw_map(predicted, model, folder, name=classifier.names[column], column=column)
    files.write_json(folder / "prediction.json", content)


def draw_map(predicted: Predicted, model: Model, folder: Path, *, name: str, column: int) -> None:
    """Writes the heatmap of one finding, as a picture and over the scan."""
    probability, prepared = predicted.probabilities[column], predicted.scan.prepared
    contributions = predicted.contributions[column]
    file, how, geometry = file_name(name), model.attribution_method, model.geometry
    heatmap_png.draw(
        folder / f"{file}.png",
        prepared.volume,
        contributions,
        spacing=geometry.spacing,
        title=f"{name}: probability {probability:.2f}; {how}, sum {contributions.sum():+.3f}",
    )
    heatmaps.write_nifti(
        folder / f"{file}.nii.gz",
        contributions,
        prepared,
        geometry=geometry,
        description=f"{name}: {how}",
    )


def file_name(name: str) -> str:
    """A name as that of a file in whatever folder: no path, and not too long."""
    return (
        re.sub(r"[^\w\-. ]+", "_", name).strip(". ").encode()[-200:].decode(errors="ignore") or "_"
    )


def check_file_names(names: Sequence[str]) -> None:
    """Raises InputError if two of them would be one file."""
    known: dict[str, str] = {}
    for name in names:
        if (first := known.setdefault(file_name(name).lower(), name)) != name:
            raise InputError(f"{first!r} and {name!r}: would be written to one file; rename one")


@dataclasses.dataclass(frozen=True)
class Tables:
    """The tables of all scans, written a line at a time, so that what is there stays there."""

    out: Path
    names: tuple[str, ...]

    def add(self, predicted: Predicted) -> None:
        """Adds a line to each. Raises InputError if it cannot be written."""
        for file, values in (
            ("scores.csv", predicted.probabilities),
            ("calibrated.csv", predicted.calibrated),
        ):
            if values is not None:
                self._append(self.out / file, predicted.scan.case.volume_name, values)

    def _append(self, path: Path, name: str, values: np.ndarray) -> None:
        try:
            with path.open("a", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                if not file.tell():
                    writer.writerow((files.KEY, *self.names))
                writer.writerow((name, *("" if np.isnan(v) else f"{v:.6g}" for v in values)))
        except OSError as error:
            raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


def lines(predicted: Predicted, names: Sequence[str], *, alone: bool) -> list[str]:
    """What is printed of a scan: every finding if it is alone, else the most probable."""
    best = np.argsort(-predicted.probabilities, kind="stable")
    if not alone:
        told = (f"{names[i]} {predicted.probabilities[i]:.2f}" for i in best[:SHOWN])
        return [f"{predicted.scan.case.volume_name}: {', '.join(told)}"]
    wide = max(map(len, names))
    head = f"{'':{wide}}  probability" + ("" if predicted.calibrated is None else "  calibrated")
    table = [predicted.scan.case.volume_name, head]
    for i in best:
        row = f"{names[i]:{wide}}  {predicted.probabilities[i]:11.3f}"
        if predicted.calibrated is not None:
            row += f"  {predicted.calibrated[i]:10.3f}".replace("nan", "  -")
        table.append(row)
    return table


def make_classifier(model: Model, *, scores: str, prompts: str | None) -> Classifier:
    """The findings that the flags ask for. Raises InputError for what the model has not."""
    if scores == "classifier":
        if prompts:
            raise InputError("--prompts: a classifier reads none; give --scores=zero_shot")
        return model.trained_classifier()
    return model.zero_shot_classifier(classifiers.read_findings(Path(prompts)) if prompts else None)


def run(
    model: Model,
    classifier: Classifier,
    cases: Sequence[CaseRecord],
    out: Path | None,
    *,
    batch_size: int,
    maps: int,
    workers: int,
) -> list[SkippedCase]:
    """Predicts all scans, prints them, and returns those that could not be used."""
    bad: list[SkippedCase] = []
    if out:
        check_file_names([case.volume_name for case in cases])
        check_file_names(classifier.names)
        files.make_folder(out)
    tables = Tables(out, classifier.names) if out else None
    with tqdm(total=len(cases), unit="scan", disable=len(cases) == 1) as bar:

        def finish(batch: list[ReadScan]) -> None:
            for predicted in predict(model, classifier, batch, explained=maps > 0):
                if tables:
                    write(predicted, model, classifier, out, maps=maps)
                    tables.add(predicted)
                bar.write("\n".join(lines(predicted, classifier.names, alone=len(cases) == 1)))
                bar.update()

        batch: list[ReadScan] = []
        for scan in read_ahead(model, cases, workers=workers):
            if isinstance(scan, SkippedCase):
                bad.append(scan)
                bar.write(f"error: {scan.reason}", file=sys.stderr)
                bar.update()
                continue
            batch.append(scan)
            if len(batch) == batch_size:
                finish(batch)
                batch = []
        if batch:
            finish(batch)
    return bad


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("checkpoint", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("scans", None, "A table of scans, CSV or .jsonl.")
    flags.DEFINE_string("split", "train", "Rows of a table with a column split.")
    flags.DEFINE_string("out", None, "Folder to write into.")
    kinds = ("zero_shot", "classifier")
    flags.DEFINE_enum("scores", "zero_shot", kinds, "By prompts, or by a trained classifier.")
    flags.DEFINE_string("prompts", None, "Table of other findings: finding, present, absent.")
    flags.DEFINE_integer("heatmaps", 0, "Pictures of so many findings a scan.", lower_bound=0)
    flags.DEFINE_integer("batch_size", 1, "Scans computed at a time.", lower_bound=1)
    flags.DEFINE_integer("workers", 2, "Scans read at a time, and kept waiting.", lower_bound=1)
    flags.DEFINE_enum("dtype", None, ("float32", "bfloat16"), "Of the large matrix products.")


def main(*patterns: str) -> None:
    """Predicts what the flags say; status 1 if a scan could not be used."""
    values = flags.FLAGS
    if values.heatmaps and not values.out:
        raise InputError("--heatmaps: pictures need a folder, --out")
    cases = list_scans(patterns, values.scans, split=values.split)
    for table in ("scores.csv", "calibrated.csv") if values.out else ():
        if (Path(values.out) / table).exists():
            raise InputError(f"{values.out}: has a {table} already; choose another --out")
    model = load(values.checkpoint, tokenizer=values.tokenizer, dtype=values.dtype)
    bad = run(
        model,
        make_classifier(model, scores=values.scores, prompts=values.prompts),
        cases,
        Path(values.out) if values.out else None,
        batch_size=values.batch_size,
        maps=values.heatmaps,
        workers=values.workers,
    )
    if bad and len(cases) > 1:
        print(f"{len(bad)} of {len(cases)} scans could not be used:", file=sys.stderr)
        for scan in bad:
            print(f"  {scan.reason}", file=sys.stderr)
    if bad:
        sys.exit(1)


def _by_name(names: Sequence[str], values: np.ndarray) -> dict[str, float | None]:
    rounded = (None if np.isnan(value) else round(float(value), 6) for value in values)
    return dict(zip(names, rounded, strict=True))


if __name__ == "__main__":
    run_main(main, define_flags)
