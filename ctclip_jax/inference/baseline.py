"""What the patches of an average scan are: heatmaps are held against it.

EXPORT/reference.npz is written by `python -m ctclip_jax.reference` and read with the export.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ctclip_jax.checkpoints.exports import BASELINE_FILE
from data_pipelines.errors import InputError
from data_pipelines.files import publish, scratch_folder

FILE = BASELINE_FILE


@dataclasses.dataclass(frozen=True)
class Reference:
    """The mean `attribution.unit_tokens` of volumes; `of` says in words which."""

    unit_tokens: Float32[np.ndarray, "t h w e"]
    of: str


def write(folder: Path, reference: Reference) -> None:
    """Writes it into an export. Raises InputError if it cannot be written."""
    with scratch_folder(folder) as scratch:
        np.savez(scratch / FILE, unit_tokens=reference.unit_tokens, of=reference.of)
        publish(scratch / FILE, folder / FILE)


def read(folder: Path) -> Reference | None:
    """The reference of an export, if it has one. Raises InputError if it is damaged."""
    path = folder / FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return Reference(file["unit_tokens"], str(file["of"]))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({' '.join(str(error).split())})") from error
