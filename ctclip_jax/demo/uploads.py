"""Files from a browser: into one folder, under names of our own, no larger than allowed."""

import secrets
import shutil
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path

from data_pipelines.errors import InputError
from data_pipelines.formats.dicom import is_ignored_file

SUFFIXES = (".nii.gz", ".nii", ".npz", ".dcm", ".zip")
MOST_FILES = 5000  # of a series
CHUNK = 1 << 20


class TooLarge(InputError):
    """More bytes than are allowed."""


def suffix_of(name: str) -> str:
    """Which of SUFFIXES a file's name ends with. Raises InputError for any other name."""
    for suffix in SUFFIXES:
        if name.lower().endswith(suffix):
            return suffix
    raise InputError(f"a scan is a file {', '.join(SUFFIXES)}; a zip holds a DICOM series")


async def receive(
    chunks: AsyncIterator[bytes], folder: Path, *, suffix: str, most_bytes: int
) -> Path:
    """Writes what arrives into `folder` and returns the file, whose name is random.

    Raises TooLarge beyond `most_bytes`, or InputError if nothing came; no file is left then, nor
    if the sender goes away.
    """
    path = folder / f"{secrets.token_hex(8)}{suffix}"
    size = 0
    try:
        with path.open("wb") as file:
            async for chunk in chunks:
                size += len(chunk)
                if size > most_bytes:
                    raise TooLarge(f"more than {most_bytes / 2**20:g} MiB; see --max_upload_mb")
                file.write(chunk)
        if not size:
            raise InputError("an empty file")
    except BaseException:
        path.unlink(missing_ok=True)
        raise
    return path


def unpack(path: Path, *, most_bytes: int) -> Path:
    """What `data_pipelines.formats.read_scan` opens of an upload: itself, or of a zip a folder with
    its slices beside it. They get numbers for names, so that theirs lead nowhere.

    Raises InputError if it is no zip, or holds too much.
    """
    if path.suffix != ".zip":
        return path
    folder, left = path.with_suffix(""), most_bytes
    folder.mkdir()
    try:
        with zipfile.ZipFile(path) as archive:
            members = [each for each in archive.infolist() if not each.is_dir()]
            if len(members) > MOST_FILES:
                raise InputError(f"a zip of {len(members)} files; at most {MOST_FILES}")
            for number, member in enumerate(members):
                name = member.filename.replace("\\", "/").rpartition("/")[2]
                if is_ignored_file(name):
                    continue
                ending = ".dcm" if name.lower().endswith(".dcm") else ""  # read_scan trusts it
                target = folder / f"IM{number}{ending}"
                with archive.open(member) as source, target.open("wb") as file:
                    while chunk := source.read(CHUNK):
                        left -= len(chunk)
                        if left < 0:
                            raise TooLarge(f"a zip of more than {most_bytes / 2**20:g} MiB")
                        file.write(chunk)
    except InputError:
        raise
    except OSError as error:
        raise InputError(f"cannot be unpacked ({error.strerror or error})") from error
    except Exception as error:  # zipfile and zlib raise all kinds for a damaged file
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"damaged or no zip file ({cause})") from error
    return folder


def forget(path: Path) -> None:
    """Deletes an upload and what was unpacked of it."""
    path.unlink(missing_ok=True)
    if path.suffix == ".zip":
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
