"""Atomic file writes: into a scratch folder, then renamed; locks; errors name the path."""

import contextlib
import fcntl
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.errors import InputError, one_line

_SCRATCH = ".writing-"


def sha256(path: epath.PathLike) -> str:
    """Returns the digest of a file in hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: epath.PathLike) -> epath.Path:
    """Creates a folder and its parents if necessary."""
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: cannot create this folder ({one_line(error)})") from error
    return folder


def _is_remote(path: epath.Path) -> bool:
    """Whether this is a URL, such as gs://BUCKET/PATH, and not a path on a local disk."""
    return "://" in str(path)


@contextlib.contextmanager
def locked(out: epath.PathLike, *, exclusive: bool) -> Iterator[None]:
    """Locks a folder: exclusively for a run that writes all of it, or shared by several runs that
    write different files. If another process holds the lock it raises InputError.

    An exclusive run first deletes the scratch folders that killed runs left. On remote paths there
    is no lock."""
    directory = make_folder(out)
    if _is_remote(directory):
        yield
        return
    with open(directory / ".lock", "w") as file:
        try:
            fcntl.flock(file, (fcntl.LOCK_EX if exclusive else fcntl.LOCK_SH) | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(f"{out}: another process is writing there") from None
        except OSError:
            pass  # a file system without locks
        if exclusive:
            for path in directory.glob(f"{_SCRATCH}*"):
                shutil.rmtree(path)
        yield


@contextlib.contextmanager
def scratch_folder(directory: epath.Path) -> Iterator[Path]:
    """A local folder to write into, removed afterwards: inside `directory`, or in the system's
    folder for temporary files if `directory` is remote."""
    # On the disk of the target, so that `publish` can rename.
    parent = None if _is_remote(directory) else directory
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=_SCRATCH, dir=parent))
        yield scratch
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({one_line(error)})") from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def publish(path: Path, target: epath.Path) -> None:
    """Moves a finished file from a scratch folder to its target, atomically on a local disk."""
    if _is_remote(target):
        epath.Path(path).copy(target, overwrite=True)
    else:
        os.replace(path, target)


def publish_folder(folder: Path, target: Path) -> None:
    """Renames a finished scratch folder of files to its target, atomically and durably."""
    folder.chmod(0o755)  # mkdtemp gives access to the owner only
    # Contents before the new name: after a power failure a name must not lead to empty files.
    for path in (*folder.iterdir(), folder):
        _sync(path)
    os.rename(folder, target)
    _sync(target.parent)


def _sync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(target: epath.PathLike, text: str) -> None:
    """Writes a text file atomically and durably."""
    target = epath.Path(target)
    with scratch_folder(target.parent) as scratch:
        path = scratch / target.name
        path.write_text(text, encoding="utf-8")
        _sync(path)
        publish(path, target)


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """Reads the object of a JSON file."""
    try:
        content = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({one_line(error)})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a JSON object")
    return content
