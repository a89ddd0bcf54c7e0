"""NumPy archives (.npz) with one volume, the format of RAD-ChestCT."""

import hashlib
import io
import math
import zipfile

import numpy as np
from etils import epath
from jaxtyping import Shaped

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.stored import StoredVolume, check_size

_KEY = "ct"


def read_npz(path: epath.PathLike) -> StoredVolume:
    """Reads the array `ct` of an .npz file, or its only array. The format has no geometry."""
    with naming_file(path, "damaged or not an .npz file"):
        content = epath.Path(path).read_bytes()
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            voxels = _read_array(archive)
    return StoredVolume(voxels, sha256=hashlib.sha256(content).hexdigest())


def _read_array(archive: zipfile.ZipFile) -> Shaped[np.ndarray, "x y z"]:
    names = [name.removesuffix(".npy") for name in archive.namelist()]
    name = _KEY if _KEY in names else names[0] if len(names) == 1 else None
    if name is None:
        raise InputError(f"no array {_KEY!r}; the arrays are {', '.join(names) or 'none'}")
    member = archive.getinfo(f"{name}.npy")
    # The header first: a damaged one could make NumPy allocate far more than the file holds.
    with archive.open(member) as file:
        major, _ = np.lib.format.read_magic(file)
        read_header = np.lib.format.read_array_header_1_0
        if major > 1:
            read_header = np.lib.format.read_array_header_2_0
        shape, _, dtype = read_header(file)
    if len(shape) != 3 or dtype.kind not in "iuf":
        raise InputError(f"{dtype} array {shape}, expected one 3-D volume of numbers")
    check_size(shape, dtype)
    if math.prod(shape) * dtype.itemsize > member.file_size:
        raise ValueError(f"{dtype} array {shape} in {member.file_size} bytes")
    with archive.open(member) as file:
        return np.lib.format.read_array(file, allow_pickle=False)
