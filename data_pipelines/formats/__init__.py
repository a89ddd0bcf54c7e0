"""File formats of CT volumes by content: NIfTI, DICOM, NRRD, MetaImage, NumPy archives."""

import os
from collections.abc import Callable

from etils import epath

from data_pipelines.errors import InputError, naming_file
from data_pipelines.formats.dicom import read_dicom
from data_pipelines.formats.itk import read_itk
from data_pipelines.formats.nifti import find_pair, read_nifti
from data_pipelines.formats.npz import read_npz
from data_pipelines.formats.sniff import describe_file
from data_pipelines.formats.stored import StoredVolume
from data_pipelines.formats.zipped import unzipped

DICOM, ZIP = "DICOM", "a zip archive"
_READERS: dict[str, Callable[[epath.Path], StoredVolume]] = {
    "NIfTI-1": read_nifti,
    "NIfTI-2": read_nifti,
    "Analyze 7.5": read_nifti,
    "NRRD": lambda path: read_itk(path, "NRRD"),
    "MetaImage": lambda path: read_itk(path, "MetaImage"),
    "a NumPy archive": read_npz,
}
"""By `scan_format`."""
_SUFFIXES = {".dcm": DICOM, ".npz": "a NumPy archive", ".nii": "NIfTI-1", ".gz": "NIfTI-1"}
"""Of files whose content says nothing; a damaged one is then named as what it was."""


def scan_format(path: epath.PathLike) -> str:
    """Returns what a file is by its content, in the words of `sniff`; a folder is DICOM, as is the
    index of a disc."""
    path = epath.Path(path)
    # A pipe would be waited for. os.path, as epath takes it for a file.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: not a regular file")
    if path.is_dir() or path.name.upper() == "DICOMDIR":
        return DICOM
    # The image of a pair says nothing by itself; its header does.
    header_path = find_pair(path)[0]
    with naming_file(header_path, "cannot be read"):
        return describe_file(header_path) or _SUFFIXES.get(
            path.suffix.lower(), "of unknown content"
        )


def read_scan(path: epath.PathLike, *, series: str = "") -> StoredVolume:
    """Reads a folder as DICOM, and a file as what it is by its content, a zip as the folder in it.

    `series` chooses one of several DICOM series (`read_dicom`)."""
    path = epath.Path(path)
    content = scan_format(path)
    if content == DICOM:
        return read_dicom(path, series=series)
    if content == ZIP:
        with unzipped(path) as folder:
            return read_dicom(folder, series=series)
    if content not in _READERS:
        raise InputError(
            f"{path}: not a scan but {content}; expected NIfTI, DICOM (or a zip of it), NRRD,"
            " MetaImage or .npz"
        )
    return _READERS[content](path)
