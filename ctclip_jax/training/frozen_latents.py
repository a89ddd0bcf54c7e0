"""The volumes of a training split through a frozen image tower, once, for all steps of a run."""

from pathlib import Path

import jax
import numpy as np
from jaxtyping import Float

from ctclip_jax.common.shapes import Variables
from ctclip_jax.evaluation.encoder import ShardedEncoder
from ctclip_jax.training.config import TrainConfig
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.files import publish, scratch_folder

Latents = Float[np.ndarray, "n d"]


def saved_latents(config: TrainConfig, workdir: Path) -> list[Latents] | None:
    """Returns the latents of every folder that an earlier start has left; None if there are none.

    Raises:
      InputError: they are of other volumes or of another start, or cannot be read.
    """
    path = workdir / "latents.npz"
    if not path.exists():
        return None
    try:
        with np.load(path) as arrays:
            found = dict(arrays)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: damaged ({error}); remove it") from error
    if found.pop("source").tolist() != _source(config):
        raise InputError(f"{path}: latents of other volumes or weights; remove it")
    return [found[f"folder{i}"] for i in range(len(config.data.folders))]


def encode_latents(
    config: TrainConfig, workdir: Path, *, variables: Variables, encoder: ShardedEncoder
) -> list[Latents]:
    """Returns the latents of every folder, and leaves them in WORKDIR/latents.npz."""
    split = config.data.split
    latents = []
    for folder in config.data.folders:
        rows = range(len(shards.read_reports(folder, split)))
        latents.append(encoder.volumes(variables, folder, split=split, rows=rows))
        if jax.process_index() == 0:
            print(f"{folder}: {len(rows)} volumes through the frozen image tower", flush=True)
    if jax.process_index() == 0:
        arrays = {f"folder{i}": each for i, each in enumerate(latents)}
        with scratch_folder(workdir) as scratch:
            np.savez(scratch / "latents.npz", source=np.array(_source(config)), **arrays)
            publish(scratch / "latents.npz", workdir / "latents.npz")
    return latents


def _source(config: TrainConfig) -> list[str]:
    split = config.data.split
    cases = [shards.preparation(folder, split)["cases_sha256"] for folder in config.data.folders]
    return [config.init_from, config.model.dtype, *cases]
