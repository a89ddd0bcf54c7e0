"""CT-RATE's own tree of scans, reports, labels and metadata (arXiv 2403.17834).

dataset/{train,valid}_fixed/train_1/train_1_a/train_1_a_1.nii.gz    v2 upload: HU, full headers
dataset/{train,valid}/...the same tree...                           first upload: raw values
dataset/radiology_text_reports/{train,validation}_reports.csv
dataset/multi_abnormality_labels/{train,valid}_predicted_labels.csv
dataset/metadata/{train,validation}_metadata.csv, no_chest_{train,valid}.txt
"""

import math
import re
from pathlib import Path

import pandas as pd

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.entry import Entry

_TABLE_NAME = {"train": "train", "valid": "validation"}
_VOLUME_NAME = re.compile(r"(?P<scan>(?P<patient>[a-z]+_\d+)_[a-z]+)_\d+\.nii\.gz")
_NUMBER = re.compile(r"[-+]?\d*\.?\d+(?:[eE][-+]?\d+)?")


def entries(tree: str | Path, split: str) -> list[Entry]:
    """Every volume that the reports table of `split` ("train" or "valid") names, sorted by name.

    `tree` is the folder that holds `dataset/`, or that folder itself. The v2 file is taken where
    both uploads are present. Raises InputError for a tree or table that is absent or malformed.
    """
    if split not in _TABLE_NAME:
        raise InputError(f"split {split!r} is none of CT-RATE's: {', '.join(_TABLE_NAME)}")
    root = Path(tree) / "dataset" if (Path(tree) / "dataset").is_dir() else Path(tree)
    name = _TABLE_NAME[split]
    reports = _table(
        root / f"radiology_text_reports/{name}_reports.csv", ("Findings_EN", "Impressions_EN")
    ).fillna("")
    labels = _table(root / f"multi_abnormality_labels/{split}_predicted_labels.csv", LABELS)
    metadata = _table(
        root / f"metadata/{name}_metadata.csv",
        ("RescaleSlope", "RescaleIntercept", "ZSpacing", "XYSpacing"),
    )
    no_chest = _no_chest(root, split)
    labels, metadata = labels.to_dict("index"), metadata.to_dict("index")
    return [
        _entry(
            root,
            split,
            volume_name=volume_name,
            report=report,
            labels=labels.get(volume_name),
            metadata=metadata.get(volume_name, {}),
            is_chest=volume_name.removesuffix(".nii.gz") not in no_chest,
        )
        for volume_name, report in sorted(reports.to_dict("index").items())
    ]


def _table(path: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    try:
        table = pd.read_csv(path, dtype={"VolumeName": str})
    except FileNotFoundError:
        raise InputError(f"{path}: no such table of a CT-RATE tree") from None
    except (ValueError, UnicodeError) as error:  # pandas' parser errors are ValueErrors
        raise InputError(f"{path}: no CSV table ({' '.join(str(error).split())})") from error
    missing = [name for name in ("VolumeName", *columns) if name not in table.columns]
    if missing:
        raise InputError(f"{path}: no column {', '.join(missing)}")
    table = table.set_index("VolumeName")[list(columns)]
    if not table.index.is_unique:
        repeated = table.index[table.index.duplicated()][0]
        raise InputError(f"{path}: {repeated} has more than one row")
    return table


def _no_chest(root: Path, split: str) -> set[str]:
    lists = [root / folder / f"no_chest_{split}.txt" for folder in ("metadata", ".")]
    lines = [line for path in lists if path.is_file() for line in path.read_text().split()]
    return {Path(line).name.removesuffix(".nii.gz") for line in lines}


def _entry(
    root: Path,
    split: str,
    *,
    volume_name: str,
    report: dict,
    labels: dict | None,
    metadata: dict,
    is_chest: bool,
) -> Entry:
    match = _VOLUME_NAME.fullmatch(volume_name)
    patient, scan = (match["patient"], match["scan"]) if match else ("", "")
    values = [] if labels is None else [labels[name] for name in LABELS]
    known = bool(values) and all(value in (0, 1) for value in values)
    uploads = [root / folder / patient / scan / volume_name for folder in (f"{split}_fixed", split)]
    reasons = {
        "no name of a CT-RATE volume": match is None,
        "in the list of scans without a chest": not is_chest,
        "no row of 0 and 1 in the labels table": not known,
    }
    xy = _first_number(metadata.get("XYSpacing"))
    return Entry(
        volume_name=volume_name,
        patient=patient,
        scan=scan,
        path=next((path for path in uploads if path.is_file()), uploads[0]),
        findings=str(report["Findings_EN"]),
        impressions=str(report["Impressions_EN"]),
        labels=tuple(int(value) for value in values) if known else (),
        slope=_first_number(metadata.get("RescaleSlope")),
        intercept=_first_number(metadata.get("RescaleIntercept")),
        spacing=(_first_number(metadata.get("ZSpacing")), xy, xy),
        skip=next((reason for reason, holds in reasons.items() if holds), ""),
    )


def _first_number(cell: object) -> float:
    """The first number of a cell such as 1.5 or "[0.34, 0.34]"; NaN if there is none."""
    found = _NUMBER.search(str(cell))
    return float(found.group()) if found else math.nan
