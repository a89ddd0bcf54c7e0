"""Package version and git commit, for checkpoints."""

import functools
import importlib.metadata
import subprocess
from pathlib import Path

__version__ = "0.1.0"


def code_version() -> dict[str, str | bool | None]:
    """Returns the versions of `package` and `jax`, the git `commit`, and whether tracked files have
    uncommitted changes (`dirty`); the last two are None outside of a git checkout."""
    jax_version = importlib.metadata.version("jax")  # without importing it
    version = {"package": __version__, "jax": jax_version, "commit": None, "dirty": None}
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():  # git itself would find a checkout around an installed package
        return version
    git = functools.partial(subprocess.run, cwd=root, capture_output=True, text=True, check=True)
    try:
        commit = git(["git", "rev-parse", "HEAD"]).stdout.strip()
        changes = git(["git", "status", "--porcelain", "--untracked-files=no"]).stdout.strip()
    except (OSError, subprocess.CalledProcessError):  # no git, or a checkout of another user
        return version
    return version | {"commit": commit, "dirty": bool(changes)}
