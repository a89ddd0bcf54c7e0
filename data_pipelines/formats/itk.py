"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd), read by SimpleITK, of the extra `formats`."""

import dataclasses
import hashlib
import math
import re
import zlib

import numpy as np
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats.stored import UNKNOWN_SPACING, StoredVolume, check_size, naming_file

_MAX_HEADER_BYTES = 1 << 16
_READ_BYTES = 1 << 22
_LOCAL = "LOCAL"  # the voxels follow the header


@dataclasses.dataclass(frozen=True)
class _Format:
    """SimpleITK's name of a format, and patterns of its header: the end; the file with the voxels;
    whether these are compressed; whether spacing and axes are stated."""

    image_io: str
    end: str
    data_file: str
    compressed: str
    spacing: str
    axes: str


_FORMATS = {
    "NRRD": _Format(
        image_io="NrrdImageIO",
        end=r"\n\r?\n|\Z",
        data_file=r"data ?file:([^\r\n]*)",
        compressed=r"^encoding: *gz",
        spacing=r"^(?:spacings|space directions):(?!.*(?:nan|none))",
        axes=r"^space:",
    ),
    "MetaImage": _Format(
        image_io="MetaImageIO",
        end=r"ElementDataFile\s*[=:].*\n?",
        data_file=r"ElementDataFile\s*[=:]([^\r\n]*)",
        compressed=r"^CompressedData\s*[=:]\s*T",
        spacing=r"^Element(?:Spacing|Size)\s*[=:]",
        axes=r"^(?:TransformMatrix|Rotation|Orientation)\s*[=:]",
    ),
}
"""By the description in `sniff`."""


def read_itk(path: epath.PathLike, kind: str) -> StoredVolume:
    """Reads a 3-D image of a format in _FORMATS.

    Voxels in a file of their own must lie beside the header; the sha256 is that of the header's
    bytes followed by theirs."""
    path, patterns = epath.Path(path), _FORMATS[kind]
    try:
        import SimpleITK as sitk
    except ImportError:
        raise InputError(
            f"{path}: {kind}, for which SimpleITK is missing (pip install 'ctclip-jax[formats]')"
        ) from None
    if "://" in str(path):
        raise InputError(f"{path}: {kind} is read from local and mounted disks only")
    with naming_file(path, f"damaged or not {kind}"):
        header, data_path = _read_header(path, patterns)
        reader = sitk.ImageFileReader()
        reader.SetImageIO(patterns.image_io)
        reader.SetFileName(str(path))
        sitk.ProcessObject.SetGlobalWarningDisplay(False)
        try:
            reader.ReadImageInformation()
            shape, count = reader.GetSize(), reader.GetNumberOfComponents()
            if len(shape) != 3 or count != 1:
                raise InputError(f"{count} x {shape} numbers, expected one 3-D volume")
            dtype = sitk.GetArrayFromImage(sitk.Image([1, 1, 1], reader.GetPixelID())).dtype
            check_size(shape, dtype, copies=2)
            num_bytes = math.prod(shape) * dtype.itemsize
            is_compressed = _has(patterns.compressed, header)
            sha256 = _hash(path, header, data_path, num_bytes if is_compressed else None)
            voxels = sitk.GetArrayFromImage(reader.Execute()).T
        except RuntimeError as error:
            raise ValueError(_cause(error)) from None
        spacing, has_spacing = reader.GetSpacing(), _has(patterns.spacing, header)
        if min(spacing) <= 0:
            raise InputError(f"spacing of {' x '.join(f'{mm:g}' for mm in spacing)} mm")
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * spacing
        affine[:3, 3] = reader.GetOrigin()
        affine[:2] *= -1  # ITK's vectors are LPS
    return StoredVolume(
        voxels=voxels,
        affines={kind: affine} if has_spacing and _has(patterns.axes, header) else {},
        spacing_xyz=spacing if has_spacing else UNKNOWN_SPACING,
        sha256=sha256,
    )


def _has(pattern: str, header: str) -> bool:
    return bool(re.search(pattern, header, re.MULTILINE | re.IGNORECASE))


def _read_header(path: epath.Path, patterns: _Format) -> tuple[str, epath.Path]:
    """Returns the text of a header and the file with the voxels, which may be the same file."""
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER_BYTES).decode("latin-1")
    end = re.search(patterns.end, start)
    if not end or end.end() == _MAX_HEADER_BYTES:
        raise ValueError("no end of the header")
    names = {name.strip() for name in re.findall(patterns.data_file, start, re.IGNORECASE)}
    name = " and ".join(names) or _LOCAL
    # SimpleITK would follow any path, out of the folder of an upload as well.
    if epath.Path(name).name != name or "%" in name or name.startswith("LIST") or len(names) > 1:
        raise InputError(f"voxels in {name!r}, expected one file beside the header")
    data_path = path if name == _LOCAL else path.parent / name
    if not data_path.exists():
        raise InputError(f"no {name} beside the header, which says that it holds the voxels")
    return start[: end.end()], data_path


def _hash(path: epath.Path, header: str, data_path: epath.Path, unpacked: int | None) -> str:
    """Returns the sha256 of the header's file and of that with the voxels. If these are compressed
    (from `unpacked` bytes), checks their checksum, which SimpleITK ignores."""
    digest, voxels, num_bytes = hashlib.sha256(), zlib.decompressobj(wbits=47), 0
    for file in dict.fromkeys((path, data_path)):
        with file.open("rb") as content:
            if file == path:
                digest.update(content.read(len(header)))
            while chunk := content.read(_READ_BYTES):
                digest.update(chunk)
                while unpacked is not None and file == data_path and chunk:
                    num_bytes += len(voxels.decompress(chunk, _READ_BYTES))
                    chunk = voxels.unconsumed_tail if num_bytes <= unpacked else b""
    num_bytes += len(voxels.flush())
    if unpacked is not None and (num_bytes != unpacked or not voxels.eof):
        raise EOFError(f"{num_bytes} bytes of compressed voxels, expected {unpacked}")
    return digest.hexdigest()


def _cause(error: RuntimeError) -> str:
    """The line of SimpleITK's message that says something, without the address of an object."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Reason:")]
    return lines[-1].rpartition("): ")[2]
