"""Error handling: InputError for bad input, one-line causes, the entry point of all programs."""

import contextlib
import functools
import inspect
import os
import re
import sys
import textwrap
import unicodedata
from collections.abc import Callable, Iterator, Sequence

from absl import app, flags, logging

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


def run_main(main: Callable[..., None], define_flags: Callable[[], None] = lambda: None) -> None:
    """Runs `main(*arguments)` under absl after `define_flags()`; bad input, and a training that
    diverges (FloatingPointError), print `error: ...` and exit with status 2.

    `arguments` are the positional ones of the command line; the signature of `main` says how many
    it takes. Log messages of libraries are shown from level ERROR on unless --verbosity is set.
    """

    # What ml_collections raises for a config file that does not exist, and for an unknown key.
    bad_config = (AttributeError, LookupError, OSError)

    def parse(argv: Sequence[str]) -> list[str]:
        with _exit_on(*bad_config, flags.Error):
            return flags.FLAGS(argv)

    def run(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        # fsspec imports the package for a cloud path when such a path is opened.
        with _exit_on(InputError, ImportError, FloatingPointError):
            try:
                inspect.signature(main).bind(*argv[1:])
            except TypeError as error:
                raise InputError(f"{error}; got {' '.join(argv[1:]) or 'none'}") from None
            main(*argv[1:])

    sys.unraisablehook = _report_unraisable
    with _exit_on(*bad_config):
        define_flags()  # ml_collections applies overrides to a config with a default right here
    app.run(run, flags_parser=parse)


def _report_unraisable(unraisable) -> None:
    # On the first error, such as a full disk, orbax closes its event loop; each of tensorstore's
    # threads that still reports to it would print a traceback.
    if "Event loop is closed" not in str(unraisable.exc_value):
        sys.__unraisablehook__(unraisable)


@contextlib.contextmanager
def _exit_on(*errors: type[Exception]) -> Iterator[None]:
    try:
        yield
    except errors as error:
        message = str(error) if isinstance(error, OSError) else one_line(error)
        # ml_collections names an unknown key, with a near one if there is any, and says no more.
        if isinstance(error, AttributeError) and isinstance(next(iter(error.args), None), KeyError):
            message = f"--config: unknown key {message}"
        print(f"error: {message}", file=sys.stderr)
        sys.exit(2)


def parse_slice(text: str) -> tuple[int, int]:
    """Returns (i, n) of the flag --task=I/N: slice i, counted from 0, of n slices of the work."""
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise InputError(f"--task: got {text}, expected I/N with I from 0 to N - 1")
    return index, count
