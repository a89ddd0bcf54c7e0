"""NumPy archives with one volume, as RAD-ChestCT has them."""

import io
import zipfile
import zlib

import numpy as np
from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats.scan import HashedFile, Scan

_KEY = "ct"


def read_npz(path: epath.PathLike) -> Scan:
    """Reads the array `ct` of an .npz file, or its only array; an .npz knows nothing of position.

    Raises InputError if the file is absent, damaged or has no such 3-D array of numbers."""
    try:
        with epath.Path(path).open("rb") as raw:
            hashed = HashedFile(raw)
            with np.load(io.BytesIO(hashed.readall()), allow_pickle=False) as arrays:
                names = arrays.files
                name = _KEY if _KEY in names else names[0] if len(names) == 1 else None
                if name is None:
                    raise ValueError(f"no array {_KEY!r} among {', '.join(names) or 'none'}")
                voxels = arrays[name]
            sha256 = hashed.sha256()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (EOFError, OSError, ValueError, zlib.error, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged or no .npz file ({error})") from error
    if voxels.ndim != 3 or voxels.dtype.kind not in "iuf" or not voxels.size:
        raise InputError(
            f"{path}: {voxels.dtype} array of shape {voxels.shape}, not one 3-D volume"
        )
    return Scan(voxels, sha256=sha256)
