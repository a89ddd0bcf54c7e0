"""RAD-ChestCT as downloaded: 3,630 public scans (Draelos et al. 2021, Zenodo 6406114).

trn00001.npz, val00001.npz, tst00001.npz, ...               `ct`: int16 HU, -1000 to 1000, 0.8 mm
img{train,valid,test}_Abnormality_and_Location_Labels.csv   NoteAcc_DEID, nodule*left_upper, ...
CT_Scan_Metadata_Complete_35747.csv                         MRN_DEID: the patients; may be absent

The axes of `ct` run to Inferior, Posterior, Left ("IPL") by the authors' code (GitHub rachellea):
ct-volume-preprocessing stacks the slices from the highest z down, with rows and columns as in the
DICOM files, of which it accepts only the orientation 1,0,0,0,1,0; explainable-ct-ai names the ends
of a lung's box sup_axis0min, inf_axis0max, ant_axis1min, pos_axis1max, rig_axis2min, lef_axis2max.
The names of files and columns are those that other public readers of the release use. None of this
was compared with the release itself, so look at a prepared volume before trusting it.
"""

from collections.abc import Mapping, Sequence

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.sources.case import CaseRecord, Collection
from data_pipelines.sources.tables import (
    Row,
    Table,
    column_key,
    read_labels,
    read_strata,
    read_table,
)

_SPLITS = ("train", "valid", "test")
_KEY, _PATIENT = "NoteAcc_DEID", "MRN_DEID"
_METADATA = "CT_Scan_Metadata_Complete_35747.csv"
_MISSING = "ATTR_VALUE_NOT_FOUND"
_SPACING_MM = 0.8


def read_collection(
    folder: epath.PathLike, split: str, *, labels: Mapping[str, Sequence[str]], axes: str
) -> Collection:
    """Reads the cases of `split` ("train", "valid" or "test"), which have no reports.

    Args:
      labels: label -> abnormalities of the table, such as "nodule"; it is 1 if one of them is, at
        any location.
      axes: directions of the stored axes.
    """
    if split not in _SPLITS:
        raise InputError(f"split: unknown {split!r}; RAD-ChestCT has {', '.join(_SPLITS)}")
    if empty := [label for label, abnormalities in labels.items() if not abnormalities]:
        raise InputError(f"label {empty[0]!r}: has no abnormalities")
    root = epath.Path(folder)
    path = root / f"img{split}_Abnormality_and_Location_Labels.csv"
    table = read_table(path, key=_KEY)
    columns = {
        label: _columns(table, abnormalities, path=path) for label, abnormalities in labels.items()
    }
    metadata = Table({}, {}, frozenset())
    if (root / _METADATA).exists():
        metadata = read_table(root / _METADATA, key=_KEY, columns=(_PATIENT,))
    cases = []
    for name in sorted({*table.rows, *table.faults}):
        row = table.rows.get(name, {})
        about = {k: v for k, v in metadata.rows.get(name, {}).items() if v != _MISSING}
        cases.append(
            CaseRecord(
                volume_name=name,
                patient=about.get(_PATIENT) or name,
                scan=name,
                paths=(root / f"{name}.npz",),
                labels=tuple(_label(row, names) for names in columns.values()),
                strata=read_strata(about),
                spacing=(_SPACING_MM,) * 3,
                axes=axes,
                skip=table.faults.get(name) or metadata.faults.get(name, ""),
            )
        )
    return Collection(tuple(labels), cases)


def _columns(table: Table, abnormalities: Sequence[str], *, path: epath.Path) -> list[str]:
    """Returns the columns of the abnormalities, which have one for each location."""
    columns = []
    for abnormality in abnormalities:
        start = column_key(f"{abnormality}*")
        locations = [name for name in table.columns if column_key(name).startswith(start)]
        if not locations:
            raise InputError(f"{path}: no columns for the abnormality {abnormality!r}")
        columns += locations
    return columns


def _label(row: Row, columns: Sequence[str]) -> int:
    """Returns 1 if one of the cells is 1, else UNKNOWN if one of them is, else 0."""
    cells = read_labels(row, columns)
    return 1 if 1 in cells else min(cells)  # UNKNOWN is -1
