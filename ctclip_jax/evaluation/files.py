"""The files that hold a study, so that every figure can be made again without the model.

    labels.csv    VolumeName and a column per label: 1, 0, or empty where unknown
    scores.csv    VolumeName and a column per label: probabilities
    cases.csv     VolumeName, patient, scan, report; sex, age, manufacturer, kernel, slice_spacing
    latents.npz   names, image (n, d), and if there are any text (n, d) and temperature
    source.json   where model and data come from

Only labels.csv and one of scores.csv and latents.npz are needed, and they may be anyone's: without
cases.csv, patients and scans are told from the names of volumes as in CT-RATE.
"""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ctclip_jax.evaluation.dataset import STRATA, EvalSet, identity, repeated
from ctclip_jax.evaluation.estimates import named_figures
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, read_json, write_text
from data_pipelines.sources.tables import Table, is_number, read_table

KEY = "VolumeName"
LABEL_CELLS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
LABEL_CELLS |= {"": -1, "-1": -1, "-1.0": -1}  # unknown


def write_study(folder: Path, study: EvalSet) -> None:
    """Writes labels.csv, cases.csv, source.json and, if there are scores, scores.csv."""
    make_folder(folder)
    labels = pd.DataFrame(study.labels, columns=study.label_names, index=study.names)
    write_table(folder / "labels.csv", labels.astype("Int8").mask(labels < 0))
    pairs = zip(study.scans, study.patients, strict=True)
    scans = [scan.removeprefix(f"{patient}/") for scan, patient in pairs]
    about = {"patient": study.patients, "scan": scans, "report": study.reports}
    write_table(folder / "cases.csv", pd.DataFrame(about | dict(study.strata), index=study.names))
    write_json(folder / "source.json", study.source)
    if study.scores is not None:
        scores = pd.DataFrame(study.scores, columns=study.label_names, index=study.names)
        write_table(folder / "scores.csv", scores)


def write_table(path: Path, table: pd.DataFrame, *, key: str = KEY) -> None:
    """Writes a CSV file, whole or not at all, whose first column, `key`, is the table's index."""
    write_text(path, table.to_csv(index_label=key))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Strict JSON, in which a NaN is an error; the file is there whole or not at all."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json, and its figures as a table: figures.csv."""
    write_json(folder / "metrics.json", metrics)
    named = dict(named_figures(metrics))
    columns = ["value", "low", "high", "delong_low", "delong_high", "chance", "reason"]
    figures = pd.DataFrame(list(named.values()), columns=columns, index=list(named))
    write_table(folder / "figures.csv", figures, key="figure")


def read_scores(folder: Path) -> EvalSet:
    """The study of a folder with scores.csv and labels.csv.

    Raises:
      InputError: a file that is missing or no table, a name with two rows, a label that is not 0, 1
        or empty, a score that is no probability, no volume or no label in common.
    """
    path = folder / "scores.csv"
    table = read_rows(path)
    names = np.array(sorted(table.rows))
    study = read_labeled(folder, names=names, what="scores", labels=_columns(table))
    return _with_scores(study, table, path)


def with_scores(study: EvalSet, folder: Path) -> EvalSet:
    """The study with what scores.csv of the folder has for its volumes and labels."""
    return _with_scores(study, read_rows(folder / "scores.csv"), folder / "scores.csv")


def _with_scores(study: EvalSet, table: Table, path: Path) -> EvalSet:
    columns = _columns(table)
    scores = np.full(study.labels.shape, np.nan)
    for column, label in enumerate(study.label_names):
        if label in columns:
            scores[:, column] = [_probability(table, n, label, path) for n in study.names]
    notes = study.notes
    if missing := [name for name in study.label_names if name not in columns]:
        notes += (f"scores.csv has no column {', '.join(missing)}",)
    if others := [name for name in columns if name not in study.label_names]:
        notes += (f"scores.csv: no label of labels.csv, and not used: {_quoted(others)}",)
    return dataclasses.replace(study, scores=scores, notes=notes)


def _columns(table: Table) -> list[str]:
    return [name for name in next(iter(table.rows.values())) if name != KEY]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))


def read_latents(folder: Path) -> tuple[EvalSet, dict[str, np.ndarray]]:
    """The study of a folder with latents.npz and labels.csv, without scores, and whatever else
    latents.npz has beside names, image and text.

    Raises:
      InputError: as `read_scores`; latents that are not finite or of different sizes.
    """
    path = folder / "latents.npz"
    arrays = read_arrays(path)
    for name in ("names", "image"):
        if name not in arrays:
            raise InputError(f"{path}: has no array {name!r}; there are {', '.join(arrays)}")
    names = arrays.pop("names")
    if names.ndim != 1 or not len(names):
        raise InputError(f"{path}: names of shape {names.shape}, wanted one for each volume")
    names = names.astype(str)
    order = np.argsort(names, kind="stable")
    if len(twice := repeated(names)):
        raise InputError(f"{path}: {twice[0]}: two volumes of this name")
    study = read_labeled(folder, names=names[order], what="latents")
    latents = {
        name: _unit(arrays.pop(name), order, names=study.names, path=path, what=name)
        for name in ("image", "text")
        if name in arrays
    }
    if "text" in latents and latents["text"].shape[1] != latents["image"].shape[1]:
        sizes = " and ".join(str(latents[name].shape[1]) for name in ("image", "text"))
        raise InputError(f"{path}: image and text of different sizes, {sizes}")
    if "text" in latents and np.isnan(latents["text"]).all():
        del latents["text"]
    return dataclasses.replace(study, **latents), arrays


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """The arrays of an .npz file. Raises InputError if it is not there or not one."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        hint = "; save names as strings: names.astype(str)" if "Object arrays" in str(error) else ""
        raise InputError(f"{path}: not a file of arrays ({error}{hint})") from error


def read_results(folder: Path) -> EvalSet:
    """The study of a folder with labels.csv, with latents or scores or both, whichever is there.

    Raises:
      InputError: as `read_scores` and `read_latents`.
    """
    if not (folder / "latents.npz").exists():
        return read_scores(folder)
    study, _ = read_latents(folder)
    return with_scores(study, folder) if (folder / "scores.csv").exists() else study


def read_labeled(
    folder: Path, *, names: np.ndarray, what: str, labels: Sequence[str] | None = None
) -> EvalSet:
    """The study of the volumes `names` (sorted), as labels.csv and cases.csv know them; `what` is
    that of the volumes which they were found by; `labels` are those that count, if not all."""
    path = folder / "labels.csv"
    table = read_rows(path)
    known = [name for name in names if name in table.rows]
    if not known:
        raise InputError(
            f"{path}: has labels of volumes such as {next(iter(table.rows))}, and of none of those"
            f" with {what}, such as {names[0]}"
        )
    notes = []
    if others := sorted(table.rows.keys() - set(names)):
        notes.append(
            f"labels.csv has {len(others)} volumes without {what}, which are not counted, such as"
            f" {others[0]}"
        )
    if len(known) < len(names):
        first = next(name for name in names if name not in table.rows)
        notes.append(f"no labels for {len(names) - len(known)} volumes, such as {first}")
    cells = _read_labels(table, path, labels=labels)
    if others := [name for name in _columns(table) if name not in cells]:
        absent = "" if labels is None else " that has scores"
        notes.append(f"labels.csv: no label{absent}, and not used: {_quoted(others)}")
    cases, told = _read_cases(folder / "cases.csv", names)
    return EvalSet(
        names=names,
        label_names=tuple(cells),
        labels=np.array([[c.get(n, -1) for c in cells.values()] for n in names], np.int8),
        patients=np.array([row["patient"] for row in cases]),
        scans=np.array([f"{row['patient']}/{row['scan']}" for row in cases]),
        reports=np.array([row.get("report", "") for row in cases], object),
        strata={name: np.array([row.get(name, "") for row in cases]) for name in STRATA},
        source=read_source(folder) or {"folder": str(folder.resolve())},
        notes=(*notes, *told),
    )


def read_source(folder: Path) -> dict[str, Any]:
    """source.json of a folder, empty if there is none. Raises InputError if it is broken."""
    path = folder / "source.json"
    return read_json(path) if path.exists() else {}


def _read_labels(
    table: Table, path: Path, *, labels: Sequence[str] | None
) -> dict[str, dict[str, int]]:
    """For every label the cells of its column by volume. A column without any 0 or 1 in it is no
    label; one that has them has nothing else."""
    columns = _columns(table)
    candidates = [name for name in columns if labels is None or name in labels]
    if not candidates:
        raise InputError(
            f"{path}: has no column of a label that has scores; it has {_quoted(columns[:5])},"
            f" scores.csv {_quoted(list(labels)[:5])}"
        )
    found = {}
    for label in candidates:
        cells = {name: row[label].strip().lower() for name, row in table.rows.items()}
        values = {name: LABEL_CELLS.get(cell) for name, cell in cells.items()}
        wrong = next((name for name, value in values.items() if value is None), None)
        if wrong is None and label:
            found[label] = values
        elif label and any(value in (0, 1) for value in values.values()):
            raise InputError(f"{path}: {wrong}: {label}: {cells[wrong]!r} is not 0, 1 or empty")
    if not found:
        raise InputError(
            f"{path}: has no column of 0 and 1; {candidates[0]} is {next(iter(cells.values()))!r}"
        )
    return found


def _read_cases(path: Path, names: np.ndarray) -> tuple[list[dict[str, str]], list[str]]:
    rows = read_rows(path).rows if path.exists() else {}
    notes = []
    if rows and "patient" not in next(iter(rows.values())):
        notes.append("cases.csv has no column patient")
    cases = []
    for name in names:
        patient, scan = identity(name)
        row = {column: cell for column, cell in rows.get(name, {}).items() if column != KEY}
        given = {column: row[column] for column in ("patient", "scan") if row.get(column)}
        cases.append(row | {"patient": patient, "scan": scan} | given)
    alone = sum(case["patient"] == name for case, name in zip(cases, names, strict=True))
    if alone:
        notes.append(f"{alone} volumes have no known patient; each counts as a patient of its own")
    return cases, notes


def read_rows(path: Path) -> Table:
    """A table by VolumeName. Raises InputError for a row that cannot be used, as for two that
    differ."""
    table = read_table(path, key=KEY)
    if table.faults:
        name, fault = next(iter(table.faults.items()))
        raise InputError(f"{fault} ({name})")
    if not table.rows:
        raise InputError(f"{path}: has no rows")
    return table


def _probability(table: Table, name: str, label: str, path: Path) -> float:
    cell = table.rows.get(name, {}).get(label, "") or "nan"
    value = float(cell) if is_number(cell) else np.inf
    if not (0 <= value <= 1 or np.isnan(value)):
        raise InputError(f"{path}: {name}: {label}: {cell} is no probability, of 0 to 1")
    return value


def _unit(
    latents: np.ndarray, order: np.ndarray, *, names: np.ndarray, path: Path, what: str
) -> np.ndarray:
    """The rows `order`, made unit vectors if they are not; NaN where there is no report."""
    numbers = np.issubdtype(latents.dtype, np.floating)
    if not numbers or latents.ndim != 2 or len(latents) != len(names):
        raise InputError(
            f"{path}: {what}: {latents.dtype} of shape {latents.shape} for {len(names)} names"
        )
    latents = latents[order]
    absent = np.isnan(latents).all(axis=1) if what == "text" else np.zeros(len(names), bool)
    norms = np.linalg.norm(latents.astype(np.float64), axis=1, keepdims=True)
    usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0) | absent
    if not usable.all():
        raise InputError(f"{path}: {names[~usable][0]}: the {what} latent is 0 or not finite")
    if np.allclose(norms[~absent], 1, rtol=0, atol=1e-5):
        return latents
    return (latents / norms).astype(np.float32)
