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
from pydicom.values import convert_value

from data_pipelines.errors import InputError, one_line
from data_pipelines.formats.stored import naming_file

DAMAGE = "unreadable DICOM"
_MAGIC, _MAGIC_AT = b"DICM", 128
# The first group of a file without the preamble of 128 bytes: 0002 or 0008, little endian.
_FIRST_GROUPS = (b"\x02\x00", b"\x08\x00")
_UNIT_TOLERANCE = 1e-3
_CT_CLASSES = ("CT Image", "Enhanced CT Image", "Legacy Converted Enhanced CT Image")
SCALE_TO_HU = "RescaleType HU"  # also where none is written
_BINARY = ("FD", "FL", "SL", "SS", "UL", "US")
_SERIES_TAGS = (
    *("PatientID", "StudyInstanceUID", "SeriesInstanceUID", "SeriesNumber", "SeriesDescription"),
    *("ConvolutionKernel", "AcquisitionNumber", "ImageType"),
)
# Only these are parsed, which is faster.
_TAGS = [
    *_SERIES_TAGS,
    *("SOPClassUID", "Modality", "NumberOfFrames", "InConcatenationTotalNumber"),
    *("ImageOrientationPatient", "ImagePositionPatient", "PixelSpacing", "Rows", "Columns"),
    *("SamplesPerPixel", "PhotometricInterpretation", "BitsAllocated", "PixelRepresentation"),
    *("RescaleSlope", "RescaleIntercept", "RescaleType"),
    *("PixelPaddingValue", "PixelPaddingRangeLimit"),
    *("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"),
]
_TAG_OF = {name: Tag(name) for name in _TAGS}

# It logs a line for every odd value of every slice, which absl would print.
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
      tags: what tells of its series, as text; empty where there is none.
      kind: what the file holds in place of CT slices, such as "localizer"; empty for those.
      plane: None if there is a `kind` or a `fault`, the reason why a CT slice cannot be used.
    """

    path: epath.Path
    tags: Mapping[str, str]
    num_frames: int
    kind: str
    plane: Plane | None = None
    fault: str = ""


def is_ignored_file(name: str) -> bool:
    """Whether a file of this name is never a slice: a hidden file, or the index of a CD."""
    return name.startswith(".") or name.upper() == "DICOMDIR"


def read_header(path: epath.Path) -> DicomFile | None:
    """Reads the header of a file; None for one that is not DICOM.

    By content, with or without preamble. A damaged file that has one, or is named .dcm, is an
    InputError: without its slice a volume is incomplete."""
    with naming_file(path, DAMAGE), path.open("rb") as file:
        start = file.read(_MAGIC_AT + len(_MAGIC))
        is_certain = start[_MAGIC_AT:] == _MAGIC or path.suffix.lower() == ".dcm"
        if not is_certain and start[:2] not in _FIRST_GROUPS:
            return None
        file.seek(0)
        try:
            tags = read_dataset(file, stop_before_pixels=True, specific_tags=_TAGS)
            if "SOPClassUID" not in tags and not ("Rows" in tags and "SeriesInstanceUID" in tags):
                raise ValueError("no SOPClassUID")
        except Exception:
            if is_certain:
                raise
            return None
        return _describe(path, tags)


def read_dataset(file: IO[bytes], **options) -> pydicom.Dataset:
    """`pydicom.dcmread`, also of files without preamble or meta information."""
    tags = pydicom.dcmread(file, force=True, **options)
    if "TransferSyntaxUID" not in tags.file_meta:
        is_implicit, _ = tags.original_encoding
        tags.file_meta.TransferSyntaxUID = (
            ImplicitVRLittleEndian if is_implicit else ExplicitVRLittleEndian
        )
    return tags


def read_text(tags: pydicom.Dataset, name: str) -> str:
    r"""Returns an element as written, in which "\" separates values; empty if there is none.

    Not by pydicom's types: writers use other value representations, and decimal commas."""
    tag = _TAG_OF[name] if name in _TAG_OF else Tag(name)  # which is slow
    if tag not in tags:
        return ""
    element = tags.get_item(tag)
    vr = dictionary_VR(name)[:2] if element.VR in (None, "UN") else element.VR  # "US or SS"
    value = element.value
    if vr in _BINARY and isinstance(value, bytes):
        value = convert_value(vr, element)
    if isinstance(value, bytes):
        try:
            value = value.decode()
        except UnicodeDecodeError:
            value = value.decode("latin-1")
    if not isinstance(value, str):
        values = value if isinstance(value, (list, MultiValue)) else [value]
        value = "\\".join("" if part is None else str(part) for part in values)
    if not value.isprintable():
        value = "".join(char if char.isprintable() else " " for char in value)
    return value.strip()


def _describe(path: epath.Path, tags: pydicom.Dataset) -> DicomFile:
    num_frames = int(read_text(tags, "NumberOfFrames") or 1)
    texts = {name: read_text(tags, name) for name in _SERIES_TAGS}
    file = DicomFile(path, texts, num_frames, _kind(tags))
    if file.kind:
        return file
    try:
        plane = _read_plane(tags) if num_frames == 1 else _read_frames(tags)
        return dataclasses.replace(file, plane=plane)
    except Exception as error:
        cause = one_line(error)
        fault = cause if isinstance(error, InputError) else f"{DAMAGE} ({cause})"
    if not texts["SeriesInstanceUID"]:
        raise InputError(fault)
    return dataclasses.replace(file, fault=fault)


def _kind(tags: pydicom.Dataset) -> str:
    """What a file holds in place of CT slices, in the words of its SOP class; empty for those."""
    sop_class = UID(read_text(tags, "SOPClassUID"))
    name = sop_class.name.removesuffix(" Storage")
    modality = read_text(tags, "Modality") or "CT"
    if modality != "CT":
        return name if name != sop_class.name and name not in _CT_CLASSES else f"{modality} image"
    if "LOCALIZER" in read_text(tags, "ImageType").upper().split("\\"):
        return "localizer"
    photometric = read_text(tags, "PhotometricInterpretation") or "MONOCHROME2"
    if (read_text(tags, "SamplesPerPixel") or "1") != "1" or "MONOCHROME" not in photometric:
        return "color image"
    # Some converters write CT slices as Secondary Capture: those have positions.
    is_ct = not sop_class or name in _CT_CLASSES or "ImagePositionPatient" in tags
    return "" if is_ct else name


def _read_plane(tags: pydicom.Dataset) -> Plane:
    return _plane(tags, positions=_numbers(tags, "ImagePositionPatient", 3)[None])


def _read_frames(tags: pydicom.Dataset) -> Plane:
    """Of a multi-frame file; the scale of its frames is left to its reader."""
    if int(read_text(tags, "InConcatenationTotalNumber") or 1) > 1:
        raise InputError("a part of a concatenation (one volume in several multi-frame files)")
    frames = tags.get("PerFrameFunctionalGroupsSequence")
    if not frames:
        raise InputError("multi-frame, but neither Enhanced CT nor Legacy Converted Enhanced CT")
    shared = tags.SharedFunctionalGroupsSequence[0]
    for name in ("PlaneOrientationSequence", "PixelMeasuresSequence"):
        source = frames[0] if name in frames[0] else shared
        tags.update(source[name].value[0])
    positions = [frame.PlanePositionSequence[0].ImagePositionPatient for frame in frames]
    return _plane(tags, positions=np.array(positions, np.float64))


def _plane(tags: pydicom.Dataset, *, positions: Float[np.ndarray, "frames 3"]) -> Plane:
    directions = _numbers(tags, "ImageOrientationPatient", 6).reshape(2, 3)
    if not np.allclose(directions @ directions.T, np.eye(2), atol=_UNIT_TOLERANCE):
        raise InputError("ImageOrientationPatient is not two perpendicular unit vectors")
    normal = np.cross(*directions)
    between_rows, between_columns = _numbers(tags, "PixelSpacing", 2)
    if min(between_rows, between_columns) <= 0:
        raise InputError(f"PixelSpacing of {between_rows:g} and {between_columns:g} mm")
    slope, intercept, scale = read_scale(tags)
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
        padding=_read_padding(tags),
    )


def read_scale(tags: pydicom.Dataset) -> tuple[float, float, str]:
    """Returns `slope`, `intercept` and `scale` of a `Plane`."""
    defaults = {"RescaleSlope": 1.0, "RescaleIntercept": 0.0}
    missing = [name for name in defaults if not read_text(tags, name)]
    slope, intercept = (
        default if name in missing else float(_numbers(tags, name, 1)[0])
        for name, default in defaults.items()
    )
    if slope == 0:
        raise InputError("RescaleSlope: got 0")
    if missing:
        return slope, intercept, f"no {' and no '.join(missing)}"
    units = read_text(tags, "RescaleType").upper()
    return slope, intercept, f"RescaleType {units}" if units else SCALE_TO_HU


def _read_padding(tags: pydicom.Dataset) -> tuple[int, int] | None:
    names = ("PixelPaddingValue", "PixelPaddingRangeLimit")
    values = [int(_numbers(tags, name, 1)[0]) for name in names if read_text(tags, name)]
    return (values[0], values[-1]) if values else None


def _numbers(tags: pydicom.Dataset, name: str, count: int) -> Float[np.ndarray, " n"]:
    if not (text := read_text(tags, name)):
        raise InputError(f"no {name}")
    try:
        numbers = np.array([float(part.replace(",", ".")) for part in text.split("\\")])
    except ValueError:
        numbers = np.empty(0)
    if numbers.shape != (count,) or not np.isfinite(numbers).all():
        raise InputError(f"{name}: got {text}, expected {count} numbers")
    return numbers
