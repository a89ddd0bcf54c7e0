"""DICOM folders: a tree of studies as a PACS or a hospital's disc exports it, without a table.

One case per study: the CT series that the rule of `formats.dicom_series` chooses, or the one that
is named; with "all", one case per axial CT series. Cases are named by the folder of their study,
relative to the root; patients are digests of PatientID. Studies may share a folder, but each then
reads the headers of all its files.
"""

import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

from etils import epath

from data_pipelines import formats
from data_pipelines.errors import InputError, printable
from data_pipelines.formats import dicom_series
from data_pipelines.formats.dicom_header import DicomFile, read_header
from data_pipelines.formats.dicom_series import ALL, Series
from data_pipelines.formats.zipped import unzipped
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN, CaseRecord, Collection
from data_pipelines.sources.tables import read_strata


def read_collection(root: epath.PathLike, *, series: str = "") -> Collection:
    """Reads the headers of all files below `root`. A study without the series, and a damaged file
    outside of all studies, become cases to skip."""
    root = epath.Path(root)
    if not root.is_dir():
        raise InputError(f"{root}: no such folder")
    by_study: dict[str, list[DicomFile]] = {}
    damaged: dict[epath.Path, str] = {}
    for path in dicom_series.walk(root):
        try:
            file = read_header(path)
        except InputError as error:
            damaged[path] = str(error)
            continue
        if file:
            study = file.tags["StudyInstanceUID"] or str(path.parent)
            by_study.setdefault(study, []).append(file)
    folders = {study: _common_folder(files) for study, files in by_study.items()}
    num_studies = Counter(folders.values())
    cases = []
    for study, files in by_study.items():
        name = _name(folders[study], root)
        if num_studies[folders[study]] > 1:
            name = f"{name}/{study}"
        patient = files[0].tags["PatientID"]
        case = CaseRecord(
            volume_name=name,
            patient=hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else name,
            scan=files[0].tags["StudyInstanceUID"] or name,
            paths=(folders[study],),
            labels=(UNKNOWN,) * len(LABELS),
        )
        try:
            candidates, _ = dicom_series.group(files, path=folders[study])
            selected = _select(case, candidates, series)
        except InputError as error:
            cases.append(dataclasses.replace(case, skip=str(error)))
            continue
        strata = {one.uid: read_strata(one.first.tags) for one in candidates}
        cases += [dataclasses.replace(one, strata=strata[one.series]) for one in selected]
    cases += [
        CaseRecord(_name(path, root), _name(path, root), "", (path,), skip=reason)
        for path, reason in damaged.items()
        if not any(path.is_relative_to(folder) for folder in num_studies)
    ]
    if not cases:
        raise InputError(f"{root}: no DICOM files")
    return Collection(LABELS, sorted(cases, key=lambda case: case.volume_name))


def name_series(cases: Sequence[CaseRecord], series: str) -> list[CaseRecord]:
    """Gives cases that name no series the one of --series; "all" becomes a case for each."""
    named = [dataclasses.replace(case, series=case.series or series) for case in cases]
    return [one for case in named for one in (_expand(case) if case.series == ALL else [case])]


def _expand(case: CaseRecord) -> list[CaseRecord]:
    """Returns a case for each axial series of its folder, zip or file; of no DICOM, itself."""
    path = case.path()
    try:
        content = formats.scan_format(path)
        if content == formats.ZIP:
            with unzipped(path) as folder:
                return _select(case, dicom_series.list_series(folder)[0], ALL)
        if content == formats.DICOM:
            return _select(case, dicom_series.list_series(path)[0], ALL)
    except InputError as error:
        return [dataclasses.replace(case, skip=case.skip or str(error))]
    return [dataclasses.replace(case, series="")]


def _select(case: CaseRecord, candidates: Sequence[Series], series: str) -> list[CaseRecord]:
    """Returns the case of one series; of "all", one of each axial series. Several add their numbers
    to the name of the volume, or UIDs if those are not unique."""
    path = case.path()
    if series == ALL:
        selected = dicom_series.axial(candidates)
    else:
        named = dicom_series.select(candidates, series, path=path)
        selected = [dicom_series.choose(named, path=path)]
    if len(selected) == 1:
        return [dataclasses.replace(case, series=selected[0].uid)]
    names = [one.first.tags["SeriesNumber"] for one in selected]
    if len({*names} - {""}) < len(names):
        names = [one.uid for one in selected]
    return [
        dataclasses.replace(case, volume_name=f"{case.volume_name}/{name}", series=one.uid)
        for name, one in zip(names, selected, strict=True)
    ]


def _common_folder(files: Sequence[DicomFile]) -> epath.Path:
    folder = files[0].path.parent
    while not all(file.path.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def _name(path: epath.Path, root: epath.Path) -> str:
    """A path below the root; the root itself by name."""
    return printable(path.name if path == root else path.relative_to(root).as_posix())
