"""Flags whose value is a Python file with `get_config()`, by path or by its name in configs/.

    --config=configs/ct_clip.py    --config=ct_clip:smoke    --label_map=labels/rad_chestct

What follows the colon is the argument of `get_config`. Keys are overridden by --config.KEY=VALUE.
configs/ is a folder of the clone, and in an installed package `ctclip_jax.configs`.
"""

import importlib.util
import sys
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from data_pipelines.errors import InputError

_ROOT = Path(__file__).parents[1]
_FOLDERS = (_ROOT / "ctclip_jax" / "configs", _ROOT / "configs")
FOLDER = next(filter(Path.is_dir, _FOLDERS), _FOLDERS[-1])

flags.disclaim_key_flags()  # they belong to the program, and to its --help


class _Parser(flags.ArgumentParser):
    """Loads what `parser` of ml_collections, which knows paths alone, would not find."""

    def __init__(self, parser: flags.ArgumentParser):
        self._parser = parser

    def parse(self, text: str) -> config_dict.ConfigDict:
        path, colon, variant = text.partition(":")
        file = _locate(path)
        # A config imports others as `from configs import NAME`: those beside it, or ours.
        spec = ModuleSpec("configs", None, is_package=True)
        spec.submodule_search_locations = [str(file.parent), str(FOLDER)]
        sys.modules.setdefault("configs", importlib.util.module_from_spec(spec))
        return self._parser.parse(f"{file}{colon}{variant}")


def _locate(path: str) -> Path:
    files = [FOLDER / f"{path}.py", FOLDER / path.removeprefix("configs/")]
    # A bare name never means a file of the working directory, which would be run.
    if "/" in path or path.endswith(".py"):
        files.insert(0, Path(path))
    for file in files:
        if file.is_file():
            return file
    raise InputError(f"no such file, nor a config of this name; expected a file or {_names()}")


def _names() -> str:
    return "one of " + ", ".join(sorted(file.stem for file in FOLDER.glob("*.py")))


def define(name: str, default: str | None = None, *, help: str) -> None:
    """Defines a flag of this kind; the config is locked."""
    holder = config_flags.DEFINE_config_file(name, help_string=help)
    flag = flags.FLAGS[name]
    flag.parser = _Parser(flag.parser)
    if default:
        flags.set_default(holder, default)


def read(name: str) -> dict[str, Any]:
    """Returns the config of a flag, with the overrides of the command line.

    Raises:
      InputError: the flag is missing.
    """
    config = flags.FLAGS[name].value
    if config is None:
        raise InputError(f"--{name}: missing; expected a file or {_names()}")
    return config.to_dict()
