"""NIfTI-1, NIfTI-2 and Analyze 7.5: one file or a pair of .hdr and .img, gzipped or not, read
completely in one pass."""

import contextlib
import hashlib
import io
import logging
import math
import re
from collections.abc import Iterator
from typing import IO

import nibabel as nib
import numpy as np
from etils import epath
from isal import igzip
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.stored import StoredVolume, check_size

# It logs what it also raises about a damaged header.
logging.getLogger("nibabel.global").setLevel(logging.CRITICAL + 1)

_READ_BYTES = 1 << 22
_MAX_OFFSET = 1 << 28
_GZIP_MAGIC = b"\x1f\x8b"
_PAIR = re.compile(r"(?i)(?P<stem>.+\.)(?P<kind>hdr|img)(?P<gz>\.gz)?")
_TEMPLATE_CODES = (3, 4, 5)  # the affine leads to an atlas, not to the scanner


def read_nifti(path: epath.PathLike) -> StoredVolume:
    """Reads a 3-D image to its last byte, so that gzip's checksum is verified.

    `path` may be either file of a pair, whose sha256 is that of the header's bytes followed by the
    image's."""
    header_path, image_path = find_pair(epath.Path(path))
    digest = hashlib.sha256()
    with _open(header_path, digest) as file:
        header, spacing = _read_header(file)
        slope, intercept = header.get_slope_inter()
        affines = _affines(header) if isinstance(header, nib.Nifti1Header) else {}
        if is_single := _is_single(header):
            voxels = _read_voxels(file, header)
        elif image_path == header_path:
            raise ValueError("the header of a pair, expected .hdr beside .img")
    if not is_single:
        with _open(image_path, digest) as file:
            voxels = _read_voxels(file, header)
    return StoredVolume(
        voxels=voxels,
        slope=1.0 if slope is None else slope,
        intercept=0.0 if intercept is None else intercept,
        affines=affines,
        spacing_xyz=spacing,
        sha256=digest.hexdigest(),
    )


def find_pair(path: epath.Path) -> tuple[epath.Path, epath.Path]:
    """Returns the .hdr and the .img of which `path` is one; `path` twice if it is neither."""
    if not (match := _PAIR.fullmatch(path.name)):
        return path, path
    is_header = match["kind"].lower() == "hdr"
    kind = "img" if is_header else "hdr"
    kind = kind.upper() if match["kind"].isupper() else kind
    names = [f"{match['stem']}{kind}{gz}" for gz in (match["gz"] or "", ".gz", "")]
    others = [path.parent / name for name in names]
    other = next((file for file in others if file.exists()), others[0])
    return (path, other) if is_header else (other, path)


@contextlib.contextmanager
def _open(path: epath.Path, digest: "hashlib._Hash") -> Iterator[IO[bytes]]:
    """Opens a file to read it uncompressed; `digest` is updated by all its bytes."""
    with naming_file(path, "damaged or not a NIfTI file"), path.open("rb") as raw:
        hashed = _HashedFile(raw, digest)
        stored = io.BufferedReader(hashed, _READ_BYTES)
        gzipped = stored.peek(2)[:2] == _GZIP_MAGIC
        yield igzip.open(stored) if gzipped else stored
        while hashed.read(_READ_BYTES):
            pass


def _read_header(file: IO[bytes]) -> tuple[nib.AnalyzeHeader, tuple[float, float, float]]:
    """Returns the header and pixdim as it is stored, in which nibabel would turn 0 into 1."""
    start = file.read(nib.Nifti1Header.sizeof_hdr)
    kind = nib.Spm99AnalyzeHeader  # Analyze 7.5 with the scale that SPM writes
    if start[4:7] in (b"n+2", b"ni2"):
        start += file.read(nib.Nifti2Header.sizeof_hdr - len(start))
        kind = nib.Nifti2Header if start[5:6] == b"+" else nib.nifti2.Nifti2PairHeader
    elif start[344:347] in (b"n+1", b"ni1"):
        kind = nib.Nifti1Header if start[345:346] == b"+" else nib.nifti1.Nifti1PairHeader
    spacing = tuple(map(float, kind(start, check=False)["pixdim"][1:4]))
    return kind(start), spacing


def _is_single(header: nib.AnalyzeHeader) -> bool:
    """Whether voxels follow in the file of the header; Analyze 7.5 has them in an .img always."""
    return getattr(header, "is_single", False)


def _read_voxels(file: IO[bytes], header: nib.AnalyzeHeader) -> Shaped[np.ndarray, "x y z"]:
    """Reads the voxels of a single file of which the header has been read, or of an .img."""
    dtype, shape = header.get_data_dtype(), header.get_data_shape()
    if dtype.kind not in "iuf":
        raise InputError(f"voxels of type {dtype}, expected numbers")
    if len(shape) < 3 or math.prod(shape) != math.prod(shape[:3]):
        raise InputError(f"{len(shape)}-D array {shape}, expected one 3-D volume")
    check_size(shape, dtype)
    position, default = 0, 0
    if _is_single(header):
        position, default = header.sizeof_hdr, header.single_vox_offset
    offset = float(header["vox_offset"]) or default
    if not position <= offset <= _MAX_OFFSET:
        raise ValueError(f"implausible offset of the voxels: {offset:g}")
    file.read(int(offset) - position)
    voxels = np.empty(shape[:3], dtype, order="F")
    content = memoryview(voxels.reshape(-1, order="F").view(np.uint8))
    # In chunks, as gzip's readinto decompresses into a copy first.
    for start in range(0, len(content), _READ_BYTES):
        chunk = content[start : start + _READ_BYTES]
        if (count := file.readinto(chunk)) < len(chunk):
            raise EOFError(f"got {start + count} bytes of voxels, expected {len(content)}")
    # To the end, as gzip's checksum follows the last byte; but not through a bomb.
    num_after = 0
    while chunk := file.read(_READ_BYTES):
        if (num_after := num_after + len(chunk)) > _MAX_OFFSET:
            raise ValueError(f"over {_MAX_OFFSET} bytes after the voxels")
    return voxels


def _affines(header: nib.Nifti1Header) -> dict[str, Float[np.ndarray, "4 4"]]:
    """Returns the sform and the qform that are set, finite and invertible; those to the scanner
    before those to a template."""
    candidates = []
    for name, read in (("sform", header.get_sform), ("qform", header.get_qform)):
        try:
            affine, code = read(coded=True)
        except ValueError:  # raised by nibabel for NaN quaternions
            continue
        if code and np.isfinite(affine).all() and abs(np.linalg.det(affine[:3, :3])) > 1e-9:
            candidates.append((code in _TEMPLATE_CODES, name, affine))
    return {name: affine for _, name, affine in sorted(candidates, key=lambda c: c[0])}


class _HashedFile(io.RawIOBase):
    """Hashes a file while it is read from start to end."""

    def __init__(self, file: IO[bytes], digest: "hashlib._Hash"):
        self._file = file
        self._digest = digest

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        count = self._file.readinto(buffer)
        self._digest.update(memoryview(buffer)[:count])
        return count
