"""Uploaded files: stored under random names in one folder, limited in size, safely unzipped."""

import secrets
import shutil
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom import is_ignored_file

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".npz", ".dcm", ".zip")
MAX_ZIP_FILES = 5000
CHUNK_BYTES = 1 << 20


class TooLargeError(InputError):
    """More bytes than allowed."""


def suffix_of(name: str) -> str:
    """Which of SUFFIXES the name of a file ends with."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    raise InputError(f"scan: expected a file {', '.join(SUFFIXES)}; zip a DICOM series")


async def receive(
    chunks: AsyncIterator[bytes], folder: Path, *, suffix: str, max_bytes: int
) -> Path:
    """Writes the body of a request to a file with a random name; deletes it on any error."""
    path = folder / f"{secrets.token_hex(8)}{suffix}"
    num_bytes = 0
    try:
        with path.open("wb") as file:
            async for chunk in chunks:
                num_bytes += len(chunk)
                check_size(num_bytes, max_bytes)
                file.write(chunk)
        if not num_bytes:
            raise InputError("scan: the file is empty")
    except BaseException:  # a sender that goes away cancels this task
        path.unlink(missing_ok=True)
        raise
    return path


def check_size(num_bytes: int, max_bytes: int) -> None:
    """Raises TooLargeError for an upload, or its unzipped contents, of more than `max_bytes`."""
    if num_bytes > max_bytes:
        raise TooLargeError(f"more than {max_bytes / 2**20:g} MiB; see --max_upload_mb")


def unpack(path: Path, *, max_bytes: int) -> Path:
    """The path that `data_pipelines.formats.read_scan` opens: the upload, or the folder of a
    DICOM series that was unzipped beside it."""
    if path.suffix != ".zip":
        return path
    folder, num_bytes = path.with_suffix(""), 0
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MAX_ZIP_FILES:
                raise InputError(f"zip: got {len(members)} files, expected at most {MAX_ZIP_FILES}")
            for number, member in enumerate(members):
                name = member.filename.replace("\\", "/").rpartition("/")[2]
                if is_ignored_file(name):
                    continue
                # Numbers, because names in a zip may lead out of the folder. The suffix stays:
                # read_scan takes a file with it for DICOM without looking inside.
                suffix = ".dcm" if name.lower().endswith(".dcm") else ""
                target = folder / f"IM{number}{suffix}"
                with archive.open(member) as source, target.open("wb") as file:
                    while chunk := source.read(CHUNK_BYTES):
                        # Counted while unzipping: the sizes that a zip declares may be lies.
                        num_bytes += len(chunk)
                        check_size(num_bytes, max_bytes)
                        file.write(chunk)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"zip: cannot be unpacked ({error.strerror or error})") from error
    except Exception as error:  # zipfile and zlib raise many types for a damaged file
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"damaged or no zip file ({cause})") from error
    return folder


def delete(path: Path) -> None:
    """Deletes an upload and its unzipped contents."""
    path.unlink(missing_ok=True)
    if path.suffix == ".zip":
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
