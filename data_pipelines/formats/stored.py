"""StoredVolume: what a file holds, in any format; checks that all formats share."""

import contextlib
import dataclasses
import math
import textwrap
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
from etils import epath
from jaxtyping import Float, Shaped

from data_pipelines.errors import InputError, one_line

UNKNOWN_SPACING = (1.0, 1.0, 1.0)
"""The spacing in headers whose writer did not know it."""
_MAX_VOLUME_BYTES = 1 << 34
_MAX_MESSAGE = 300  # characters


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
def naming_file(path: epath.PathLike, damage: str) -> Iterator[None]:
    """Turns errors about a file into an InputError `PATH: CAUSE`, or `PATH: damage (CAUSE)` for
    those of libraries, which raise exceptions of all kinds."""
    try:
        yield
    except InputError as error:
        # It may quote a value of a damaged file, which can be anything.
        raise InputError(f"{path}: {textwrap.shorten(str(error), _MAX_MESSAGE)}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MemoryError:  # not the fault of the file
        raise
    except Exception as error:
        raise InputError(f"{path}: {damage} ({one_line(error)})") from error


def check_size(shape: Sequence[int], dtype: np.dtype) -> None:
    """Raises ValueError for an empty or huge volume; called before memory is allocated."""
    if not 0 < math.prod(shape) * dtype.itemsize <= _MAX_VOLUME_BYTES:
        raise ValueError(f"implausible shape {tuple(shape)}")
