"""DICOM: a CT series with one slice per file, sorted and checked by position.

By pydicom alone: highdicom's reader of such series, `get_volume_from_series`, parses and validates
each file as a whole, which takes several times as long. It reads what is multi-frame.
"""

import hashlib
import io
import itertools
import warnings
from collections import Counter
from collections.abc import Sequence

import nibabel as nib
import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats import dicom_series
from data_pipelines.formats.dicom_header import DAMAGE, DicomFile, read_dataset
from data_pipelines.formats.dicom_multiframe import read_multiframe
from data_pipelines.formats.dicom_series import Series
from data_pipelines.formats.dicom_values import (
    AIR_HU,
    check_scales,
    fill_padding,
    padding_notes,
    stored_air,
)
from data_pipelines.formats.stored import StoredVolume, check_size

_SHARED = {  # fields of Plane that are equal in all slices, and their tags
    "shape": "Rows or Columns",
    "spacing": "PixelSpacing",
    "directions": "ImageOrientationPatient",
}
_SHARED_TOLERANCE = 1e-4
_SAME_POSITION_MM = 0.01
_GAP = 0.1  # of the usual step between slices
_ROUNDING_MM = 0.11  # positions may have been written to a tenth of a millimeter
_SEVERAL_VOLUMES = (
    "two acquisitions or phases in one series; move each into a folder of its own and choose one"
)


def read_dicom(path: epath.PathLike, *, series: str = "") -> StoredVolume:
    """Reads one CT series of a folder and its subfolders, of a disc's DICOMDIR, or of one file.

    `series` is a UID, number or description; without it, or if it names several, one is chosen by
    the rule of `dicom_series`. Hidden files and files that are not DICOM are ignored. Values are as
    stored, or rescaled float32 if the slices differ in their scale. Slices that are missing,
    unreadable or not evenly spaced planes of one volume are an InputError.
    """
    path = epath.Path(path)
    with warnings.catch_warnings(action="ignore"):
        candidates, left_out = dicom_series.list_series(path)
        named = dicom_series.select(candidates, series, path=path)
        chosen = dicom_series.choose(named, path=path)
        notes = _selection_notes(chosen, named, candidates, left_out)
        try:
            return _read_series(path, chosen, notes=notes)
        except InputError as error:
            raise InputError(". Note: ".join([str(error), *notes])) from error


def _selection_notes(
    chosen: Series, named: Sequence[Series], candidates: Sequence[Series], left_out: Counter[str]
) -> list[str]:
    """Lists other series, of the same name or study, and counts files that are not CT slices."""
    study = chosen.first.tags["StudyInstanceUID"]
    others = [
        s
        for s in candidates
        if s.uid != chosen.uid and (s in named or s.first.tags["StudyInstanceUID"] == study)
    ]
    stacks = [s for s in candidates if s.uid == chosen.uid and s is not chosen]
    left_out = left_out + Counter({"slice of another plane": sum(s.num_slices for s in stacks)})
    notes = []
    if others:
        listed = dicom_series.describe(others)
        notes.append(f"one of {len(others) + 1} series (read: {chosen} | not read: {listed})")
    if left_out:
        notes.append(f"DICOM files left out ({dicom_series.count_kinds(left_out)})")
    return [note.replace(";", ",") for note in notes]


def _read_series(path: epath.Path, series: Series, *, notes: Sequence[str]) -> StoredVolume:
    if fault := next((file for file in series.files if file.fault), None):
        raise InputError(fault.fault)
    if series.first.num_frames > 1:
        return read_multiframe(series.first, notes=notes)
    slices, num_duplicates = _sort_slices(path, series.files)
    with naming_file(path, DAMAGE):
        scales = [file.plane.scale for file in slices]
        notes = [*notes, *check_scales(scales, [file.path.name for file in slices])]
    if num_duplicates:
        notes.append(f"duplicate slices, counted once ({num_duplicates})")
    first = slices[0].plane
    is_one_scale = (
        len({(f.plane.slope, f.plane.intercept, f.plane.pixel_type) for f in slices}) == 1
    )
    padded = next((file.plane for file in slices if file.plane.padding), None)
    # As stored, which takes half of the memory, unless the slices differ or air cannot be stored.
    air = stored_air(first) if is_one_scale else None
    rescale = not is_one_scale or (padded is not None and air is None)
    voxels, num_padding, sha256 = _read_pixels(slices, rescale=rescale, air=air)
    if padded:
        notes += padding_notes(padded, num_padding / voxels.size)
    affine = _affine(slices)
    return StoredVolume(
        voxels=voxels,
        slope=1.0 if rescale else first.slope,
        intercept=0.0 if rescale else first.intercept,
        affines={"DICOM": affine},
        spacing_xyz=tuple(map(float, nib.affines.voxel_sizes(affine))),
        sha256=sha256,
        notes=tuple(notes),
    )


def _sort_slices(path: epath.Path, files: Sequence[DicomFile]) -> tuple[list[DicomFile], int]:
    """Sorts slices by position and checks that they are evenly spaced planes of one volume.

    Returns them without duplicates, and the number of those."""
    first = files[0]
    for file in files:
        for field, name in _SHARED.items():
            value, expected = getattr(file.plane, field), getattr(first.plane, field)
            if not np.allclose(value, expected, rtol=0, atol=_SHARED_TOLERANCE):
                raise InputError(f"{file.path}: {name} differs from that of {first.path.name}")
    files = sorted(files, key=lambda file: file.plane.depths[0])
    if files[-1].plane.depths[0] - files[0].plane.depths[0] <= _SAME_POSITION_MM:
        what = "one slice is" if len(files) == 1 else f"{len(files)} slices at one position are"
        raise InputError(f"{path}: {what} no volume")
    ordered: list[DicomFile] = []
    for file in files:
        last = ordered[-1] if ordered else None
        if not last or file.plane.depths[0] - last.plane.depths[0] > _SAME_POSITION_MM:
            ordered.append(file)
        elif not _is_duplicate(file, last):
            number, other = (f.tags["AcquisitionNumber"] or "?" for f in (last, file))
            raise InputError(
                f"{path}: {last.path.name} and {file.path.name} are at the same position and differ"
                f" (AcquisitionNumber {number} and {other}): {_SEVERAL_VOLUMES}"
            )
    numbers = [file.tags["AcquisitionNumber"] for file in ordered]
    if len([*itertools.groupby(numbers)]) > len(set(numbers)):
        raise InputError(f"{path}: slices take turns in AcquisitionNumber: {_SEVERAL_VOLUMES}")
    steps = np.diff([file.plane.position for file in ordered], axis=0)
    usual = np.median(steps, axis=0)
    off = np.linalg.norm(steps - usual, axis=1)
    if off[k := int(off.argmax())] > max(_GAP * np.linalg.norm(usual), _ROUNDING_MM):
        step, steady = (np.round(vector, 3).tolist() for vector in (steps[k], usual))
        raise InputError(
            f"{path}: a step of {step} mm after {ordered[k].path.name}, where {steady} is usual: "
            "a slice is missing or displaced"
        )
    return ordered, len(files) - len(ordered)


def _is_duplicate(file: DicomFile, other: DicomFile) -> bool:
    """Whether two slices are the same, position, pixels and scale."""
    a, b = file.plane, other.plane
    is_same_scale = (a.slope, a.intercept, a.scale) == (b.slope, b.intercept, b.scale)
    is_same_place = np.allclose(a.position, b.position, rtol=0, atol=_SAME_POSITION_MM)
    if not (is_same_scale and is_same_place):
        return False
    return np.array_equal(_read_stored(file)[0], _read_stored(other)[0])


def _affine(ordered: Sequence[DicomFile]) -> Float[np.ndarray, "4 4"]:
    """Voxel indices to RAS mm (DICOM PS3.3, C.7.6.2.1.1)."""
    first, last = ordered[0].plane, ordered[-1].plane
    affine = np.eye(4)
    affine[:3, :2] = (first.directions * first.spacing[:, None]).T
    affine[:3, 2] = (last.position - first.position) / (len(ordered) - 1)
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM's vectors are LPS
    return affine


def _read_stored(file: DicomFile) -> tuple[Shaped[np.ndarray, "y x"], bytes]:
    """Returns the stored values of a slice and the bytes of its file."""
    with naming_file(file.path, DAMAGE):
        content = file.path.read_bytes()
        return read_dataset(io.BytesIO(content)).pixel_array, content


def _read_pixels(
    ordered: Sequence[DicomFile], *, rescale: bool, air: int | None
) -> tuple[Shaped[np.ndarray, "x y z"], int, str]:
    """Returns the stored values, in which padding becomes `air`, or with `rescale` HU by each
    slice's own scale; the number of voxels that were padding; the digest of the file digests."""
    voxels, num_padding, digests = None, 0, hashlib.sha256()
    for k, file in enumerate(ordered):
        stored, content = _read_stored(file)
        with naming_file(file.path, DAMAGE):
            values = stored
            if rescale:
                values = stored.astype(np.float32) * file.plane.slope + file.plane.intercept
            num_padding += fill_padding(values, stored, file.plane, air=AIR_HU if rescale else air)
            if voxels is None:
                shape, dtype = (*file.plane.shape, len(ordered)), values.dtype.newbyteorder("=")
                check_size(shape, dtype)
                voxels = np.empty(shape, dtype, order="F")
            voxels[:, :, k] = values.T
        digests.update(hashlib.sha256(content).hexdigest().encode())
    return voxels, num_padding, digests.hexdigest()
