"""What `ctclip_jax.predict` writes and prints of a scan."""

import dataclasses
import re
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Float32

from ctclip_jax import Model
from ctclip_jax.evaluation import files
from ctclip_jax.inference import heatmaps, pictures
from data_pipelines.errors import InputError, one_line
from data_pipelines.shard_tasks import PreparedVolume, provenance
from data_pipelines.sources.case import CaseRecord

TABLES = {"probability": "scores.csv", "calibrated": "calibrated.csv", "rank": "ranks.csv"}
KEYS = {  # of prediction.json
    "probability": "probabilities",
    "calibrated": "calibrated",
    "rank": "ranks",
    "usual": "usual",
    "threshold": "thresholds",
}
NUM_PRINTED = 3  # findings per scan, if there are several scans
SCAN_SUFFIX = re.compile(r"\.(nii|nii\.gz|nrrd|nhdr|mha|mhd|npz|zip|dcm)$", re.IGNORECASE)


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The findings of one scan.

    `scores` has a row per finding and the column `probability`; if the model has a calibration,
    `calibrated` and `threshold` (NaN without a curve); if it has reference volumes, `rank`, the
    share of them with a lower probability, and `usual`, their median. `contributions` to their
    logits are by finding; empty without heatmaps.
    """

    case: CaseRecord
    prepared: PreparedVolume
    scores: pd.DataFrame
    contributions: Mapping[str, Float32[np.ndarray, "t h w"]]

    @property
    def ranked(self) -> pd.DataFrame:
        """`scores`, most notable first: by calibrated probability, then rank, then score."""
        columns = [n for n in ("calibrated", "rank", "probability") if n in self.scores]
        return self.scores.sort_values(columns, ascending=False, kind="stable")


def save(
    prediction: Prediction, model: Model, out: Path, *, folder: str, num_heatmaps: int
) -> None:
    """Writes OUT/FOLDER and adds the scan to the tables."""
    name, scores, prepared = prediction.case.volume_name, prediction.scores, prediction.prepared
    files.make_folder(out / folder)
    findings, sums, from_padding = list(prediction.ranked.index[:num_heatmaps]), {}, {}
    padding = heatmaps.padding_share(prepared, model.geometry, model.config.image.grid)
    for finding in findings:
        contributions = prediction.contributions[finding]
        sums[finding] = round(float(contributions.sum()), 4)
        from_padding[finding] = round(float((contributions * padding).sum()), 4)
        path = out / folder / map_name(finding)
        pictures.save(
            path.with_name(f"{path.name}.png"),
            contributions,
            prepared,
            geometry=model.geometry,
            title=f"{finding}: {describe(scores.loc[finding], model)}\n{model.attribution_method};"
            f" sum {sums[finding]:+.2f}, {from_padding[finding]:+.2f} of it from padding",
        )
        heatmaps.save_nifti(
            path.with_name(f"{path.name}.nii.gz"),
            contributions,
            prepared,
            geometry=model.geometry,
            description=f"{finding}: {model.attribution_method}",
        )
    rounded = scores.round(6).astype(object).where(scores.notna(), None)
    content = {
        "name": name,
        "model_trained_on": list(model.data_sources),
        **provenance(prepared),
        **{key: rounded[column].to_dict() for column, key in KEYS.items() if column in scores},
    }
    if "rank" in scores:
        volumes = model.reference
        content["reference"] = {"volumes": len(volumes.latents), "source": volumes.source}
    if findings:
        content["heatmaps"] = {
            "of": model.attribution_method,
            "findings": findings,
            "sums": sums,
            "from_padding": from_padding,
        }
    files.write_json(out / folder / "prediction.json", content)
    # Tables last: a scan that is in them has all its files, even if the program is killed.
    for column, table in TABLES.items():
        if column in scores:
            append_row(out / table, scores[column].rename(name))


def existing_tables(out: Path) -> list[Path]:
    """The tables that a folder has."""
    return [out / name for name in TABLES.values() if (out / name).exists()]


def append_row(path: Path, row: pd.Series) -> None:
    """Adds a row, its name first, to a table, which starts with a header; NaN is an empty cell."""
    table = row.to_frame().T
    try:
        table.to_csv(
            path, mode="a", header=not path.exists(), index_label=files.KEY, float_format="%.6g"
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({one_line(error)})") from error


def folder_names(names: Sequence[str]) -> dict[str, str]:
    """A folder name for each scan: the end of its path without suffix, sample_2 for
    DIR/sample_2.nii.gz, and as many folders before it as tell all scans apart."""
    ends = {name: _path_ends(name) for name in names}
    for number in range(max(map(len, ends.values()))):
        chosen = {name: of_name[min(number, len(of_name) - 1)] for name, of_name in ends.items()}
        if len({folder.lower() for folder in chosen.values()}) == len(chosen):
            break
    _check_file_names(chosen)
    return chosen


def _path_ends(name: str) -> list[str]:
    """Folder names from the end of a path, ever longer ones; the last is the whole name."""
    *folders, last = [part for part in name.split("/") if part] or [name]
    parts = [*folders, SCAN_SUFFIX.sub("", last)]
    ends = ["_".join(parts[start:]) for start in range(len(parts) - 1, -1, -1)]
    # A number alone, as of a series, says too little.
    return [file_name(end) for end in (*filter(re.compile(r"[^\W\d_]").search, ends), name)]


def file_name(text: str) -> str:
    """A text as one path component without spaces, of at most 190 bytes."""
    safe = re.sub(r"[^\w\-.]+", "_", text).strip(".")
    return safe.encode()[-190:].decode(errors="ignore") or "_"


def map_name(finding: str) -> str:
    """The file of a heatmap, without its ending."""
    return file_name(f"{finding}_map".lower())


def check_findings(findings: Sequence[str]) -> None:
    """Raises InputError if the heatmaps of two findings would be one file."""
    _check_file_names({finding: map_name(finding) for finding in findings})


def _check_file_names(by_name: Mapping[str, str]) -> None:
    """Raises InputError if two names have one file, also where the disk ignores case."""
    names: dict[str, str] = {}
    for name, file in by_name.items():
        if (other := names.setdefault(file.lower(), name)) != name:
            raise InputError(f"{other!r} and {name!r}: both would be {file}; rename one")


def percent(share: float) -> str:
    """93 %, or 0.4 % of little."""
    return f"{100 * share:.{0 if share > 0.0995 else 1}f} %"


def above(rank: float, num_volumes: int) -> str:
    """99 % only if that many of the volumes are below, 100 % only if all are."""
    return f"{100 * round(rank * num_volumes) // num_volumes} %"


def describe(score: pd.Series, model: Model) -> str:
    """The calibrated probability of a finding; without one its score and its rank."""
    if pd.notna(score.get("calibrated")):
        return f"{percent(score.calibrated)} (score {score.probability:.2f})"
    if "rank" not in score:
        return f"{score.probability:.2f}"
    num_volumes = len(model.reference.latents)
    share = above(score["rank"], num_volumes)
    return f"{score.probability:.2f} (higher than {share} of {num_volumes})"


def format_prediction(prediction: Prediction, model: Model, *, is_only: bool) -> str:
    """A table of all findings for the only scan, or the most notable ones in one line."""
    name, scores = prediction.case.volume_name, prediction.ranked
    if not is_only:
        top = scores.head(NUM_PRINTED).iterrows()
        return f"{name}: {', '.join(f'{finding} {describe(row, model)}' for finding, row in top)}"
    num_volumes = len(model.reference.latents) if "rank" in scores else 0
    columns = {
        "calibrated": ("calibrated", percent),
        "probability": ("score", "{:.3f}".format),
        "rank": (f"higher than (of {num_volumes})", partial(above, num_volumes=num_volumes)),
        "usual": ("median score", "{:.3f}".format),
        "threshold": ("score threshold", "{:.3f}".format),
    }
    table = pd.DataFrame(
        {
            header: scores[column].map(form, na_action="ignore")
            for column, (header, form) in columns.items()
            if column in scores
        }
    )
    widths = [len(header) + 1 for header in table]  # two spaces between headers
    lines = [name, table.to_string(na_rep="-", col_space=widths)]
    if "rank" in scores:
        lines += [f"higher than, median score: of {model.reference.source}"]
    return "\n".join(lines)


def format_outputs(out: Path, folders: Sequence[str], *, num_heatmaps: int) -> str:
    """Where things are."""
    places = map(str, existing_tables(out))
    several = f"{len(folders)} folders such as " if len(folders) > 1 else ""
    maps = f": {num_heatmaps} maps" + " each" * bool(several) if num_heatmaps else ""
    return f"{', '.join(places)}, {several}{out / folders[0]}/{maps}"
