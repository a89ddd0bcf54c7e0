"""Image latents of a training split, encoded once for runs whose image tower is frozen."""

import hashlib
from collections.abc import Callable
from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from ctclip_jax.common.shapes import Variables
from ctclip_jax.evaluation.encoder import Encoder
from ctclip_jax.evaluation.files import read_arrays, write_arrays
from ctclip_jax.training.config import TrainConfig
from data_pipelines import shards
from data_pipelines.errors import InputError

FILE = "latents.npz"


def frozen_latents(
    config: TrainConfig,
    workdir: Path,
    *,
    encoder: Encoder,
    initial_variables: Callable[[], Variables],
) -> list[Float[np.ndarray, "n d"]]:
    """Returns the latents of every training directory, from WORKDIR/latents.npz or encoded now.

    `initial_variables` is called only to encode.

    Raises:
      InputError: the file is damaged, or of other volumes or weights.
    """
    path, split = workdir / FILE, config.data.split
    source = _source(config)
    if path.exists():
        arrays = read_arrays(path)
        if arrays.pop("source", np.array([])).tolist() != source:
            raise InputError(f"{path}: latents of other volumes or weights; remove it")
        return [arrays[f"folder{i}"] for i in range(len(arrays))]
    variables, latents = initial_variables(), []
    for folder in config.data.folders:
        rows = range(len(shards.read_reports(folder, split)))
        latents.append(encoder.encode_volumes(variables, folder, split=split, rows=rows))
        if jax.process_index() == 0:
            print(f"{folder}: encoded {len(rows)} volumes with the frozen image tower", flush=True)
    if jax.process_index() == 0:
        arrays = {f"folder{i}": array for i, array in enumerate(latents)}
        write_arrays(path, source=np.array(source), **arrays)
    return latents


def _source(config: TrainConfig) -> list[str]:
    """What the latents depend on, with the volumes in their order."""
    split, source = config.data.split, [config.init_from, config.model.dtype]
    for folder in config.data.folders:
        names = "\n".join(row["volume_name"] for row in shards.read_reports(folder, split))
        digest = hashlib.sha256(names.encode()).hexdigest()
        source += [shards.preparation(folder, split)["cases_sha256"], digest]
    return source
