"""NIfTI-1 files, gzipped or not, read completely in one pass."""

import hashlib
import io
import logging
import math
from typing import IO

import nibabel as nib
import numpy as np
from etils import epath
from isal import igzip
from jaxtyping import Float, Shaped

from data_pipelines.formats.stored import StoredVolume, check_size, naming_file

# It logs what it also raises about a damaged header.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

_READ_BYTES = 1 << 22
_MAX_OFFSET = 1 << 28
_GZIP_MAGIC = b"\x1f\x8b"


def read_nifti(path: epath.PathLike) -> StoredVolume:
    """Reads a 3-D single-file NIfTI-1, to its last byte, so that gzip's checksum is verified."""
    with naming_file(path, "damaged or not a NIfTI file"), epath.Path(path).open("rb") as raw:
        hashed = _HashedFile(raw)
        stored = io.BufferedReader(hashed, _READ_BYTES)
        gzipped = stored.peek(2)[:2] == _GZIP_MAGIC
        content = igzip.open(stored) if gzipped else stored
        # From a buffer, as nibabel would read on into the extensions.
        start = content.read(nib.Nifti1Header.sizeof_hdr)
        header = nib.Nifti1Header.from_fileobj(io.BytesIO(start))
        voxels = _read_voxels(content, header)
        slope, intercept = header.get_slope_inter()
        return StoredVolume(
            voxels=voxels,
            slope=1.0 if slope is None else slope,
            intercept=0.0 if intercept is None else intercept,
            affine=_affine(header),
            spacing_xyz=tuple(map(float, header["pixdim"][1:4])),
            sha256=hashed.sha256(),
        )


def _read_voxels(file: IO[bytes], header: nib.Nifti1Header) -> Shaped[np.ndarray, "x y z"]:
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "iuf":
        raise ValueError(f"voxels of type {dtype}")
    if len(shape) < 3 or math.prod(shape) != math.prod(shape[:3]):
        raise ValueError(f"{len(shape)}-D array {shape}, expected one 3-D volume")
    check_size(shape, dtype)
    offset = float(header["vox_offset"]) or header.single_vox_offset
    if not header.sizeof_hdr <= offset <= _MAX_OFFSET:
        raise ValueError(f"implausible offset of the voxels: {offset:g}")
    file.read(int(offset) - header.sizeof_hdr)
    voxels = np.empty(shape[:3], dtype, order="F")
    content = memoryview(voxels.reshape(-1, order="F").view(np.uint8))
    # In chunks, as gzip's readinto decompresses into a copy first.
    for start in range(0, len(content), _READ_BYTES):
        chunk = content[start : start + _READ_BYTES]
        if (count := file.readinto(chunk)) < len(chunk):
            raise EOFError(f"got {start + count} bytes of voxels, expected {len(content)}")
    while file.read(_READ_BYTES):  # gzip's checksum follows the last byte
        pass
    return voxels


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


class _HashedFile(io.RawIOBase):
    """Hashes a file while it is read from start to end."""

    def __init__(self, file: IO[bytes]):
        self._file = file
        self._hash = hashlib.sha256()

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer)
        self._hash.update(memoryview(buffer)[:count])
        return count

    def sha256(self) -> str:
        """Reads the rest of the file and returns the digest of all of it."""
        while self.read(_READ_BYTES):
            pass
        return self._hash.hexdigest()
