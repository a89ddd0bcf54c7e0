"""StoredVolume: what a file holds, in any format; helpers to read files safely."""

import dataclasses
import hashlib
import io
import math
from collections.abc import Sequence
from typing import IO

import numpy as np
from jaxtyping import Float, Shaped

UNKNOWN_SPACING = (1.0, 1.0, 1.0)
"""The spacing in headers whose writer did not know it."""
READ_BYTES = 1 << 22
_MAX_VOLUME_BYTES = 1 << 34


@dataclasses.dataclass(frozen=True)
class StoredVolume:
    """The content of a file, not yet interpreted.

    Attributes:
      voxels: along the stored axes; their value by the file itself is `slope * voxels + intercept`.
      affine: voxel indices to RAS mm; None if the file has no valid one.
      spacing_xyz: the size of a voxel that the file states beside it, in mm, valid or not.
      sha256: of the file's bytes; for a DICOM series, of the digests of its files in their order.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float = 1.0
    intercept: float = 0.0
    affine: Float[np.ndarray, "4 4"] | None = None
    spacing_xyz: tuple[float, float, float] = UNKNOWN_SPACING
    sha256: str = ""


def check_size(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raises ValueError for an empty or huge volume; called before memory is allocated."""
    if not 0 < math.prod(shape) * dtype.itemsize <= _MAX_VOLUME_BYTES:
        raise ValueError(f"implausible shape {tuple(shape)}")


class HashedFile(io.RawIOBase):
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
        while self.read(READ_BYTES):
            pass
        return self._hash.hexdigest()
