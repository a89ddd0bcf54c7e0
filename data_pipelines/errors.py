"""One error for bad input, and the entry point that turns it into one line."""

import inspect
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app, flags, logging


class InputError(ValueError):
    """Input that cannot be used; its message is one line naming the file and the cause."""


def run_main(main: Callable[..., None], define_flags: Callable[[], None] = lambda: None) -> None:
    """Runs `main(*arguments)` under absl after `define_flags()`; bad input prints `error: ...` and
    exits with status 2.

    `arguments` are the positional ones of the command line; the signature of `main` says how many
    it takes.

    Bad input is an InputError, or what ml_collections raises for a config file that is not there
    and for a key that it does not have; or a package that is missing, since those of cloud paths
    are looked for when a path is opened. Of what libraries log, errors alone are shown
    without --verbosity.
    """

    def guarded(argv: Sequence[str]) -> None:
        if not flags.FLAGS["verbosity"].present:
            logging.set_verbosity(logging.ERROR)
        try:
            try:
                inspect.signature(main).bind(*argv[1:])
            except TypeError as error:
                raise InputError(f"{error}; got {' '.join(argv[1:]) or 'none'}") from None
            main(*argv[1:])
        except (InputError, ImportError) as error:
            _fail(error)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return flags.FLAGS(argv)
        except (AttributeError, LookupError, OSError, flags.Error) as error:
            _fail(error)

    try:
        define_flags()  # ml_collections reads the overrides of a config with a default at once
    except (AttributeError, LookupError, OSError) as error:
        _fail(error)
    app.run(guarded, flags_parser=parse)


def parse_slice(text: str) -> tuple[int, int]:
    """(i, n) of the flag --task=I/N: the i-th, from 0, of n slices of the work."""
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise InputError(f"--task: I/N with I from 0 to N - 1, not {text}")
    return index, count


def _fail(error: Exception) -> NoReturn:
    told = error
    while isinstance(told, (AttributeError, LookupError)) and told.args:
        told = told.args[0]  # a KeyError's own text is a repr of it
    text = str(told).strip()
    if "Traceback" in text:  # what a config file raised, as ml_collections tells it
        text = text.splitlines()[-1].strip().partition(": ")[2]
    print(f"error: {' '.join(text.split())}", file=sys.stderr)
    sys.exit(2)
