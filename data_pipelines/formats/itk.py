"""NRRD (.nrrd, .nhdr) and MetaImage (.mha, .mhd), read by SimpleITK, of the extra `formats`."""

import dataclasses
import hashlib
import re
import zlib

import numpy as np
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats.stored import UNKNOWN_SPACING, StoredVolume, check_size, naming_file

_MAX_HEADER_BYTES = 1 << 16
_READ_BYTES = 1 << 22


@dataclasses.dataclass(frozen=True)
class _Format:
    """SimpleITK's name of a format, and patterns of its header: the end; the file with the voxels,
    if they do not follow; whether these are compressed; whether there are spacing and axes."""

    image_io: str
    end: str
    data_file: str
    compressed: str
    spacing: str
    axes: str


_FORMATS = {
    "NRRD": _Format(
        image_io="NrrdImageIO",
        end=r"\n\r?\n",
        data_file=r"^data ?file:(.*)",
        compressed=r"^encoding: *gz",
        spacing=r"^(?:spacings|space directions):(?!.*(?:nan|none))",
        axes=r"^space:",
    ),
    "MetaImage": _Format(
        image_io="MetaImageIO",
        end=r"^ElementDataFile\s*[=:].*\n?",
        data_file=r"^ElementDataFile\s*[=:](?!\s*LOCAL\s*$)(.*)",
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
            is_compressed = bool(_search(patterns.compressed, header))
            sha256 = _hash(path, data_path, len(header), is_compressed=is_compressed)
            voxels = sitk.GetArrayFromImage(reader.Execute()).T
        except RuntimeError as error:
            raise ValueError(_cause(error)) from None
        spacing = reader.GetSpacing() if _search(patterns.spacing, header) else UNKNOWN_SPACING
        if min(spacing) <= 0:
            raise InputError(f"spacing of {' x '.join(f'{mm:g}' for mm in spacing)} mm")
        has_axes = spacing != UNKNOWN_SPACING and _search(patterns.axes, header)
        affine = np.eye(4)
        affine[:3, :3] = np.reshape(reader.GetDirection(), (3, 3)) * spacing
        affine[:3, 3] = reader.GetOrigin()
        affine[:2] *= -1  # ITK's vectors are LPS
    return StoredVolume(
        voxels=voxels,
        affines={kind: affine} if has_axes else {},
        spacing_xyz=spacing,
        sha256=sha256,
    )


def _search(pattern: str, header: str) -> re.Match | None:
    return re.search(pattern, header, re.MULTILINE | re.IGNORECASE)


def _read_header(path: epath.Path, patterns: _Format) -> tuple[str, epath.Path]:
    """Returns the text of a header and the file with the voxels, which may be the same file."""
    with path.open("rb") as file:
        start = file.read(_MAX_HEADER_BYTES).decode("latin-1")
    end = _search(patterns.end, start)
    header = start[: end.end()] if end else start
    if not (match := _search(patterns.data_file, header)):
        return header, path
    name = match[1].strip()
    # SimpleITK would follow any path, out of the folder of an upload as well.
    if name.split(" ")[0] == "LIST" or "%" in name or epath.Path(name).name != name:
        raise InputError(f"voxels in {name!r}, expected one file beside the header")
    if not (data_path := path.parent / name).exists():
        raise InputError(f"no {name} beside the header, which says that it holds the voxels")
    return header, data_path


def _hash(
    path: epath.Path, data_path: epath.Path, header_bytes: int, *, is_compressed: bool
) -> str:
    """Returns the sha256 of both files; checks the checksum of compressed voxels, which SimpleITK
    ignores."""
    digest, voxels = hashlib.sha256(), zlib.decompressobj(wbits=47)
    for file in dict.fromkeys((path, data_path)):
        with file.open("rb") as content:
            if file == path:
                digest.update(content.read(header_bytes))
            while chunk := content.read(_READ_BYTES):
                digest.update(chunk)
                while is_compressed and file == data_path and chunk:
                    voxels.decompress(chunk, _READ_BYTES)
                    chunk = voxels.unconsumed_tail
    if is_compressed and not voxels.eof:
        raise EOFError("the compressed voxels end too early")
    return digest.hexdigest()


def _cause(error: RuntimeError) -> str:
    """The line of SimpleITK's message that says something, without the address of an object."""
    lines = [line for line in str(error).splitlines() if line and not line.startswith("Reason:")]
    return lines[-1].rpartition("): ")[2]
