"""File formats of CT volumes by content: NIfTI, DICOM, NRRD, MetaImage, NumPy archives."""

import os
from collections.abc import Callable

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom import read_dicom
from data_pipelines.formats.itk import read_itk
from data_pipelines.formats.nifti import find_pair, read_nifti
from data_pipelines.formats.npz import read_npz
from data_pipelines.formats.sniff import START_BYTES, describe_content
from data_pipelines.formats.stored import StoredVolume, naming_file

_READERS: dict[str, Callable[[epath.Path], StoredVolume]] = {
    "NIfTI-1": read_nifti,
    "NIfTI-2": read_nifti,
    "Analyze 7.5": read_nifti,
    "DICOM": read_dicom,
    "NRRD": lambda path: read_itk(path, "NRRD"),
    "MetaImage": lambda path: read_itk(path, "MetaImage"),
    "a NumPy archive": read_npz,
}
"""By `sniff.describe_content`."""
_SUFFIXES = {".dcm": read_dicom, ".npz": read_npz, ".nii": read_nifti, ".gz": read_nifti}
"""Of files whose content says nothing; a damaged one is then named as what it was."""


def read_scan(path: epath.PathLike) -> StoredVolume:
    """Reads a folder as DICOM, and a file as what it is by its content."""
    path = epath.Path(path)
    # A pipe would be waited for. os.path, as epath takes it for a file.
    if os.path.exists(path) and not (os.path.isfile(path) or os.path.isdir(path)):
        raise InputError(f"{path}: not a regular file")
    if path.is_dir():
        return read_dicom(path)
    # The image of a pair says nothing by itself; its header does.
    header_path = find_pair(path)[0]
    with naming_file(header_path, "cannot be read"), header_path.open("rb") as file:
        content = describe_content(file.read(START_BYTES))
    reader = _READERS.get(content) or (None if content else _SUFFIXES.get(path.suffix.lower()))
    if reader is None:
        raise InputError(
            f"{path}: not a scan but {content or 'of unknown content'}; expected NIfTI, DICOM,"
            " NRRD, MetaImage or .npz"
        )
    return reader(path)
