"""Uploaded files: stored under random names in one folder, limited in size."""

import secrets
from collections.abc import AsyncIterator
from pathlib import Path

from data_pipelines.errors import InputError

SUFFIXES = (".nii.gz", ".nii", ".nrrd", ".mha", ".npz", ".dcm", ".zip")


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
    """Raises TooLargeError for an upload of more than `max_bytes`."""
    if num_bytes > max_bytes:
        raise TooLargeError(f"more than {max_bytes / 2**20:g} MiB; see --max_upload_mb")
