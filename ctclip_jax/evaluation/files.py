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
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from ctclip_jax.evaluation.dataset import SUBGROUPS, EvalSet
from ctclip_jax.evaluation.estimates import named_estimates
from data_pipelines.errors import InputError, one_line
from data_pipelines.files import make_folder, publish, read_json, scratch_folder, write_text
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.ct_rate import parse_volume_name
from data_pipelines.sources.tables import parse_label, parse_number, read_table

KEY = "VolumeName"
_CASE_COLUMNS = ("patient", "scan", "report", *SUBGROUPS)
INVALID = -2  # a cell of labels.csv that is not a label
# Keys of source.json that may differ between two runs into one folder.
CHANGEABLE = ("model", "shards", "data_source", "scores", "prompts", "ensemble")


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
    table = _read_table(folder / "scores.csv")
    names = np.sort(table.index.to_numpy(str))
    eval_set = _read_labeled(folder, names=names, what="scores", scored=list(table.columns))
    return with_scores(eval_set, folder, table=table)


def with_scores(eval_set: EvalSet, folder: Path, *, table: pd.DataFrame | None = None) -> EvalSet:
    """Adds what scores.csv of the folder (`table`, if it is read already) has for its volumes and
    labels."""
    path = folder / "scores.csv"
    names, labels = eval_set.names, eval_set.label_names
    table = _read_table(path, columns=labels) if table is None else table
    cells = table.reindex(index=names, columns=labels, fill_value="").replace("", "nan")
    numbers = cells.map(parse_number)
    scores = numbers.where(numbers.notna() | (cells == "nan"), np.inf).to_numpy(np.float64)
    for row, column in np.argwhere((scores < 0) | (scores > 1)):
        where, cell = f"{path}: {names[row]}: {labels[column]}", cells.iat[row, column]
        raise InputError(f"{where}: got {cell}, expected a probability, 0 to 1")
    notes = []
    if missing := [label for label in labels if label not in table]:
        notes.append(f"scores.csv has no column {', '.join(missing)}")
    if unused := [label for label in table if label not in labels]:
        notes.append(f"scores.csv: no label of labels.csv, and not used: {_quoted(unused)}")
    return dataclasses.replace(eval_set, scores=scores).with_notes(*notes)


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
    image, text = arrays.pop("image"), arrays.pop("text", None)
    image = _unit_latents(image, names, where=f"{path}: image", is_text=False)[order]
    if text is not None:
        text = _unit_latents(text, names, where=f"{path}: text", is_text=True)[order]
        if text.shape[1] != image.shape[1]:
            sizes = f"{image.shape[1]} and {text.shape[1]}"
            raise InputError(f"{path}: image and text have different sizes, {sizes}")
        if np.isnan(text).all():
            text = None
    if np.size(arrays.get("temperature", 1)) != 1:
        raise InputError(f"{path}: temperature: got shape {arrays['temperature'].shape}")
    eval_set = _read_labeled(folder, names=names[order], what="latents")
    return dataclasses.replace(eval_set, image=image, text=text), arrays


def _unit_latents(
    latents: np.ndarray, names: np.ndarray, *, where: str, is_text: bool
) -> Float[np.ndarray, "n d"]:
    """Normalizes rows unless they are unit vectors; NaN is a text without a report."""
    is_float = np.issubdtype(latents.dtype, np.floating)
    if not is_float or latents.ndim != 2 or len(latents) != len(names):
        raise InputError(
            f"{where}: got {latents.dtype} of shape {latents.shape} for {len(names)} names"
        )
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
    except Exception as error:  # numpy, zipfile and zlib raise all kinds for a damaged file
        hint = "; save names as strings: names.astype(str)" if "Object arrays" in str(error) else ""
        raise InputError(f"{path}: not a file of arrays ({one_line(error)}{hint})") from error


def read_source(folder: Path) -> dict[str, Any]:
    """Reads source.json; empty if there is none."""
    path = folder / "source.json"
    return read_json(path) if path.exists() else {}


def _read_labeled(
    folder: Path, *, names: np.ndarray, what: str, scored: Sequence[str] | None = None
) -> EvalSet:
    """Reads labels.csv and cases.csv for the volumes `names` (sorted), which have `what`; only the
    columns `scored`, if there are scores."""
    path = folder / "labels.csv"
    table = _read_table(path, columns=scored or ())
    unlabeled = names[~np.isin(names, table.index.to_numpy(str))]
    if len(unlabeled) == len(names):
        raise InputError(
            f"{path}: has labels of volumes such as {table.index[0]}, but none of those"
            f" with {what}, such as {names[0]}"
        )
    notes = []
    if len(unused := table.index.difference(names)):
        notes.append(
            f"labels.csv has {len(unused)} volumes without {what}, which are not counted, such as"
            f" {unused[0]}"
        )
    if len(unlabeled):
        notes.append(f"no labels for {len(unlabeled)} volumes, such as {unlabeled[0]}")
    labels = _label_values(table, path, scored=scored)
    if unused := [column for column in table if column not in labels]:
        condition = "" if scored is None else " that has scores"
        notes.append(f"labels.csv: no label{condition}, and not used: {_quoted(unused)}")
    cases = pd.DataFrame()
    if (folder / "cases.csv").exists():
        cases = _read_table(folder / "cases.csv", columns=_CASE_COLUMNS)
        if "patient" not in cases:
            notes.append("cases.csv has no column patient")
    cases = cases.reindex(index=names, columns=list(_CASE_COLUMNS), fill_value="").astype(object)
    # As in CT-RATE, or else a patient of its own.
    parsed = [parse_volume_name(name) or (name, name) for name in names]
    ids = cases[["patient", "scan"]]
    ids = ids.where(ids != "", pd.DataFrame(parsed, columns=ids.columns, index=names))
    return EvalSet(
        names=names,
        label_names=tuple(labels),
        labels=labels.reindex(names, fill_value=UNKNOWN).to_numpy(np.int8),
        patients=ids["patient"].to_numpy(str),
        scans=(ids["patient"] + "/" + ids["scan"]).to_numpy(str),
        reports=cases["report"].to_numpy(object),
        subgroups={name: cases[name].to_numpy(str) for name in SUBGROUPS},
        source=read_source(folder) or {"folder": str(folder.resolve())},
        notes=tuple(notes),
    )


def _label_values(table: pd.DataFrame, path: Path, *, scored: Sequence[str] | None) -> pd.DataFrame:
    """The label columns of labels.csv as 0, 1 or -1. A column with a 0 or 1 is a label and has
    nothing else; other columns are ignored."""
    candidates = [name for name in table if scored is None or name in scored]
    if not candidates:
        raise InputError(
            f"{path}: has no column of a label that has scores; it has"
            f" {_quoted(list(table)[:5])}, scores.csv {_quoted(scored[:5])}"
        )
    values = table[candidates].map(
        lambda cell: INVALID if (value := parse_label(cell)) is None else value
    )
    is_invalid = values == INVALID
    for label in values.columns[is_invalid.any() & values.isin((0, 1)).any()]:
        name = is_invalid[label].idxmax()
        got = table.at[name, label]
        raise InputError(f"{path}: {name}: {label}: got {got!r}, expected 0, 1 or empty")
    labels = values.loc[:, ~is_invalid.any()]
    if not len(labels.columns):
        example = f"{candidates[0]} is {table[candidates[0]].iloc[0]!r}"
        raise InputError(f"{path}: has no column of 0 and 1; {example}")
    return labels


def _read_table(path: Path, *, columns: Sequence[str] = ()) -> pd.DataFrame:
    """Reads the cells of a table, as strings by VolumeName, with the names of LABELS and `columns`
    in their spelling; any unusable row is an InputError."""
    table = read_table(path, key=KEY, optional=(*LABELS, *columns))
    for name, fault in table.faults.items():
        raise InputError(f"{fault} ({name})")
    if not table.rows:
        raise InputError(f"{path}: has no rows")
    rows = list(table.rows.values())
    return pd.DataFrame(rows, index=list(table.rows), dtype=object).drop(columns=KEY)


def _quoted(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names))
