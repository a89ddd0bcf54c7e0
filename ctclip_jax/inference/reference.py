"""Reference volumes: what the scores and heatmaps of a scan are compared with.

`python -m ctclip_jax.calibrate --shards` writes EXPORT/reference.npz; `ctclip_jax.load` reads it.
"""

import dataclasses
import zipfile
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from ctclip_jax.checkpoints.exports import REFERENCE_FILE
from data_pipelines.errors import InputError, one_line
from data_pipelines.files import publish, renewing_checksums, scratch_folder


@dataclasses.dataclass(frozen=True)
class Reference:
    """Some hundred volumes of a split.

    Attributes:
      source: describes them, as "256 volumes of SHARDS, train".
      latents: theirs, unit length, for ranks; None in files of earlier versions.
      normalized_tokens: their mean `attribution.normalized_tokens`, subtracted from heatmaps; None
        for a tower without a codebook.
    """

    source: str
    latents: Float32[np.ndarray, "n d"] | None = None
    normalized_tokens: Float32[np.ndarray, "t h w e"] | None = None

    def check(self, *, dim: int, tokens: tuple[int, ...]) -> None:
        """Raises InputError unless they are of a model with these shapes."""
        for array, shape in ((self.latents, (dim,)), (self.normalized_tokens, tokens)):
            if array is not None and array.shape[-len(shape) :] != shape:
                raise InputError(f"{REFERENCE_FILE}: got shape {array.shape}, expected {shape}")


def save(folder: Path, reference: Reference) -> None:
    """Writes reference.npz into an export."""
    arrays = {"latents": reference.latents, "unit_tokens": reference.normalized_tokens}
    arrays = {name: array for name, array in arrays.items() if array is not None}
    with renewing_checksums(folder, REFERENCE_FILE), scratch_folder(folder) as scratch:
        np.savez(scratch / REFERENCE_FILE, of=reference.source, **arrays)
        publish(scratch / REFERENCE_FILE, folder / REFERENCE_FILE)


def load(folder: Path) -> Reference | None:
    """Returns the reference volumes of an export, None if it has none."""
    path = folder / REFERENCE_FILE
    if not path.exists():
        return None
    try:
        with np.load(path) as file:
            return Reference(str(file["of"]), file.get("latents"), file.get("unit_tokens"))
    except (OSError, KeyError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from error
