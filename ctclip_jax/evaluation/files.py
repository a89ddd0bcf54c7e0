"""Evaluation folders: tables and arrays from which every metric can be computed without the model.

    labels.csv    VolumeName and one column per label: 1, 0, or empty if unknown
    scores.csv    VolumeName and one column per label: probabilities
    cases.csv     VolumeName, patient, scan, report; sex, age, manufacturer, kernel, slice_spacing
    latents.npz   names, image (n, d), and if available text (n, d) and temperature
    source.json   provenance of model and data

Only labels.csv and one of scores.csv and latents.npz are required, and any program may write them:
without cases.csv, patients and scans come from volume names as in CT-RATE.
"""

import dataclasses
import json
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ctclip_jax.evaluation.dataset import SUBGROUPS, EvalSet, repeated_names
from ctclip_jax.evaluation.estimates import named_estimates
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, publish, read_json, scratch_folder, write_text
from data_pipelines.sources.ct_rate import parse_volume_name
from data_pipelines.sources.tables import Table, is_number, read_table

KEY = "VolumeName"
LABEL_CELLS = {"0": 0, "0.0": 0, "false": 0, "1": 1, "1.0": 1, "true": 1}
LABEL_CELLS |= {"": -1, "-1": -1, "-1.0": -1}  # unknown
# Keys of source.json that may differ between two runs into one folder.
CHANGEABLE = ("model", "shards", "scores", "prompts", "ensemble")


def claim_output_dir(out: Path, source: Mapping[str, Any]) -> None:
    """Writes OUT/source.json.

    Raises:
      InputError: the folder has results of another source, or of an unknown one.
    """
    previous = read_source(out)
    if not previous and any((out / name).exists() for name in ("latents.npz", "scores.csv")):
        raise InputError(f"{out}: holds results without a source.json; choose another --out")
    changed = [k for k in source if k not in CHANGEABLE and source[k] != previous.get(k)]
    if previous and changed:
        raise InputError(
            f"{out}: holds results of another {', '.join(changed)}; delete it or choose another"
            " --out"
        )
    make_folder(out)
    write_json(out / "source.json", source)


def write_eval_set(folder: Path, eval_set: EvalSet) -> None:
    """Writes labels.csv, cases.csv, source.json and, if there are scores, scores.csv."""
    make_folder(folder)
    names, label_names = eval_set.names, eval_set.label_names
    labels = pd.DataFrame(eval_set.labels, columns=label_names, index=names)
    write_table(folder / "labels.csv", labels.astype("Int8").mask(labels < 0))
    pairs = zip(eval_set.scans, eval_set.patients, strict=True)
    scans = [scan.removeprefix(f"{patient}/") for scan, patient in pairs]
    cases = {"patient": eval_set.patients, "scan": scans, "report": eval_set.reports}
    write_table(folder / "cases.csv", pd.DataFrame(cases | dict(eval_set.subgroups), index=names))
    write_json(folder / "source.json", eval_set.source)
    if eval_set.scores is not None:
        scores = pd.DataFrame(eval_set.scores, columns=label_names, index=names)
        write_table(folder / "scores.csv", scores)


def write_table(path: Path, table: pd.DataFrame, *, key: str = KEY) -> None:
    """Writes a CSV file atomically; its first column, `key`, is the index of the table."""
    write_text(path, table.to_csv(index_label=key))


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Writes strict JSON atomically; NaN is an error."""
    write_text(path, json.dumps(content, indent=2, allow_nan=False) + "\n")


def write_metrics(folder: Path, metrics: Mapping[str, Any]) -> None:
    """Writes metrics.json, and its estimates as a table: figures.csv."""
    write_json(folder / "metrics.json", metrics)
    estimates = dict(named_estimates(metrics))
    columns = ["value", "low", "high", "delong_low", "delong_high", "chance", "reason"]
    table = pd.DataFrame(list(estimates.values()), columns=columns, index=list(estimates))
    write_table(folder / "figures.csv", table, key="figure")


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file atomically."""
    folder = make_folder(path.parent)
    with scratch_folder(folder) as scratch:
        np.savez(scratch / path.name, **arrays)
        publish(scratch / path.name, folder / path.name)


def read_results(folder: Path) -> EvalSet:
    """Reads labels.csv with latents.npz or scores.csv or both, whichever exists."""
    if not (folder / "latents.npz").exists():
        return read_scores(folder)
    eval_set, _ = read_latents(folder)
    return with_scores(eval_set, folder) if (folder / "scores.csv").exists() else eval_set


def read_scores(folder: Path) -> EvalSet:
    """Reads scores.csv with labels.csv, for the volumes of the former and their common labels."""
    scores = _read_rows(folder / "scores.csv")
    names = np.array(sorted(scores.rows))
    eval_set = _read_labeled(folder, names=names, what="scores", labels=_columns(scores))
    return _with_scores(eval_set, scores, folder / "scores.csv")


def with_scores(eval_set: EvalSet, folder: Path) -> EvalSet:
    """Adds what scores.csv of the folder has for its volumes and labels."""
    return _with_scores(eval_set, _read_rows(folder / "scores.csv"), folder / "scores.csv")


def _with_scores(eval_set: EvalSet, table: Table, path: Path) -> EvalSet:
    columns = _columns(table)
    scores = np.full(eval_set.labels.shape, np.nan)
    for column, label in enumerate(eval_set.label_names):
        if label in columns:
            scores[:, column] = [_probability(table, n, label, path) for n in eval_set.names]
    notes = []
    if missing := [name for name in eval_set.label_names if name not in columns]:
        notes.append(f"scores.csv has no column {', '.join(missing)}")
    if unused := [name for name in columns if name not in eval_set.label_names]:
        notes.append(f"scores.csv: no label of labels.csv, and not used: {_quoted(unused)}")
    return dataclasses.replace(eval_set, scores=scores).with_notes(*notes)


def _probability(table: Table, name: str, label: str, path: Path) -> float:
    cell = table.rows.get(name, {}).get(label, "") or "nan"
    value = float(cell) if is_number(cell) else np.inf
    if not (0 <= value <= 1 or np.isnan(value)):
        raise InputError(f"{path}: {name}: {label}: got {cell}, expected a probability, 0 to 1")
    return value


def read_latents(folder: Path) -> tuple[EvalSet, dict[str, np.ndarray]]:
    """Reads latents.npz with labels.csv: an EvalSet without scores, and the other arrays."""
    path = folder / "latents.npz"
    arrays = read_arrays(path)
    for name in ("names", "image"):
        if name not in arrays:
            raise InputError(f"{path}: no array {name!r}; it has {', '.join(arrays)}")
    names = arrays.pop("names")
    if names.ndim != 1 or not len(names):
        raise InputError(f"{path}: names: got shape {names.shape}, expected one per volume")
    names = names.astype(str)
    order = np.argsort(names, kind="stable")
    if len(repeated := repeated_names(names)):
        raise InputError(f"{path}: {repeated[0]}: two volumes of this name")
    eval_set = _read_labeled(folder, names=names[order], what="latents")
    latents = {}
    for name in ("image", "text"):
        if name in arrays:
            latents[name] = _unit(
                arrays.pop(name),
                order,
                names=eval_set.names,
                where=f"{path}: {name}",
                is_text=name == "text",
            )
    if "text" in latents and latents["text"].shape[1] != latents["image"].shape[1]:
        sizes = " and ".join(str(latents[name].shape[1]) for name in ("image", "text"))
        raise InputError(f"{path}: image and text have different sizes, {sizes}")
    if "text" in latents and np.isnan(latents["text"]).all():
        del latents["text"]
    return dataclasses.replace(eval_set, **latents), arrays


def _unit(
    latents: np.ndarray, order: np.ndarray, *, names: np.ndarray, where: str, is_text: bool
) -> np.ndarray:
    """The rows `order`, normalized unless they are unit vectors; NaN is a text without a report."""
    is_float = np.issubdtype(latents.dtype, np.floating)
    if not is_float or latents.ndim != 2 or len(latents) != len(names):
        raise InputError(
            f"{where}: got {latents.dtype} of shape {latents.shape} for {len(names)} names"
        )
    latents = latents[order]
    is_missing = np.isnan(latents).all(axis=1) & is_text
    norms = np.linalg.norm(latents.astype(np.float64), axis=1, keepdims=True)
    is_usable = np.isfinite(norms[:, 0]) & (norms[:, 0] > 0) | is_missing
    if not is_usable.all():
        raise InputError(f"{where}: {names[~is_usable][0]}: latent is 0 or not finite")
    if np.allclose(norms[~is_missing], 1, rtol=0, atol=1e-5):
        return latents
    return (latents / norms).astype(np.float32)


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads an .npz file."""
    try:
        with np.load(path, allow_pickle=False) as file:
            return dict(file)
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError, AttributeError, zipfile.BadZipFile) as error:
        hint = "; save names as strings: names.astype(str)" if "Object arrays" in str(error) else ""
        raise InputError(f"{path}: not a file of arrays ({error}{hint})") from error


def read_source(folder: Path) -> dict[str, Any]:
    """Reads source.json; empty if there is none."""
    path = folder / "source.json"
    return read_json(path) if path.exists() else {}


def _read_labeled(
    folder: Path, *, names: np.ndarray, what: str, labels: Sequence[str] | None = None
) -> EvalSet:
    """Reads labels.csv and cases.csv for the volumes `names` (sorted), which have `what`; only the
    columns `labels`, if given."""
    path = folder / "labels.csv"
    table = _read_rows(path)
    labeled = [name for name in names if name in table.rows]
    if not labeled:
        raise InputError(
            f"{path}: has labels of volumes such as {next(iter(table.rows))}, but none of those"
            f" with {what}, such as {names[0]}"
        )
    notes = []
    if unused := sorted(table.rows.keys() - set(names)):
        notes.append(
            f"labels.csv has {len(unused)} volumes without {what}, which are not counted, such as"
            f" {unused[0]}"
        )
    if len(labeled) < len(names):
        first = next(name for name in names if name not in table.rows)
        notes.append(f"no labels for {len(names) - len(labeled)} volumes, such as {first}")
    values = _read_label_columns(table, path, labels=labels)
    if unused := [name for name in _columns(table) if name not in values]:
        condition = "" if labels is None else " that has scores"
        notes.append(f"labels.csv: no label{condition}, and not used: {_quoted(unused)}")
    cases = _read_rows(folder / "cases.csv").rows if (folder / "cases.csv").exists() else {}
    if cases and "patient" not in next(iter(cases.values())):
        notes.append("cases.csv has no column patient")
    rows = [_case(name, cases.get(name, {})) for name in names]
    return EvalSet(
        names=names,
        label_names=tuple(values),
        labels=np.array([[v.get(n, -1) for v in values.values()] for n in names], np.int8),
        patients=np.array([row["patient"] for row in rows]),
        scans=np.array([f"{row['patient']}/{row['scan']}" for row in rows]),
        reports=np.array([row.get("report", "") for row in rows], object),
        subgroups={name: np.array([row.get(name, "") for row in rows]) for name in SUBGROUPS},
        source=read_source(folder) or {"folder": str(folder.resolve())},
        notes=tuple(notes),
    )


def _read_label_columns(
    table: Table, path: Path, *, labels: Sequence[str] | None
) -> dict[str, dict[str, int]]:
    """The values of every label by volume. A column with a 0 or 1 is a label and has nothing else;
    other columns are ignored."""
    columns = _columns(table)
    candidates = [name for name in columns if labels is None or name in labels]
    if not candidates:
        raise InputError(
            f"{path}: has no column of a label that has scores; it has {_quoted(columns[:5])},"
            f" scores.csv {_quoted(list(labels)[:5])}"
        )
    by_label = {}
    for label in candidates:
        cells = {name: row[label].strip().lower() for name, row in table.rows.items()}
        values = {name: LABEL_CELLS.get(cell) for name, cell in cells.items()}
        invalid = next((name for name, value in values.items() if value is None), None)
        if invalid is None and label:
            by_label[label] = values
        elif label and any(value in (0, 1) for value in values.values()):
            raise InputError(
                f"{path}: {invalid}: {label}: got {cells[invalid]!r}, expected 0, 1 or empty"
            )
    if not by_label:
        raise InputError(
            f"{path}: has no column of 0 and 1; {candidates[0]} is {next(iter(cells.values()))!r}"
        )
    return by_label


def _case(name: str, row: Mapping[str, str]) -> dict[str, str]:
    """A row of cases.csv, with patient and scan from the volume name where it has none."""
    patient, scan = parse_volume_name(name) or (name, name)
    cells = {column: cell for column, cell in row.items() if cell and column != KEY}
    return {"patient": patient, "scan": scan} | cells


def _read_rows(path: Path) -> Table:
    """Reads a table by VolumeName; an InputError for any row that cannot be used."""
    table = read_table(path, key=KEY)
    if table.faults:
        name, fault = next(iter(table.faults.items()))
        raise InputError(f"{fault} ({name})")
    if not table.rows:
        raise InputError(f"{path}: has no rows")
    return table


def _columns(table: Table) -> list[str]:
    return [name for name in next(iter(table.rows.values())) if name != KEY]


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
