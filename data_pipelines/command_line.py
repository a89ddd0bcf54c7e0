"""Entry point of all programs: flags are parsed before the slow imports, errors are one line.

A program is a file in this order:

    docstring; quick imports; `define_flags`
    `command_line.parse(__name__, define_flags)`    --help and wrong flags end here
    slow imports, such as jax; functions; `main`
    `if __name__ == "__main__": command_line.run(main)`

Only programs import this module. The list of programs is that of the files of this form, which are
read but never imported: a wrong flag names the programs that have it.
"""

import collections
import contextlib
import dataclasses
import difflib
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from absl import app, flags, logging

from data_pipelines.errors import InputError, one_line

_ROOT = Path(__file__).parents[1]
_HELP_COLUMN, _HELP_WIDTH = 26, 100
# What ml_collections raises for a config file that does not exist, and for an unknown key.
_BAD_CONFIG = (AttributeError, LookupError, OSError)

_arguments: list[str] = []  # the positional ones, from `parse` to `run`


class _HelpFlag(app.HelpFlag):
    """absl's --help lists flags of libraries too, and ends with status 1."""

    def parse(self, argument: str) -> None:
        if self._parse(argument):
            print(_help())
            sys.exit(0)


def parse(module: str, define_flags: Callable[[], None] = lambda: None) -> None:
    """Defines and parses the flags if the module of this name is the program that was started;
    prints the help, or one line on a wrong flag, and exits."""
    if module != "__main__":
        return
    with _exit_on(*_BAD_CONFIG):
        define_flags()  # ml_collections applies overrides to a config with a default right here
        app.define_help_flags()
        help_flag = _HelpFlag()
        help_flag.allow_override = True
        flags.DEFINE_flag(help_flag)
        try:
            _arguments[:] = flags.FLAGS(sys.argv)
        except flags.UnrecognizedFlagError as error:
            _exit(_unknown_flag(error.flagname))
        except flags.Error as error:
            missing = re.match(r"flag --(\w+)=None: Flag --\1 must have a value", str(error))
            message = one_line(error).removeprefix("flag ")
            _exit(_missing_flag(missing[1]) if missing else message)


def run(main: Callable[..., None]) -> None:
    """Runs `main(*arguments)` under absl; bad input, and a training that diverges
    (FloatingPointError), print `error: ...` and exit with status 2.

    `arguments` are the positional ones of the command line; the signature of `main` says how many
    it takes. Log messages of libraries are shown from level ERROR on unless --verbosity is set.
    """
    if not flags.FLAGS.is_parsed():
        parse("__main__")

    def run_arguments(argv: Sequence[str]) -> None:
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
    app.run(run_arguments, flags_parser=lambda argv: _arguments)


@dataclasses.dataclass(frozen=True)
class Program:
    """A program as its source tells, which is quicker than an import."""

    module: str
    source: str

    @property
    def summary(self) -> str:
        """The first line of its docstring."""
        return self.source.partition('"""')[2].partition("\n")[0]

    @property
    def flags(self) -> list[str]:
        """Its flags in the order of their definition."""
        definition = r"(?:flags\.DEFINE_\w+|config_files\.define)\(\s*\"(\w+)\""
        return re.findall(definition, self.source)


def programs() -> dict[str, Program]:
    """All programs by name, the last part of that of their module."""
    by_name = {}
    for package in ("ctclip_jax", "data_pipelines"):
        for path in sorted((_ROOT / package).rglob("*.py")):
            source = path.read_text(encoding="utf-8")
            if "\n    command_line.run(" in source:
                parts = path.relative_to(_ROOT).with_suffix("").parts
                parts = parts[:-1] if parts[-1] == "__main__" else parts
                by_name[parts[-1]] = Program(".".join(parts), source)
    return by_name


def parse_slice(text: str) -> tuple[int, int]:
    """Returns (i, n) of the flag --task=I/N: slice i, counted from 0, of n slices of the work."""
    try:
        index, count = map(int, text.split("/"))
    except ValueError:
        index, count = 0, 0
    if not 0 <= index < count:
        raise InputError(f"--task: got {text}, expected I/N with I from 0 to N - 1")
    return index, count


def _program_flags() -> list[flags.Flag]:
    return flags.FLAGS.get_key_flags_for_module(sys.argv[0])


def _help() -> str:
    """The docstring of the program, and its flags in the order of their definition."""
    lines = [_docstring().strip(), "", "Flags:"]
    for flag in _program_flags():
        text = flag.help
        if any("other than None" in validator.message for validator in flag.validators):
            text += " Required."
        elif flag.default not in (None, "", []) and not text.startswith("Alias"):
            text += f" Default: {flag.default_as_str.strip(chr(39))}."
        option = f"  --{flag.name} ".ljust(_HELP_COLUMN)
        indent = " " * _HELP_COLUMN
        lines += textwrap.wrap(text, _HELP_WIDTH, initial_indent=option, subsequent_indent=indent)
    return "\n".join(lines)


def _docstring() -> str:
    return sys.modules["__main__"].__doc__ or ""


def _missing_flag(name: str) -> str:
    """What a required flag expects, by its help and the first command with it in the docstring."""
    text = flags.FLAGS[name].help.rstrip(".")
    message = f"--{name}: missing; expected {text[0].lower()}{text[1:]}"
    docstring = re.sub(r" *\\\n *", " ", _docstring())
    module = getattr(sys.modules["__main__"].__spec__, "name", "").removesuffix(".__main__")
    command = re.search(rf"^ *(python -m {module} .*--{name}=.*)", docstring, re.MULTILINE)
    if not command:
        return message
    return f"{message}; example: {command[1].partition('   ')[0]}"  # without its explanation


def _unknown_flag(name: str) -> str:
    """The nearest flag of this program, and the programs that have this one or, failing that, the
    nearest one."""
    hints = []
    names = [flag.name for flag in _program_flags()]
    if own := difflib.get_close_matches(name, names, n=1):
        hints += [f"did you mean --{own[0]}?"]
    owners = collections.defaultdict(list)
    for program_name, program in programs().items():
        for flag in program.flags:
            owners[flag].append(program_name)
    nearest = difflib.get_close_matches(name, owners, n=1)
    if nearest and (nearest[0] == name or not own):
        hints += [f"--{nearest[0]} is a flag of {', '.join(owners[nearest[0]])}"]
    return f"--{name}: unknown flag; {' '.join(hints) or '--help lists all'}"


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
        _exit(message)


def _exit(message: str) -> None:
    print(f"error: {message}", file=sys.stderr)
    sys.exit(2)
