"""One error for bad input, and the entry point that turns it into one line."""

import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from absl import app


class InputError(ValueError):
    """Input that cannot be used; its message is one line naming the file and the cause."""


def run_main(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(argv)` under absl; bad input ends it with `error: ...` and status 2.

    Bad input is an InputError, or what ml_collections raises for a config file that is not there
    and for a key that it does not have; or a package that is missing, since those of cloud paths
    are looked for when a path is opened.
    """

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except (InputError, ImportError) as error:
            _fail(error)

    def parse(argv: Sequence[str]) -> list[str]:
        try:
            return app.parse_flags_with_usage(argv)
        except (AttributeError, LookupError, OSError) as error:
            _fail(error)

    app.run(guarded, flags_parser=parse)


def _fail(error: Exception) -> NoReturn:
    told = error
    while isinstance(told, (AttributeError, LookupError)) and told.args:
        told = told.args[0]  # a KeyError's own text is a repr of it
    print(f"error: {' '.join(str(told).split())}", file=sys.stderr)
    sys.exit(2)
