"""DICOM folders: a tree of studies as a PACS or a hospital's disc exports it, without a table.

One case per study: the CT series that the rule of `formats.dicom_series` chooses, or the one that
is named; with "all", one case per axial CT series. Cases are named by the folder of their study,
relative to the root; patients are digests of PatientID. Studies may share a folder, but each then
reads the headers of all its files.
"""

import contextlib
import dataclasses
import hashlib
from collections import Counter
from collections.abc import Sequence

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats import dicom_series
from data_pipelines.formats.dicom_header import DicomFile, read_dataset, read_header, read_text
from data_pipelines.formats.dicom_series import ALL, Series
from data_pipelines.formats.zipped import unzipped
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN, CaseRecord, Collection
from data_pipelines.sources.tables import DICOM_STRATA, read_strata


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
            if file := read_header(path):
                by_study.setdefault(file.tags["StudyInstanceUID"] or str(path.parent), []).append(
                    file
                )
        except InputError as error:
            damaged[path] = str(error)
    folders = {study: _common_folder(files) for study, files in by_study.items()}
    num_studies = Counter(folders.values())
    cases = []
    for study, files in by_study.items():
        name = _name(folders[study], root)
        if num_studies[folders[study]] > 1:
            name = f"{name}/{study}"
        cases += _cases_of_study(files, name=name, folder=folders[study], series=series)
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
    path = case.path()
    is_zip = path.suffix.lower() == ".zip"
    if not is_zip and not path.is_dir():
        return [dataclasses.replace(case, series="")]
    try:
        with unzipped(path) if is_zip else contextlib.nullcontext(path) as folder:
            return _one_case_each(case, dicom_series.list_series(folder)[0])
    except InputError as error:
        return [dataclasses.replace(case, skip=case.skip or str(error))]


def _one_case_each(case: CaseRecord, series: Sequence[Series]) -> list[CaseRecord]:
    """A case per axial series; several add their numbers to the name, or UIDs if those are not
    unique."""
    by_uid = {one.uid: one.first.tags["SeriesNumber"] for one in dicom_series.axial(series)}
    is_unique = len({*by_uid.values()} - {""}) == len(by_uid)
    return [
        dataclasses.replace(
            case,
            volume_name=case.volume_name
            if len(by_uid) == 1
            else f"{case.volume_name}/{number if is_unique else uid}",
            series=uid,
        )
        for uid, number in by_uid.items()
    ]


def _cases_of_study(
    files: Sequence[DicomFile], *, name: str, folder: epath.Path, series: str
) -> list[CaseRecord]:
    patient, study = (files[0].tags[tag] for tag in ("PatientID", "StudyInstanceUID"))
    case = CaseRecord(
        volume_name=name,
        patient=hashlib.sha256(patient.encode()).hexdigest()[:16] if patient else name,
        scan=study or name,
        paths=(folder,),
        labels=(UNKNOWN,) * len(LABELS),
    )
    try:
        candidates, _ = dicom_series.group(files, path=folder)
        if series == ALL:
            by_uid = {one.uid: one for one in candidates}
            cases = _one_case_each(case, candidates)
        else:
            named = dicom_series.select(candidates, series, path=folder)
            chosen = dicom_series.choose(named, path=folder)
            by_uid = {chosen.uid: chosen}
            cases = [dataclasses.replace(case, series=chosen.uid)]
    except InputError as error:
        return [dataclasses.replace(case, skip=str(error))]
    return [
        dataclasses.replace(case, strata=_strata(by_uid[case.series].first.path)) for case in cases
    ]


def _strata(path: epath.Path) -> dict[str, str]:
    names = list(DICOM_STRATA.values())
    with path.open("rb") as file:
        tags = read_dataset(file, stop_before_pixels=True, specific_tags=names)
    return read_strata({name: read_text(tags, name) for name in names})


def _common_folder(files: Sequence[DicomFile]) -> epath.Path:
    folder = files[0].path.parent
    while not all(file.path.is_relative_to(folder) for file in files):
        folder = folder.parent
    return folder


def _name(path: epath.Path, root: epath.Path) -> str:
    """A path below the root, as text that can be printed and encoded; the root itself by name."""
    name = path.name if path == root else path.relative_to(root).as_posix()
    name = name.encode("utf-8", "backslashreplace").decode()
    return name if name.isprintable() else repr(name)
