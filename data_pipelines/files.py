"""Files that are there whole or not at all, and that say what is wrong with them."""

import contextlib
import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.errors import InputError

SCRATCH = ".writing-"


def sha256(path: epath.PathLike) -> str:
    """Of a whole file, in hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def make_folder(path: epath.PathLike) -> epath.Path:
    """The folder, made if it is not there. Raises InputError if it can't be."""
    folder = epath.Path(path)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InputError(f"{path}: no folder can be there ({error.strerror or error})") from error
    return folder


def is_remote(path: epath.Path) -> bool:
    """Whether it is no path of a local disk."""
    return "://" in str(path)


@contextlib.contextmanager
def scratch_folder(directory: epath.Path) -> Iterator[Path]:
    """A local folder to write into: beside its target, or where temporary files go if that is no
    local disk."""
    where = None if is_remote(directory) else directory
    scratch = None
    try:
        scratch = Path(tempfile.mkdtemp(prefix=SCRATCH, dir=where))
        yield scratch
    except OSError as error:
        raise InputError(f"{directory}: cannot be written ({error.strerror or error})") from error
    finally:
        if scratch:
            shutil.rmtree(scratch, ignore_errors=True)


def publish(path: Path, target: epath.Path) -> None:
    """Gives a finished file its name, at once."""
    if is_remote(target):
        epath.Path(path).copy(target, overwrite=True)
    else:
        os.replace(path, target)


def publish_folder(folder: Path, target: Path) -> None:
    """Gives a finished scratch folder of files its name, at once, when they are all on the disk."""
    folder.chmod(0o755)  # a scratch folder is its owner's alone
    for path in (*folder.iterdir(), folder):
        _to_disk(path)
    os.rename(folder, target)
    _to_disk(target.parent)


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def write_text(path: epath.PathLike, text: str) -> None:
    """Writes a file that is there whole, on the disk, or not at all. Raises InputError if it can't
    be."""
    target = epath.Path(path)
    with scratch_folder(target.parent) as scratch:
        written = scratch / target.name
        written.write_text(text, encoding="utf-8")
        _to_disk(written)
        publish(written, target)


def read_json(path: epath.PathLike) -> dict[str, Any]:
    """The object that a JSON file holds. Raises InputError if it is not there or holds none."""
    try:
        content = json.loads(epath.Path(path).read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    if not isinstance(content, dict):
        raise InputError(f"{path}: no JSON object")
    return content
