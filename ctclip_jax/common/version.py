"""Which code this is."""

import subprocess
from pathlib import Path

import jax

__version__ = "0.1.0"


def code_version() -> dict[str, str | bool | None]:
    """Returns `package`, `jax`, and the git `commit` with whether its files were changed (`dirty`).

    The last two are None for code that is not in a git checkout.
    """
    root = Path(__file__).parents[2]
    commit = changes = None
    if (root / ".git").exists():
        commit = _git(root, "rev-parse", "HEAD")
        changes = _git(root, "status", "--porcelain", "--untracked-files=no")
    return {
        "package": __version__,
        "jax": jax.__version__,
        "commit": commit,
        "dirty": None if changes is None else bool(changes),
    }


def _git(root: Path, *arguments: str) -> str | None:
    """What git says; None if there is no git, or it will not say."""
    try:
        told = subprocess.run(
            ["git", *arguments], cwd=root, capture_output=True, text=True, check=True
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return told.stdout.strip()
