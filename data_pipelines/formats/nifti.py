"""NIfTI-1 files, gzipped or not, read completely in one pass."""

import io
import logging
import math
import zlib
from typing import IO

import nibabel as nib
import numpy as np
from etils import epath
from isal import igzip, isal_zlib
from jaxtyping import Float, Shaped
from nibabel.spatialimages import HeaderDataError
from nibabel.wrapstruct import WrapStructError

from data_pipelines.errors import InputError, one_line
from data_pipelines.formats.stored import READ_BYTES, HashedFile, StoredVolume, check_size

# It logs what it also raises about a damaged header.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

_MAX_OFFSET = 1 << 28
_GZIP_MAGIC = b"\x1f\x8b"
_DAMAGE = (
    EOFError,
    OSError,
    zlib.error,
    isal_zlib.error,
    ValueError,
    HeaderDataError,
    WrapStructError,
)


def read_nifti(path: epath.PathLike) -> StoredVolume:
    """Reads a 3-D single-file NIfTI-1, to its last byte, so that gzip's checksum is verified."""
    try:
        with epath.Path(path).open("rb") as raw:
            hashed = HashedFile(raw)
            stored = io.BufferedReader(hashed, READ_BYTES)
            gzipped = stored.peek(2)[:2] == _GZIP_MAGIC
            content = igzip.open(stored) if gzipped else stored
            # From a buffer, as nibabel would read on into the extensions.
            start = content.read(nib.Nifti1Header.sizeof_hdr)
            header = nib.Nifti1Header.from_fileobj(io.BytesIO(start))
            voxels = _read_voxels(content, header)
            slope, intercept = header.get_slope_inter()
            sha256 = hashed.sha256()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except _DAMAGE as error:
        raise InputError(f"{path}: damaged or not a NIfTI file ({one_line(error)})") from error
    return StoredVolume(
        voxels=voxels,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        affine=_affine(header),
        spacing_xyz=tuple(map(float, header["pixdim"][1:4])),
        sha256=sha256,
    )


def _read_voxels(file: IO[bytes], header: nib.Nifti1Header) -> Shaped[np.ndarray, "x y z"]:
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "iuf":
        raise ValueError(f"voxels of type {dtype}")
    if len(shape) < 3 or math.prod(shape) != math.prod(shape[:3]):
        raise ValueError(f"{len(shape)}-D array {shape}, expected one 3-D volume")
    check_size(shape, dtype)
    extensions = _extension_bytes(header)
    voxels = np.empty(shape[:3], dtype, order="F")
    content = memoryview(voxels.reshape(-1, order="F").view(np.uint8))
    file.read(extensions)
    for start in range(0, len(content), READ_BYTES):
        chunk = content[start : start + READ_BYTES]
        if (count := _read_into(file, chunk)) < len(chunk):
            raise EOFError(f"got {start + count} bytes of voxels, expected {len(content)}")
    while file.read(READ_BYTES):  # gzip's checksum follows the last byte
        pass
    return voxels


def _extension_bytes(header: nib.Nifti1Header) -> int:
    """Returns the number of bytes between the header and the voxels."""
    offset = float(header["vox_offset"]) or header.single_vox_offset
    if not header.sizeof_hdr <= offset <= _MAX_OFFSET:
        raise ValueError(f"implausible offset of the voxels: {offset:g}")
    return int(offset) - header.sizeof_hdr


def _read_into(file: IO[bytes], buffer: memoryview) -> int:
    filled = 0
    while filled < len(buffer) and (count := file.readinto(buffer[filled:])):
        filled += count
    return filled


def _affine(header: nib.Nifti1Header) -> Float[np.ndarray, "4 4"] | None:
    """Returns the sform, else the qform, that is set, finite and invertible."""
    for read in (header.get_sform, header.get_qform):
        try:
            affine, code = read(coded=True)
        except ValueError:  # raised by nibabel for NaN quaternions
            continue
        if code and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
            return affine
    return None
