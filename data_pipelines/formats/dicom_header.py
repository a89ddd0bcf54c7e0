"""DICOM headers: what one file is, which series it belongs to, where its slices lie."""

import dataclasses
import logging
from collections.abc import Mapping
from typing import IO

import numpy as np
import pydicom
from etils import epath
from jaxtyping import Float
from pydicom.datadict import dictionary_VR
from pydicom.multival import MultiValue
from pydicom.tag import Tag
from pydicom.uid import UID, ExplicitVRLittleEndian, ImplicitVRLittleEndian

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.sniff import describe_content

DAMAGE = "unreadable DICOM"
_MAGIC, _MAGIC_AT = b"DICM", 128
# The first group of a file without the preamble of 128 bytes: 0002 or 0008, little endian.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_UNIT_TOLERANCE = 1e-3
_CT_CLASSES = ("CT Image", "Enhanced CT Image", "Legacy Converted Enhanced CT Image")
SCALE_TO_HU = "RescaleType HU"  # also where none is written
_ASCII = ("AS", "CS", "DA", "DS", "IS", "UI")
_TEXTS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("ConvolutionKernel", "AcquisitionNumber", "ImageType", "StudyDate", "PatientSex"),
    *("PatientAge", "Manufacturer", "ManufacturerModelName"),
)
_TAGS = {  # pydicom finds elements by tag faster than by name
    name: Tag(name)
    for name in (
        *_TEXTS,
        *("SOPClassUID", "Modality", "NumberOfFrames", "InConcatenationTotalNumber"),
        *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns"),
        *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation"),
        *("RescaleSlope", "RescaleIntercept", "RescaleType"),
        *("PixelPaddingValue", "PixelPaddingRangeLimit"),
        *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
    )
}

# It logs or warns of every odd value of every slice; what matters of them is checked here.
pydicom.config.settings.reading_validation_mode = pydicom.config.IGNORE
logging.getLogger("pydicom").setLevel(logging.CRITICAL)


@dataclasses.dataclass(frozen=True, eq=False)
class Plane:
    """Geometry and scale of a slice; vectors are in mm to Left, Posterior, Superior.

    `shape`, `spacing` and `directions` are for the column index (x), then for the row index (y).

    Attributes:
      depths: positions along the normal, in mm: one, or those of all frames of the file.
      scale: RescaleType, or that RescaleSlope (then 1) or RescaleIntercept (then 0) is missing.
      padding: the range of stored values that are padding, as written; None without one.
    """

    shape: tuple[int, int]
    spacing: Float[np.ndarray, "2"]
    directions: Float[np.ndarray, "2 3"]
    normal: Float[np.ndarray, "3"]
    position: Float[np.ndarray, "3"]
    depths: Float[np.ndarray, " frames"]
    slope: float
    intercept: float
    scale: str
    pixel_type: np.dtype
    padding: tuple[int, int] | None


@dataclasses.dataclass(frozen=True, eq=False)
class DicomFile:
    """One DICOM file.

    Attributes:
      tags: texts about its series and patient; empty where there is none.
      kind: what the file holds in place of CT slices, such as "localizer"; empty for those.
      plane: None if there is a `kind` or a `fault`, the reason why a CT slice cannot be used.
    """

    path: epath.Path
    tags: Mapping[str, str]
    num_frames: int
    kind: str = ""
    plane: Plane | None = None
    fault: str = ""


def is_ignored_file(name: str) -> bool:
    """Whether a file of this name is never a slice: a hidden file, or the index of a CD."""
    return name.startswith(".") or name.upper() == "DICOMDIR"


def read_header(path: epath.Path) -> DicomFile | None:
    """Reads the header of a file; None for one that is not DICOM.

    By content, with or without preamble. A damaged file that has one, or is named .dcm, is an
    InputError, as is a damaged slice of an unknown series: without it a volume is incomplete."""
    with naming_file(path, DAMAGE), path.open("rb") as file:
        start = file.read(_MAGIC_AT + len(_MAGIC))
        is_certain = start[_MAGIC_AT:] == _MAGIC or path.suffix.lower() == ".dcm"
        if not is_certain and start[:2] not in _FIRST_GROUPS:
            return None
        file.seek(0)
        try:
            tags = read_dataset(file, is_header=True)
            if "SOPClassUID" not in tags and not ("Rows" in tags and "SeriesInstanceUID" in tags):
                raise ValueError("no SOPClassUID")
        except Exception:
            if not is_certain:
                return None
            if (content := describe_content(start)) not in ("", "DICOM"):
                raise InputError(f"not DICOM but {content}") from None
            raise
        texts = {name: _read_text(tags, name) for name in _TEXTS}
        num_frames = int(_read_text(tags, "NumberOfFrames") or 1)
        if kind := _kind(tags):
            return DicomFile(path, texts, num_frames, kind=kind)
    try:
        with naming_file(path, DAMAGE):
            if num_frames > 1 or "PerFrameFunctionalGroupsSequence" in tags:
                plane = _read_frames(tags)
            else:
                position = _numbers(tags, "ImagePositionPatient", 3)
                plane = _read_plane(tags, positions=position[None])
            return DicomFile(path, texts, num_frames, plane=plane)
    except InputError as error:
        if not texts["SeriesInstanceUID"]:
            raise
        return DicomFile(path, texts, num_frames, fault=str(error))


def read_dataset(file: IO[bytes], *, is_header: bool = False) -> pydicom.Dataset:
    """`pydicom.dcmread`, also of files without preamble or meta information; with `is_header` only
    the elements that this module reads, which is faster."""
    names = list(_TAGS.values()) if is_header else None
    tags = pydicom.dcmread(file, force=True, stop_before_pixels=is_header, specific_tags=names)
    if "TransferSyntaxUID" not in tags.file_meta:
        is_implicit, _ = tags.original_encoding
        tags.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        )
    return tags


def _read_text(tags: pydicom.Dataset, name: str) -> str:
    r"""Returns an element as text, in which "\" separates values; empty if there is none."""
    if (element := tags.get_item(tag := _TAGS[name])) is None:
        return ""
    if (element.VR or dictionary_VR(tag)) in _ASCII and isinstance(element.value, bytes):
        # As written: pydicom, which is slower too, takes decimal commas for an error.
        return element.value.decode("latin-1").strip(" \0")
    value = tags[tag].value
    values = value if isinstance(value, (list, MultiValue)) else [value]
    return "\\".join("" if part is None else str(part) for part in values).strip()


def _kind(tags: pydicom.Dataset) -> str:
    """What a file holds in place of CT slices, in the words of its SOP class; empty for those."""
    sop_class = UID(_read_text(tags, "SOPClassUID"))
    name = sop_class.name.removesuffix(" Storage")
    modality = _read_text(tags, "Modality") or "CT"
    if modality != "CT":
        return name if name != sop_class.name and name not in _CT_CLASSES else f"{modality} image"
    if "LOCALIZER" in _read_text(tags, "ImageType").upper().split("\\"):
        return "localizer"
    photometric = _read_text(tags, "PhotometricInterpretation") or "MONOCHROME2"
    if (_read_text(tags, "SamplesPerPixel") or "1") != "1" or "MONOCHROME" not in photometric:
        return "color image"
    # Some converters write CT slices as Secondary Capture: those have positions.
    is_ct = not sop_class or name in _CT_CLASSES or "ImagePositionPatient" in tags
    return "" if is_ct else name


def _read_frames(tags: pydicom.Dataset) -> Plane:
    """Of a multi-frame file, the scale that of its first frame; it may have one frame only."""
    if int(_read_text(tags, "InConcatenationTotalNumber") or 1) > 1:
        raise InputError("a part of a concatenation (one volume in several multi-frame files)")
    frames = tags.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        raise InputError("multi-frame, but neither Enhanced CT nor Legacy Converted Enhanced CT")
    shared = tags.SharedFunctionalGroupsSequence[0]
    groups = ("PlaneOrientation", "PixelMeasures", "PixelValueTransformation")
    for name in (f"{group}Sequence" for group in groups):
        for source in (shared, frames[0]):
            if name in source:
                tags.update(source[name].value[0])
    positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    return _read_plane(tags, positions=np.array(positions, np.float64))


def _read_plane(tags: pydicom.Dataset, *, positions: Float[np.ndarray, "frames 3"]) -> Plane:
    directions = _numbers(tags, "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=_UNIT_TOLERANCE):
        raise InputError("ImageOrientationPatient is not two perpendicular unit vectors")
    normal = np.cross(*directions)
    between_rows, between_columns = _numbers(tags, "PixelSpacing", 2)
    if min(between_rows, between_columns) <= 0:
        raise InputError(f"PixelSpacing of {between_rows:g} and {between_columns:g} mm")
    slope, intercept, scale = read_scale(tags)
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    padding = [int(_numbers(tags, name, 1)[0]) for name in names if _read_text(tags, name)]
    return Plane(
        shape=(int(tags.Columns), int(tags.Rows)),
        spacing=np.array([between_columns, between_rows]),
        directions=directions,
        normal=normal,
        position=positions[0],
        depths=positions @ normal,
        slope=slope,
        intercept=intercept,
        scale=scale,
        pixel_type=np.dtype(f"{'ui'[tags.PixelRepresentation]}{tags.BitsAllocated // 8}"),
        padding=(padding[0], padding[-1]) if padding else None,
    )


def read_scale(tags: pydicom.Dataset) -> tuple[float, float, str]:
    """Returns `slope`, `intercept` and `scale` of a `Plane`."""
    defaults = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
    missing = [name for name in defaults if not _read_text(tags, name)]
    slope, intercept = (
        default if name in missing else float(_numbers(tags, name, 1)[0])
        for name, default in defaults.items()
    )
    if slope == 0:
        raise InputError("RescaleSlope: got 0")
    if missing:
        return slope, intercept, f"no {' and no '.join(missing)}"
    units = _read_text(tags, "RescaleType").upper()
    return slope, intercept, f"RescaleType {units}" if units else SCALE_TO_HU


def _numbers(tags: pydicom.Dataset, name: str, count: int) -> Float[np.ndarray, " n"]:
    if not (text := _read_text(tags, name)):
        raise InputError(f"no {name}")
    try:
        numbers = np.array([float(part.replace(",", ".")) for part in text.split("\\")])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"{name}: got {text}, expected {count} numbers")
    return numbers
