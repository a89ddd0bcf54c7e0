"""DICOM: a CT series with one slice per file, sorted and checked by position."""

import dataclasses
import hashlib
import io
import logging
import warnings
from collections import Counter
from collections.abc import Sequence

import nibabel as nib
import numpy as np
import pydicom
from etils import epath
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError
from data_pipelines.formats.stored import StoredVolume, check_size, naming_file

_MAGIC, _MAGIC_AT = b"DICM", 128
_DAMAGE = "unreadable DICOM"
_UNIT_TOLERANCE = 1e-3
_SHARED = {  # fields of _Header that are equal in all slices, and their tags
    "shape": "Rows or Columns",
    "spacing": "PixelSpacing",
    "directions": "ImageOrientationPatient",
}
_SHARED_TOLERANCE = 1e-4
_SAME_POSITION_MM = 0.01
_GAP = 0.1  # of the usual step between slices
_ROUNDING_MM = 0.11  # positions may have been written to a tenth of a millimeter

# It logs a line for every odd value of every slice, which absl would print.
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True)
class _Header:
    """Header of one slice; vectors are in mm to Left, Posterior, Superior.

    `shape`, `spacing` and `directions` are for the column index (x), then for the row index (y).
    """

    path: epath.Path
    series: str
    shape: tuple[int, int]
    spacing: Float[np.ndarray, "2"]
    directions: Float[np.ndarray, "2 3"]
    position: Float[np.ndarray, "3"]
    slope: float
    intercept: float
    pixel_type: tuple[int, int]

    @property
    def depth(self) -> float:
        """Position along the normal of the plane, in mm."""
        return float(self.position @ np.cross(*self.directions))


def read_dicom(path: epath.PathLike) -> StoredVolume:
    """Reads a folder with one CT series; ignores hidden files and files that are not DICOM.

    Values are as stored, or rescaled float32 if the slices differ in their scale. Slices that are
    missing, unreadable, no CT or not evenly spaced planes of one volume are an InputError.
    """
    path = epath.Path(path)
    with warnings.catch_warnings(action="ignore"):
        headers = _sort_slices(path, [_read_header(file) for file in _dicom_files(path)])
        one_scale = len({(h.slope, h.intercept, h.pixel_type) for h in headers}) == 1
        voxels, sha256 = _read_pixels(headers, rescale=not one_scale)
    affine = _affine(headers)
    return StoredVolume(
        voxels=voxels,
        slope=headers[0].slope if one_scale else 1.0,
        intercept=headers[0].intercept if one_scale else 0.0,
        affines={"DICOM": affine},
        spacing_xyz=tuple(map(float, nib.affines.voxel_sizes(affine))),
        sha256=sha256,
    )


def _dicom_files(path: epath.Path) -> list[epath.Path]:
    if not path.is_dir():
        return [path]
    with naming_file(path, _DAMAGE):
        files = [file for file in sorted(path.iterdir()) if _is_dicom(file)]
    if not files:
        raise InputError(f"{path}: no DICOM files in this folder")
    return files


def is_ignored_file(name: str) -> bool:
    """Whether a file of this name is never a slice: a hidden file, or the index of a CD."""
    return name.startswith(".") or name.upper() == "DICOMDIR"


def _is_dicom(file: epath.Path) -> bool:
    """By content. A damaged .dcm file counts too: without its slice the volume is incomplete."""
    if is_ignored_file(file.name) or file.is_dir():
        return False
    with file.open("rb") as content:
        start = content.read(_MAGIC_AT + len(_MAGIC))
    return start[_MAGIC_AT:] == _MAGIC or file.suffix.lower() == ".dcm"


def _read_header(path: epath.Path) -> _Header:
    with naming_file(path, _DAMAGE):
        with path.open("rb") as file:
            tags = pydicom.dcmread(file, stop_before_pixels=True)
        _check_is_ct_slice(tags)
        directions = _numbers(tags, "ImageOrientationPatient", 6).reshape(2, 3)
        if not np.allclose(directions @ directions.T, np.eye(2), atol=_UNIT_TOLERANCE):
            raise InputError("ImageOrientationPatient is not two perpendicular unit vectors")
        between_rows, between_columns = _numbers(tags, "PixelSpacing", 2)
        if min(between_rows, between_columns) <= 0:
            raise InputError(f"PixelSpacing of {between_rows:g} and {between_columns:g} mm")
        return _Header(
            path=path,
            series=str(tags.get("SeriesInstanceUID")),
            shape=(int(tags.Columns), int(tags.Rows)),
            spacing=np.array([between_columns, between_rows]),
            directions=directions,
            position=_numbers(tags, "ImagePositionPatient", 3),
            slope=float(_value(tags, "RescaleSlope", 1.0)),
            intercept=float(_value(tags, "RescaleIntercept", 0.0)),
            pixel_type=(int(tags.BitsAllocated), int(tags.PixelRepresentation)),
        )


def _check_is_ct_slice(tags: pydicom.Dataset) -> None:
    if (modality := _value(tags, "Modality", "CT")) != "CT":
        raise InputError(f"Modality: got {modality}, expected CT")
    if _value(tags, "NumberOfFrames", 1) > 1:
        raise InputError("multi-frame files are not supported; convert it to one file per slice")
    if "LOCALIZER" in _value(tags, "ImageType", ()):
        raise InputError("a localizer, not a slice of a volume")
    photometric = _value(tags, "PhotometricInterpretation", "MONOCHROME2")
    if (samples := _value(tags, "SamplesPerPixel", 1)) != 1 or "MONOCHROME" not in photometric:
        raise InputError(f"a color image ({photometric}, {samples} samples per pixel), no CT slice")


def _value(tags: pydicom.Dataset, name: str, default: object) -> object:
    value = tags.get(name)
    return default if value is None or value == "" else value


def _numbers(tags: pydicom.Dataset, name: str, count: int) -> Float[np.ndarray, " n"]:
    if (value := _value(tags, name, None)) is None:
        raise InputError(f"no {name}")
    numbers = np.array(value, np.float64)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"{name}: got {value}, expected {count} numbers")
    return numbers


def _sort_slices(path: epath.Path, headers: Sequence[_Header]) -> list[_Header]:
    """Sorts slices by position and checks that they are evenly spaced planes of one volume."""
    counts = Counter(header.series for header in headers).values()
    if len(counts) > 1:
        slices = " + ".join(map(str, counts))
        raise InputError(f"{path}: {len(counts)} series ({slices} slices) in one folder")
    if len(headers) < 2:
        raise InputError(f"{path}: one slice is no volume")
    first = headers[0]
    for header in headers:
        for field, name in _SHARED.items():
            value, expected = getattr(header, field), getattr(first, field)
            if not np.allclose(value, expected, rtol=0, atol=_SHARED_TOLERANCE):
                raise InputError(f"{header.path}: {name} differs from that of {first.path.name}")
    ordered = sorted(headers, key=lambda header: header.depth)
    distances = np.diff([header.depth for header in ordered])
    if distances[k := int(distances.argmin())] < _SAME_POSITION_MM:
        names = f"{ordered[k].path.name} and {ordered[k + 1].path.name}"
        raise InputError(f"{path}: {names} are at the same position")
    steps = np.diff([header.position for header in ordered], axis=0)
    usual = np.median(steps, axis=0)
    off = np.linalg.norm(steps - usual, axis=1)
    if off[k := int(off.argmax())] > max(_GAP * np.linalg.norm(usual), _ROUNDING_MM):
        step, steady = (np.round(vector, 3).tolist() for vector in (steps[k], usual))
        raise InputError(
            f"{path}: a step of {step} mm after {ordered[k].path.name}, where {steady} is usual: "
            "a slice is missing or displaced"
        )
    return ordered


def _affine(ordered: Sequence[_Header]) -> Float[np.ndarray, "4 4"]:
    """Voxel indices to RAS mm (DICOM PS3.3, C.7.6.2.1.1)."""
    first, last = ordered[0], ordered[-1]
    affine = np.eye(4)
    affine[:3, :2] = (first.directions * first.spacing[:, None]).T
    affine[:3, 2] = (last.position - first.position) / (len(ordered) - 1)
    affine[:3, 3] = first.position
    affine[:2] *= -1  # DICOM's vectors are LPS
    return affine


def _read_pixels(
    ordered: Sequence[_Header], *, rescale: bool
) -> tuple[Shaped[np.ndarray, "x y z"], str]:
    """Returns the stored values, or with `rescale` those by each slice's own scale, and the digest
    of the file digests."""
    voxels, digests = None, hashlib.sha256()
    for k, header in enumerate(ordered):
        with naming_file(header.path, _DAMAGE):
            content = header.path.read_bytes()
            plane = pydicom.dcmread(io.BytesIO(content)).pixel_array
            if rescale:
                plane = plane.astype(np.float32) * header.slope + header.intercept
            if voxels is None:
                shape, dtype = (*header.shape, len(ordered)), plane.dtype.newbyteorder("=")
                check_size(shape, dtype)
                voxels = np.empty(shape, dtype, order="F")
            voxels[:, :, k] = plane.T
        digests.update(hashlib.sha256(content).hexdigest().encode())
    return voxels, digests.hexdigest()
