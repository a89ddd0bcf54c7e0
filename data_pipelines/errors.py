"""Error handling: InputError for bad input, causes in one line, warnings."""

import contextlib
import functools
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Iterator

_MAX_CAUSE = 300  # characters
# tensorstore says in order: what it was doing: the system's own words [where] [error code]
_TENSORSTORE_CAUSE = r"([^:\[]+) \[(?:tensorstore_spec='.*'\] \[)?os_error_code"


class InputError(ValueError):
    """Input that cannot be used; its message is one line that names the file and the cause."""

    def __str__(self) -> str:
        return printable(super().__str__())


def printable(text: str) -> str:
    """Escapes what a terminal would obey or cannot show: control characters, halves of characters,
    marks that reverse the direction. Names of files and texts of headers may hold them."""

    def is_safe(character: str) -> bool:
        return character.isprintable() or unicodedata.category(character) == "Zs"  # a space

    return "".join(c if is_safe(c) else ascii(c)[1:-1] for c in text)


@functools.cache  # the splits of a table would repeat it
def warn(message: str) -> None:
    """Prints `warning: MESSAGE` to stderr, once in a process."""
    print(f"warning: {printable(message)}", file=sys.stderr, flush=True)


def one_line(error: BaseException) -> str:
    """Returns the cause of an error in one line, for messages such as `PATH: damaged (CAUSE)`.

    Of an OSError these are the system's words without the path. Messages of other libraries are cut
    at 300 characters, as they may quote the content of a damaged file.
    """
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    if match := re.search(_TENSORSTORE_CAUSE, str(error), re.DOTALL):
        return match[1].strip()
    cause = error
    while isinstance(cause, (AttributeError, LookupError)) and cause.args:
        cause = cause.args[0]  # str() of a KeyError would be the repr of its message
    text = str(cause).strip()
    if "Traceback" in text:  # ml_collections quotes the whole traceback of a config file
        last = text.splitlines()[-1]
        text = last.partition(": ")[2] or last
    line = " ".join(text.split())
    if not isinstance(error, InputError):
        line = textwrap.shorten(line, _MAX_CAUSE)
    return line or type(error).__name__


@contextlib.contextmanager
def naming_file(path: str | os.PathLike, damage: str) -> Iterator[None]:
    """Turns errors about a file into an InputError `PATH: CAUSE`, or `PATH: damage (CAUSE)` for
    those of libraries, which raise exceptions of all kinds."""
    try:
        yield
    except InputError as error:
        # It may quote a value of a damaged file, which can be anything.
        raise InputError(f"{path}: {textwrap.shorten(str(error), _MAX_CAUSE)}") from None
    except FileNotFoundError:
        raise InputError(f"{path}: no such file") from None
    except MemoryError as error:
        raise InputError(f"{path}: out of memory ({one_line(error)})") from error
    except Exception as error:
        raise InputError(f"{path}: {damage} ({one_line(error)})") from error
