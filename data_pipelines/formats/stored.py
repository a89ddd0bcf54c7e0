"""A CT volume as it is stored, whatever the format of its file."""

import dataclasses
import hashlib
import io
import math
from collections.abc import Sequence
from typing import IO

import numpy as np
from jaxtyping import Float, Shaped

UNKNOWN_SPACING = (1.0, 1.0, 1.0)
"""What a header says that knows nothing of the size of its voxels."""
READ_BYTES = 1 << 22
_LARGEST_VOLUME_BYTES = 1 << 34


@dataclasses.dataclass(frozen=True)
class StoredVolume:
    """Voxels as stored: their value is `slope * voxels + intercept` by the file itself.

    `affine` maps voxel indices to RAS millimeters; None if the file has no valid one.
    `spacing_xyz` is what else the file says of the voxels' size in mm, valid or not, along the
    stored axes. `sha256` is that of the file's bytes, or of a series' file digests in their order.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float = 1.0
    intercept: float = 0.0
    affine: Float[np.ndarray, "4 4"] | None = None
    spacing_xyz: tuple[float, float, float] = UNKNOWN_SPACING
    sha256: str = ""


def check_size(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raises ValueError for voxels that are none or too many, before memory is taken for them."""
    if not 0 < math.prod(shape) * dtype.itemsize <= _LARGEST_VOLUME_BYTES:
        raise ValueError(f"implausible shape {tuple(shape)}")


class HashedFile(io.RawIOBase):
    """A file read once from its start to its end, hashed on the way."""

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
        """The digest of the whole file, of which nothing can be read afterwards."""
        while self.read(READ_BYTES):
            pass
        return self._hash.hexdigest()
