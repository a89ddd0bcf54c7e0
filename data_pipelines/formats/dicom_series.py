"""DICOM series: the CT series in a folder or on a hospital's disc, and the choice of one.

The rule of `choose`, from several CT series of a patient: of at least 100 mm; axial; in HU, not of
another RescaleType; no projection (MIP); long enough for a chest (90 % of the longest, or 225 mm);
the smallest distance between slices; a soft kernel; the first UID.
"""

import dataclasses
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

import numpy as np
from etils import epath

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.dicom_header import DAMAGE, DicomFile, is_ignored_file, read_header
from data_pipelines.formats.sniff import describe_file

ALL = "all"
"""In place of the name of a series: each axial one."""
_MIN_MM, _CHEST_MM, _NEARLY = 100.0, 250.0, 0.9
_PARALLEL, _AXIAL = 0.99, 0.8  # cosines
_OTHER_UNITS = re.compile(r"RescaleType (?!HU$)")  # such as those of a map of iodine
_PROJECTION = re.compile(r"\b(MIP|MINIP|MAXIP|AVERAGE|AVG|PROJECTION)\b")
# Kernels for lung and bone: by name (GE), by number from 50 on (Siemens), letter (Philips), Canon.
_SHARP = re.compile(r"LUNG|BONE|EDGE|SHARP|DETAIL|^[A-Z]{1,2}[5-9]\d|^(L|D|E|Y[A-E])$|^FC[3589]\d")
_MAX_LISTED = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Series:
    """The parallel slices of one series, or one multi-frame file; those with a fault come last."""

    files: tuple[DicomFile, ...]

    @property
    def first(self) -> DicomFile:
        return self.files[0]

    @property
    def uid(self) -> str:
        return self.first.tags["SeriesInstanceUID"]

    @property
    def num_slices(self) -> int:
        return sum(file.num_frames for file in self.files)

    @property
    def is_axial(self) -> bool:
        return self.first.plane is not None and abs(self.first.plane.normal[2]) > _AXIAL

    def extent_and_step(self) -> tuple[float, float]:
        """The length in mm, first and last slice included, and the usual distance of slices."""
        planes = [file.plane.depths for file in self.files if file.plane]
        depths = np.unique(np.concatenate([*planes, []]).round(2))
        if len(depths) < 2:
            return 0.0, np.inf
        step = float(np.median(np.diff(depths)))
        return float(np.ptp(depths)) + step, step

    def __str__(self) -> str:
        names = ("SeriesNumber", "SeriesDescription", "ConvolutionKernel")
        number, description, kernel = (self.first.tags[name] for name in names)
        about = f"{description or 'no description'}, {kernel or 'no kernel'}"
        return f"series {number or '?'}: {about}, {self.num_slices} slices, {self.uid}"


def list_series(path: epath.Path) -> tuple[list[Series], Counter[str]]:
    """Returns the CT series of one file, or in a folder, its subfolders too, that a path names or
    a DICOMDIR lies in; and how many other DICOM files there are of each kind."""
    if path.name.upper() == "DICOMDIR" and not path.is_dir():
        path = path.parent
    paths = list(walk(path)) if path.is_dir() else [path]
    if files := [file for file in map(read_header, paths) if file]:
        return group(files, path=path)
    # Often a NIfTI file, a zip within a zip, or the files of an interrupted download.
    about = "; ".join(f"{file.name} is {describe_file(file) or 'unknown'}" for file in paths[:1])
    raise InputError(f"{path}: no DICOM files ({about or 'no files at all'})")


def walk(folder: epath.Path) -> Iterator[epath.Path]:
    """The files in a folder and its subfolders, which could be slices; in order of the names."""
    with naming_file(folder, DAMAGE):
        entries = sorted(folder.iterdir())
    for entry in entries:
        if entry.is_dir():
            if not os.path.islink(entry):  # which could lead around in circles
                yield from walk(entry)
        elif not is_ignored_file(entry.name):
            yield entry


def group(files: Sequence[DicomFile], *, path: epath.Path) -> tuple[list[Series], Counter[str]]:
    """Groups the headers of files by series, and by the plane of their slices."""
    by_uid: dict[str, list[DicomFile]] = {}
    for file in files:
        if not file.kind:
            by_uid.setdefault(file.tags["SeriesInstanceUID"], []).append(file)
    series = [stack for uid in sorted(by_uid) for stack in _stacks(by_uid[uid])]
    kinds = Counter(file.kind for file in files if file.kind)
    if not series:
        raise InputError(f"{path}: no CT series; got {count_kinds(kinds)}")
    return series, kinds


def _stacks(files: Sequence[DicomFile]) -> list[Series]:
    """Splits a series into its multi-frame files and its sets of parallel slices."""
    stacks: list[list[DicomFile]] = []
    for file in files:
        if file.plane is None:
            continue
        for stack in stacks:
            is_slice = file.num_frames == stack[0].num_frames == 1
            if is_slice and abs(stack[0].plane.normal @ file.plane.normal) > _PARALLEL:
                stack.append(file)
                break
        else:
            stacks.append([file])
    faults = [file for file in files if file.plane is None]
    return [Series((*stack, *faults)) for stack in stacks or [[]]]


def select(series: Sequence[Series], name: str, *, path: epath.Path) -> list[Series]:
    """The series that a user names by UID, number or description; all without a name."""

    def names(one: Series) -> tuple[str, str, str]:
        tags = one.first.tags
        return one.uid, tags["SeriesNumber"], tags["SeriesDescription"].casefold()

    named = [one for one in series if not name or name.casefold() in names(one)]
    if not named:
        raise InputError(f"{path}: no series {name!r}; there are {describe(series)}")
    return named


def choose(series: Sequence[Series], *, path: epath.Path) -> Series:
    """Chooses by the rule of this module; series of several patients are an InputError."""
    if len({s.first.tags["PatientID"] for s in series} - {""}) > 1:
        raise InputError(
            f"{path}: several patients; choose one with --series=UID; there are {describe(series)}"
        )
    extents = {s: s.extent_and_step() for s in series}
    longest = max((extents[s][0] for s in series if s.is_axial), default=0.0)

    def rank(candidate: Series) -> tuple:
        tags, plane, (extent, step) = (
            candidate.first.tags,
            candidate.first.plane,
            extents[candidate],
        )
        kind = f"{tags['ImageType']} {tags['SeriesDescription']}".upper()
        return (
            extent < _MIN_MM,
            not candidate.is_axial,
            bool(plane and _OTHER_UNITS.match(plane.scale)),
            bool(_PROJECTION.search(kind)),
            extent < _NEARLY * min(longest, _CHEST_MM),
            round(step, 2),
            bool(_SHARP.search(tags["ConvolutionKernel"].upper())),
            candidate.uid,
        )

    return min(series, key=rank)


def axial(series: Sequence[Series]) -> list[Series]:
    """Those that are axial and of at least 100 mm, one per UID; without any, all."""
    volumes = [s for s in series if s.is_axial and s.extent_and_step()[0] >= _MIN_MM] or series
    return list({s.uid: s for s in reversed(volumes)}.values())[::-1]


def describe(series: Sequence[Series]) -> str:
    """One line that lists series."""
    more = [f"{len(series) - _MAX_LISTED} more"] * (len(series) > _MAX_LISTED)
    return " | ".join([*map(str, series[:_MAX_LISTED]), *more])


def count_kinds(kinds: Counter[str]) -> str:
    """Such as `1 X-Ray Radiation Dose SR, 2 localizer`."""
    return ", ".join(f"{count} {kind}" for kind, count in sorted(kinds.items()))
