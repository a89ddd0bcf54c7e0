"""NumPy archives (.npz) with one volume, the format of RAD-ChestCT."""

import io
import math
import zipfile

import numpy as np
from etils import epath
from jaxtyping import Shaped

from data_pipelines.errors import InputError, one_line
from data_pipelines.formats.stored import HashedFile, StoredVolume, check_size

_KEY = "ct"


def read_npz(path: epath.PathLike) -> StoredVolume:
    """Reads the array `ct` of an .npz file, or its only array. The format has no geometry."""
    try:
        with epath.Path(path).open("rb") as raw:
            hashed = HashedFile(raw)
            with zipfile.ZipFile(io.BytesIO(hashed.readall())) as archive:
                voxels = _read_array(archive)
            sha256 = hashed.sha256()
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except Exception as error:  # zipfile, zlib and numpy raise all kinds for a damaged file
        raise InputError(f"{path}: damaged or not an .npz file ({one_line(error)})") from error
    return StoredVolume(voxels, sha256=sha256)


def _read_array(archive: zipfile.ZipFile) -> Shaped[np.ndarray, "x y z"]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    name = _KEY if _KEY in names else names[0] if len(names) == 1 else None
    if name is None:
        raise ValueError(f"no array {_KEY!r}; the arrays are {', '.join(names) or 'none'}")
    member = archive.getinfo(f"{name}.npy")
    # The header first: a damaged one could make NumPy allocate far more than the file holds.
    with archive.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0
        if major > 1:
            read_header = np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if len(shape) != 3 or dtype.kind not in "iuf":
        raise ValueError(f"{dtype} array {shape}, expected one 3-D volume of numbers")
    check_size(shape, dtype)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{dtype} array {shape} in {member.file_size} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
