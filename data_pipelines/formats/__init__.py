"""File formats of CT volumes: NIfTI, DICOM series, NumPy archives."""

from etils import epath

from data_pipelines.formats.dicom import read_dicom
from data_pipelines.formats.dicom_header import is_dicom
from data_pipelines.formats.nifti import read_nifti
from data_pipelines.formats.npz import read_npz
from data_pipelines.formats.stored import StoredVolume
from data_pipelines.formats.zipped import is_zip, unzipped


def read_scan(path: epath.PathLike, *, series: str = "") -> StoredVolume:
    """Reads DICOM (a folder, a file, or a zip of a folder), an .npz archive, anything else as
    NIfTI. `series` names one of several DICOM series."""
    path = epath.Path(path)
    if is_zip(path):
        with unzipped(path) as folder:
            return read_dicom(folder, series=series)
    if path.suffix == ".npz":
        return read_npz(path)
    if path.is_dir() or is_dicom(path):
        return read_dicom(path, series=series)
    return read_nifti(path)
