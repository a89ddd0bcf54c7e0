"""File formats of CT volumes: NIfTI, DICOM series, NumPy archives."""

import os

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom import read_dicom
from data_pipelines.formats.nifti import read_nifti
from data_pipelines.formats.npz import read_npz
from data_pipelines.formats.stored import StoredVolume


def read_scan(path: epath.PathLike) -> StoredVolume:
    """Reads a folder or a .dcm file as DICOM, an .npz archive, anything else as NIfTI."""
    path = epath.Path(path)
    # A pipe would be waited for. os.path, as epath takes it for a file.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: not a regular file")
    if path.suffix == ".dcm" or path.is_dir():
        return read_dicom(path)
    return read_npz(path) if path.suffix == ".npz" else read_nifti(path)
