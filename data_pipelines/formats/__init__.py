"""File formats of CT volumes: NIfTI, DICOM series, NumPy archives."""

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom import read_dicom
from data_pipelines.formats.nifti import read_nifti
from data_pipelines.formats.npz import read_npz
from data_pipelines.formats.stored import StoredVolume


def read_scan(path: epath.PathLike) -> StoredVolume:
    """Reads a folder or a .dcm file as DICOM, an .npz archive, anything else as NIfTI."""
    path = epath.Path(path)
    if "://" not in str(path) and path.exists() and not (path.is_file() or path.is_dir()):
        raise InputError(f"{path}: not a regular file")  # a pipe would be waited for
    if path.suffix == ".dcm" or path.is_dir():
        return read_dicom(path)
    return read_npz(path) if path.suffix == ".npz" else read_nifti(path)
