"""Probabilities of findings in chest CTs, with heatmaps.

    python -m ctclip_jax.predict scan.nii.gz --model=EXPORT
    python -m ctclip_jax.predict 'scans/*.nii.gz' DICOM --model=EXPORT --out=OUT --heatmaps=3

A scan is NIfTI, NRRD, MetaImage, .npz or DICOM (a folder or a zip of it); quoted patterns are
expanded. Of several DICOM series one is chosen (docs/data.md), or named by --series. --scans=TABLE
lists scans in a column `path`, with what their files lack, such as slope, intercept and spacing
(docs/data.md). --model is a run's WORKDIR, an export or a published weight file. Unreadable scans
are reported and skipped; the exit status is then 1.

OUT/scores.csv              probabilities, one row per scan
OUT/calibrated.csv          calibrated probabilities, if the model has a calibration
OUT/NAME/prediction.json    both for one scan, and how its file was interpreted
OUT/NAME/FINDING.png        with --heatmaps: what each patch adds to the logit
OUT/NAME/FINDING.nii.gz     the same in scan space, for ITK-SNAP or 3D Slicer
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

import dataclasses
import itertools
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32
from tqdm import tqdm

from ctclip_jax import Model, load
from ctclip_jax.evaluation import files
from ctclip_jax.inference import classifiers, heatmaps
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.inference.scans import list_scans, read_ahead
from data_pipelines.errors import InputError, one_line
from data_pipelines.shard_tasks import PreparedVolume, provenance
from data_pipelines.sources.case import CaseRecord

TABLES = {"probability": "scores.csv", "calibrated": "calibrated.csv"}
NUM_PRINTED = 3  # findings per scan, if there are several scans


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The findings of one scan.

    `scores` has a row per finding and the columns `probability` and, if the model has a
    calibration, `calibrated` (NaN without a curve). `contributions` to their logits are by finding;
    empty without heatmaps.
    """

    case: CaseRecord
    prepared: PreparedVolume
    scores: pd.DataFrame
    contributions: Mapping[str, Float32[np.ndarray, "t h w"]]

    @property
    def ranked(self) -> pd.DataFrame:
        """`scores`, most probable first."""
        return self.scores.sort_values("probability", ascending=False, kind="stable")


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
        probabilities = classifier.probabilities(latents)
        calibrated = classifier.calibrate(probabilities)
        for row, (case, prepared) in enumerate(batch):
            scores = pd.DataFrame({"probability": probabilities[row]}, index=classifier.names)
            if calibrated is not None:
                scores["calibrated"] = calibrated[row]
            by_finding = {}
            if attribute:
                by_finding = dict(zip(classifier.names, contributions[row], strict=True))
            yield Prediction(case, prepared, scores, by_finding)


def save(prediction: Prediction, model: Model, out: Path, *, num_heatmaps: int) -> None:
    """Writes OUT/NAME and adds the scan to the tables."""
    name, scores = prediction.case.volume_name, prediction.scores
    folder = out / file_name(name)
    files.make_folder(folder)
    findings = list(prediction.ranked.index[:num_heatmaps])
    for finding in findings:
        contributions = prediction.contributions[finding]
        probability, logit = scores.probability[finding], contributions.sum()
        caption = f"{finding}: probability {probability:.2f}; {model.attribution_method}"
        heatmaps.save_png(
            folder / f"{file_name(finding)}.png",
            prediction.prepared.volume,
            contributions,
            spacing=model.geometry.spacing,
            title=f"{caption}, sum {logit:+.3f}",
        )
        heatmaps.save_nifti(
            folder / f"{file_name(finding)}.nii.gz",
            contributions,
            prediction.prepared,
            geometry=model.geometry,
            description=f"{finding}: {model.attribution_method}",
        )
    rounded = scores.round(6).astype(object).where(scores.notna(), None)
    content = {
        "name": name,
        **provenance(prediction.prepared),
        "probabilities": rounded["probability"].to_dict(),
    }
    if "calibrated" in scores:
        content["calibrated"] = rounded["calibrated"].to_dict()
    if findings:
        content["heatmaps"] = {"of": model.attribution_method, "findings": findings}
    files.write_json(folder / "prediction.json", content)
    # Tables last: a scan that is in them has all its files, even if the program is killed.
    for column, values in scores.items():
        append_row(out / TABLES[column], values.rename(name))


def append_row(path: Path, row: pd.Series) -> None:
    """Adds a row, its name first, to a table, which starts with a header; NaN is an empty cell."""
    table = row.to_frame().T
    try:
        table.to_csv(
            path, mode="a", header=not path.exists(), index_label=files.KEY, float_format="%.6g"
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({one_line(error)})") from error


def file_name(name: str) -> str:
    """A name as one path component, of at most 200 bytes."""
    safe = re.sub(r"[^\w\-. ]+", "_", name).strip(". ")
    return safe.encode()[-200:].decode(errors="ignore") or "_"


def check_file_names(names: Sequence[str]) -> None:
    """Raises InputError if two names would be one file, also where the disk ignores case."""
    by_file: dict[str, str] = {}
    for name in names:
        if (other := by_file.setdefault(file_name(name).lower(), name)) != name:
            raise InputError(f"{other!r} and {name!r}: both would be {file_name(name)}; rename one")


def format_prediction(prediction: Prediction, *, is_only: bool) -> str:
    """A table of all findings for the only scan, or the most probable ones in one line."""
    name, scores = prediction.case.volume_name, prediction.ranked
    if is_only:
        return f"{name}\n{scores.to_string(float_format='{:.3f}'.format, na_rep='-')}"
    top = scores.probability.head(NUM_PRINTED).items()
    return f"{name}: {', '.join(f'{finding} {value:.2f}' for finding, value in top)}"


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
    if out and (table := next((name for name in TABLES.values() if (out / name).exists()), None)):
        raise InputError(f"{out}: already has {table}; choose another --out")
    cases = list_scans(
        patterns,
        values.scans,
        split=values.split,
        encoding=values.encoding,
        series=values.series,
    )
    model = load(values.model, tokenizer=values.tokenizer, dtype=values.dtype)
    classifier = build_classifier(
        model, kind=values.classifier, prompts=values.prompts, encoding=values.encoding
    )
    if out:
        check_file_names([case.volume_name for case in cases])
        check_file_names(classifier.names)
        files.make_folder(out)
    is_only, skipped = len(cases) == 1, []
    with tqdm(total=len(cases), unit="scan", disable=is_only) as progress:

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
            if out:
                save(prediction, model, out, num_heatmaps=values.heatmaps)
            for note in prediction.prepared.notes:
                progress.write(f"note: {prediction.case.volume_name}: {note}", file=sys.stderr)
            progress.write(format_prediction(prediction, is_only=is_only))
            progress.update()
    if skipped and not is_only:
        header = f"{len(skipped)} of {len(cases)} scans skipped:"
        print(header, *skipped, sep="\n  ", file=sys.stderr)
    if skipped:
        sys.exit(1)


if __name__ == "__main__":
    command_line.run(main)
