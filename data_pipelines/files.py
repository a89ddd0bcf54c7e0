"""Atomic file writes: into a scratch folder, then renamed; checksums; locks; one-line errors."""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import tempfile
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path
from typing import Any

from etils import epath

from data_pipelines.errors import InputError, naming_file, one_line

CHECKSUMS = "SHA256SUMS"  # as sha256sum writes it: `sha256sum --check SHA256SUMS`
_CHECKSUM = re.compile(r"([0-9a-f]{64})  (\S.*)")
_DIGEST_LENGTH = 66  # with the two characters after it
_SCRATCH = ".writing-"


def sha256(path: epath.PathLike) -> str:
    """Returns the digest of a file in hexadecimal digits."""
    with epath.Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def checksum_folder(folder: Path) -> None:
    """Writes SHA256SUMS of all files below a folder."""
    paths = (path for path in sorted(folder.rglob("*")) if path.is_file())
    names = [path.relative_to(folder).as_posix() for path in paths if path.name != CHECKSUMS]
    write_checksums(folder, {name: sha256(folder / name) for name in names})


def write_checksums(folder: epath.PathLike, digests: Mapping[str, str]) -> None:
    """Writes SHA256SUMS: the digests by name of files below a folder."""
    lines = [f"{digest}  {name}\n" for name, digest in digests.items()]
    write_text(epath.Path(folder) / CHECKSUMS, "".join(lines))


@contextlib.contextmanager
def renewing_checksums(folder: Path, *names: str) -> Iterator[None]:
    """Within, files of a folder are written anew; they have no checksum until they are whole.

    All other lines of SHA256SUMS stay, as it may be a user's own, of other downloads."""
    path = folder / CHECKSUMS
    with naming_file(path, "cannot be read"):
        lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    others = "".join(f"{line}\n" for line in lines if line[_DIGEST_LENGTH:] not in names)
    write_text(path, others)
    yield
    write_text(path, others + "".join(f"{sha256(folder / name)}  {name}\n" for name in names))


def read_checksums(folder: epath.PathLike) -> dict[str, str]:
    """Returns the digests by file of SHA256SUMS; {} without one. Malformed lines are ignored."""
    path = epath.Path(folder) / CHECKSUMS
    if not path.exists():
        return {}
    lines = path.read_bytes().decode(errors="replace").split("\n")
    return {match[2]: match[1] for match in filter(None, map(_CHECKSUM.fullmatch, lines))}


def changed_files(
    folder: epath.PathLike, names: Collection[str] | None = None
) -> Iterator[tuple[str, str]]:
    """Yields (name, problem) of each file that differs from SHA256SUMS; of `names`, if given."""
    for name, digest in read_checksums(folder).items():
        path = epath.Path(folder) / name
        if names is not None and name not in names:
            continue
        if not path.is_file():
            yield name, "missing"
        elif sha256(path) != digest:
            yield name, "changed since it was written (sha256 differs)"


def check_unchanged(folder: epath.PathLike, names: Collection[str] | None = None) -> None:
    """Raises InputError for the first of `changed_files`."""
    for name, problem in changed_files(folder, names):
        raise InputError(f"{epath.Path(folder) / name}: {problem}")


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
    with naming_file(path, "cannot be read"):
        content = json.loads(epath.Path(path).read_text(encoding="utf-8"))
        if not isinstance(content, dict):
            raise InputError("not a JSON object")
    return content
