"""Zip archives with a DICOM series, a study or a whole disc: unzipped safely, then read."""

import contextlib
import re
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path

from etils import epath

from data_pipelines.errors import InputError, one_line
from data_pipelines.formats import stored
from data_pipelines.formats.dicom_header import is_ignored_file

MAX_FILES = 20_000
MAX_BYTES = 1 << 34
_CHUNK_BYTES = 1 << 20


@contextlib.contextmanager
def unzipped(path: epath.Path) -> Iterator[epath.Path]:
    """A temporary folder with the files of a zip; errors that name it name the zip instead."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            unzip(path, Path(folder))
            yield epath.Path(folder)
        except InputError as error:
            message = str(error) if folder in str(error) else f"{path}: {error}"
            raise InputError(message.replace(folder, str(path))) from error


def unzip(path: epath.Path, folder: Path) -> None:
    """Writes the files of a zip into `folder`, without its subfolders.

    Paths in a zip may lead out of the folder, or be links: files are numbered, and only letters,
    digits and dots of their names stay."""
    num_bytes, max_bytes = 0, min(MAX_BYTES, stored.max_bytes.get())
    try:
        with path.open("rb") as content, zipfile.ZipFile(content) as archive:
            members = [member for member in archive.infolist() if not member.is_dir()]
            if len(members) > MAX_FILES:
                raise InputError(f"zip: got {len(members)} files, expected at most {MAX_FILES}")
            for number, member in enumerate(members):
                name = member.filename.replace("\\", "/").rpartition("/")[2]
                if is_ignored_file(name):
                    continue
                target = folder / f"{number}_{re.sub(r'[^A-Za-z0-9.]', '_', name)[-100:]}"
                with archive.open(member) as source, target.open("wb") as file:
                    while chunk := source.read(_CHUNK_BYTES):
                        # Counted while unzipping: the sizes that a zip declares may be lies.
                        num_bytes += len(chunk)
                        if num_bytes > max_bytes:
                            raise InputError(f"zip: more than {max_bytes / 2**20:g} MiB")
                        file.write(chunk)
    except InputError:
        raise
    except FileNotFoundError:
        raise InputError("no such file") from None
    except OSError as error:
        raise InputError(f"zip: cannot be unpacked ({one_line(error)})") from error
    except Exception as error:  # zipfile and zlib raise many types for a damaged file
        raise InputError(f"damaged or no zip file ({one_line(error)})") from error
