"""Loads a model from an export, a checkpoint or a published weight file."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax

from ctclip_jax.checkpoints.exports import find_export, is_label_informed, load_export
from ctclip_jax.checkpoints.tensor_files import read_tensors
from ctclip_jax.checkpoints.torch_convert import import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.devices import check_devices
from ctclip_jax.inference import calibration, reference
from ctclip_jax.inference.model import Model
from ctclip_jax.models.ct_clip import CTCLIPConfig
from data_pipelines.errors import InputError
from data_pipelines.tokenizers import load_tokenizer

__all__ = ["Model", "load"]


def load(
    path: str | Path,
    *,
    image_size: tuple[int, int] | int | None = None,
    patch_size: tuple[int, int] | int | None = None,
    temporal_patch_size: int | None = None,
    frames: int | None = None,
    text_heads: int | None = None,
    spacing: tuple[float, float, float] | None = None,
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    dtype: str | None = None,
    report_format: str | None = None,
    pool_sentences: bool | None = None,
    label_informed: bool | None = None,
    devices: Sequence[jax.Device] | None = None,
) -> Model:
    """Loads an export, a checkpoint or WORKDIR of a run, or a .safetensors or PyTorch file.

    Args:
      path: the folder or file; a checkpoint is WORKDIR/checkpoints/STEP.
      image_size: voxels (height, width). This, `patch_size`, `temporal_patch_size`, `frames`
        (voxels along z), `text_heads` and `spacing` (mm along z, x, y) describe a weight file;
        None: inferred from its tensor shapes, or as published where that fits. A folder has its
        own.
      tokenizer: vocab.txt or a SentencePiece .model; None: the one in the folder, if any.
      max_length: tokens that texts are truncated to; None: as in training, or the model's maximum.
      dtype: of the large matrix products, 'float32' or 'bfloat16'; None: as in training.
      report_format, pool_sentences: how reports are encoded; None: as in training, or as published.
      label_informed: whether labels were used in training; None: as the folder or file says, which
        a published PyTorch file fine-tuned on labels (VocabFine) does not.
      devices: such as `jax.devices("cpu")`; None: all of this process, of the kind that the
        environment variable JAX_PLATFORMS (cpu, cuda, tpu) or else jax chooses.
    """
    check_devices()
    path = Path(path)
    geometry = Geometry(image_size, patch_size, temporal_patch_size, frames, text_heads, spacing)
    options = {
        "max_length": max_length,
        "report_format": report_format,
        "pool_sentences": pool_sentences,
        "label_informed": label_informed,
    }
    if path.is_dir():
        if geometry != Geometry():
            raise InputError(f"{path}: an export has its own geometry; pass none")
        path = find_export(path)
        variables, export = load_export(path)
        config = from_dict(CTCLIPConfig, export.get("model"), name=f"{path}: model")
        tokenizer = tokenizer or (export.get("tokenizer") and path / export["tokenizer"])
        defaults = {name: export[name] for name in options if name in export}
        defaults |= {"data_sources": export.get("data_sources", ())}
        defaults |= {"calibration": calibration.load(path), "reference": reference.load(path)}
    else:
        imported = import_weights(read_tensors(path), source=str(path), geometry=geometry)
        config, variables = imported.config, imported.variables
        defaults = {"label_informed": is_label_informed(path)}
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"dtype: unknown value {dtype!r}; choose from float32, bfloat16")
    return Model(
        # Remat and unrolled layers serve training, and the kernel of attention its machine.
        dataclasses.replace(
            config,
            remat="none",
            attention="auto",
            scan_layers=True,
            dtype=dtype or config.dtype,
        ),
        variables,
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        devices=devices,
        **defaults | {name: value for name, value in options.items() if value is not None},
    )
