"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd), read by SimpleITK, of the extra `formats`."""

import hashlib
import math
import re
import zlib

import numpy as np
from etils import epath

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.sniff import describe_file
from data_pipelines.formats.stored import UNKNOWN_SPACING, StoredVolume, check_size

_MAX_HEADER_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_LOCAL = "LOCAL"  # the voxels follow the header
_IMAGE_IO = {"NRRD": "NrrdImageIO", "MetaImage": "MetaImageIO"}
_HEADER_END = {"NRRD": r"\n\r?\n|\Z", "MetaImage": r"ElementDataFile\s*[=:].*\n?"}
# What SimpleITK does not expose; fields are `name: value` in NRRD, `Name = value` in MetaImage.
_DATA_FILE = r"(?:data ?file:|ElementDataFile\s*[=:])([^\r\n]*)"
_DIMENSIONS = r"^(?:NDims\s*[=:]|dimension:)\s*(\S*)"
_COMPRESSED = r"^(?:encoding: *gz|CompressedData\s*[=:]\s*T)"
_NRRD_SPACING = r"(?:spacings|space directions): *(?:none +)?(?!.*(?:nan|none))"  # none: of a list
_SPACING = rf"^(?:{_NRRD_SPACING}|Element(?:Spacing|Size)\s*[=:])"
_AXES = (
    r"^(?:space: *(?:(?:right|left)-|RAS|LAS|LPS)|(?:TransformMatrix|Rotation|Orientation)\s*[=:])"
)


def read_itk(path: epath.PathLike, kind: str) -> StoredVolume:
    """Reads a 3-D image; `kind` is "NRRD" or "MetaImage".

    Voxels in a file of their own must lie beside the header; the sha256 is that of the header's
    bytes followed by theirs."""
    path = epath.Path(path)
    try:
        import SimpleITK as sitk
    except ImportError:
        raise InputError(
            f"{path}: {kind}, for which SimpleITK is missing (pip install 'ctclip-jax[formats]')"
        ) from None
    if "://" in str(path):
        raise InputError(f"{path}: {kind} is read from local and mounted disks only")
    with naming_file(path, f"damaged or not {kind}"):
        header, data_path = _read_header(path, kind)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(_IMAGE_IO[kind])
        reader.SetFileName(str(path))
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            reader.ReadImageInformation()
            shape, count = reader.GetSize(), reader.GetNumberOfComponents()
            if len(shape) != 3 or count != 1:
                raise InputError(f"{count} x {shape} numbers, expected one 3-D volume")
            dtype = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
            check_size(shape, dtype, copies=2)
            if _has(_COMPRESSED, header):
                start = len(header) if data_path == path else 0
                _check_compressed(data_path, start, math.prod(shape) * dtype.itemsize)
            voxels = sitk.GetArrayFromImage(reader.Execute()).T
        except RuntimeError as error:
            content = "" if data_path == path else describe_file(data_path)
            cause = f"{data_path.name} is {content}" if content else _cause(error)
            raise ValueError(cause) from None
        spacing, has_spacing = reader.GetSpacing(), _has(_SPACING, header)
        if min(spacing) <= 0:
            raise InputError(f"spacing of {' x '.join(f'{mm:g}' for mm in spacing)} mm")
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * spacing
        affine[:3, 3] = reader.GetOrigin()
        affine[:2] *= -1  # ITK's vectors are LPS
        digest = hashlib.sha256()
        for part in dict.fromkeys((path, data_path)):
            with part.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
    return StoredVolume(
        voxels=voxels,
        affines={kind: affine} if has_spacing and _has(_AXES, header) else {},
        spacing_xyz=spacing if has_spacing else UNKNOWN_SPACING,
        sha256=digest.hexdigest(),
    )


def _has(pattern: str, header: str) -> bool:
    return bool(re.search(pattern, header, re.MULTILINE | re.IGNORECASE))


def _read_header(path: epath.Path, kind: str) -> tuple[str, epath.Path]:
    """Returns the text of a header and the file with the voxels, which may be the same file."""
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER_BYTES).decode("latin-1")
    end = re.search(_HEADER_END[kind], start)
    if not end or end.end() == _MAX_HEADER_BYTES:
        raise ValueError("no end of the header")
    # SimpleITK would count to any number of dimensions.
    for number in re.findall(_DIMENSIONS, start, re.MULTILINE | re.IGNORECASE):
        if not re.fullmatch(r"\d{1,2}", number):
            raise InputError(f"{number} dimensions, expected 3")
    names = {name.strip() for name in re.findall(_DATA_FILE, start, re.IGNORECASE)}
    name = " and ".join(names) or _LOCAL
    # SimpleITK would follow any path, out of the folder of an upload as well.
    if epath.Path(name).name != name or "%" in name or name.startswith("LIST") or len(names) > 1:
        raise InputError(f"voxels in {name!r}, expected one file beside the header")
    data_path = path if name == _LOCAL else path.parent / name
    if not data_path.exists():
        raise InputError(f"no {name} beside the header, which says that it holds the voxels")
    return start[: end.end()], data_path


def _check_compressed(path: epath.Path, start: int, num_bytes: int) -> None:
    """Checks the checksum of compressed voxels, which SimpleITK ignores, and their number."""
    decompressor, count = zlib.decompressobj(wbits=47), 0  # zlib or gzip
    with path.open("rb") as file:
        file.seek(start)
        while count <= num_bytes and (chunk := decompressor.unconsumed_tail or file.read(1 << 20)):
            count += len(decompressor.decompress(chunk, _READ_BYTES))  # limited: no bomb
    if count <= num_bytes:
        count += len(decompressor.flush())
    if count != num_bytes or not decompressor.eof:
        raise EOFError(f"{count} bytes of compressed voxels, expected {num_bytes}")


def _cause(error: RuntimeError) -> str:
    """The line of SimpleITK's message that says something, without the address of an object."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Reason:")]
    return lines[-1].rpartition("): ")[2]
