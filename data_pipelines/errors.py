"""One error for bad input, and the entry point that turns it into one line."""

import sys
from collections.abc import Callable, Sequence

from absl import app


class InputError(ValueError):
    """Input that cannot be used; its message is one line naming the file and the cause."""


def run_main(main: Callable[[Sequence[str]], None]) -> None:
    """Runs `main(argv)` under absl; an InputError ends it with `error: ...` and status 2."""

    def guarded(argv: Sequence[str]) -> None:
        try:
            main(argv)
        except InputError as error:
            print(f"error: {error}", file=sys.stderr)
            sys.exit(2)

    app.run(guarded)
