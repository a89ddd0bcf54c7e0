"""StoredVolume: what a file holds, in any format; checks that all formats share."""

import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import psutil
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError

UNKNOWN_SPACING = (1.0, 1.0, 1.0)
"""The spacing in headers whose writer did not know it."""
_MAX_VOXELS = 2048 * 2048 * 1024  # four times those of the largest usual CT, 1024 x 1024 x 1000
max_bytes = contextvars.ContextVar("max_bytes", default=math.inf)  # see `limited_bytes`


@dataclasses.dataclass(frozen=True)
class StoredVolume:
    """The content of a file, not yet interpreted.

    Attributes:
      voxels: along the stored axes; their value by the file itself is `slope * voxels + intercept`.
      affines: voxel indices to RAS mm, by name, in order of precedence; finite and invertible.
      spacing_xyz: the size of a voxel that the file states beside them, in mm, valid or not.
      sha256: of the file's bytes; for a DICOM series, of the digests of its files in their order.
      notes: what the reader decided that a user must hear of, each "KIND (DETAILS)"; kinds are
        counted in summaries.
    """

    voxels: Shaped[np.ndarray, "x y z"]
    slope: float = 1.0
    intercept: float = 0.0
    affines: Mapping[str, Float[np.ndarray, "4 4"]] = dataclasses.field(default_factory=dict)
    spacing_xyz: tuple[float, float, float] = UNKNOWN_SPACING
    sha256: str = ""
    notes: tuple[str, ...] = ()


@contextlib.contextmanager
def limited_bytes(limit: int) -> Iterator[None]:
    """Refuses voxels, and contents of zips, of more bytes, whatever the size of their files."""
    token = max_bytes.set(limit)
    try:
        yield
    finally:
        max_bytes.reset(token)


def check_size(shape: Sequence[int], dtype: np.dtype, *, copies: int = 1) -> None:
    """Raises InputError for a volume that is empty, larger than any CT or than the free memory;
    called before `copies` times the memory of the voxels is allocated."""
    count = math.prod(shape)
    size = "x".join(map(str, shape))
    if not 0 < count <= _MAX_VOXELS:
        raise InputError(f"implausible shape: {size} voxels, expected at most {_MAX_VOXELS:.2g}")
    if (needed := count * dtype.itemsize) > (limit := max_bytes.get()):
        raise InputError(f"{size} voxels are {needed >> 20} MiB, expected at most {limit >> 20}")
    if (needed := needed * copies) > (free := psutil.virtual_memory().available):
        raise InputError(f"{size} voxels need {needed >> 20} MiB of memory; {free >> 20} are free")
