"""The public interface: open a model, encode volumes and reports, detect abnormalities."""

import dataclasses
from pathlib import Path

from ctclip_jax.checkpoints.exports import find_export, is_label_informed, load_export
from ctclip_jax.checkpoints.tensor_files import read_tensors
from ctclip_jax.checkpoints.torch_convert import import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.common.configs import from_dict
from ctclip_jax.inference import baseline, calibration
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
    report: str | None = None,
    pool_sentences: bool | None = None,
    label_informed: bool | None = None,
) -> Model:
    """Opens an export, a checkpoint or the WORKDIR of a run, or a .safetensors or PyTorch file as
    published.

    Args:
      path: the directory or file; a checkpoint is WORKDIR/checkpoints/STEP.
      image_size: voxels (height, width); with `patch_size`, `temporal_patch_size`, `frames` (voxels
        along z), `text_heads` and `spacing` (mm of a voxel along z, x, y) it says what a PyTorch
        file does not tell. None: read from the file's shapes, or as published where that fits
        them. A directory knows its own.
      tokenizer: a vocab.txt or a SentencePiece .model; None: the one in the directory, if any.
      max_length: tokens of a text; None: as in training, or all that the model takes.
      dtype: of the large matrix products, 'float32' or 'bfloat16'; None: as in training.
      report, pool_sentences: how the model reads reports; None: as in training, or as published.
      label_informed: whether it has read labels; None: as the directory or file says, which a
        published PyTorch file fine-tuned on labels (VocabFine) cannot.

    Raises:
      InputError: no such file, not a model, or a geometry that must be given or does not fit.
    """
    path = Path(path)
    given = {
        "report": report,
        "pool_sentences": pool_sentences,
        "label_informed": label_informed,
    }
    geometry = Geometry(image_size, patch_size, temporal_patch_size, frames, text_heads, spacing)
    if not path.is_dir():
        imported = import_weights(read_tensors(path), source=str(path), geometry=geometry)
        config, variables = imported.config, imported.variables
        reading = {"label_informed": is_label_informed(path)}
    else:
        if geometry != Geometry():
            raise InputError(f"{path}: an export directory knows its geometry; give none")
        path = find_export(path)
        variables, export = load_export(path)
        config = from_dict(CTCLIPConfig, export["model"], name=f"{path}: model")
        max_length = max_length or export["max_length"]
        tokenizer = tokenizer or (export["tokenizer"] and path / export["tokenizer"])
        told = ("pool_sentences", "label_informed")
        reading = {name: export[name] for name in told if name in export}
        if "report_format" in export:
            reading["report"] = export["report_format"]
        reading["calibration"] = calibration.read(path)
        reading["reference"] = baseline.read(path)
    if dtype not in (None, "float32", "bfloat16"):
        raise InputError(f"dtype: {dtype!r} is none of float32, bfloat16")
    # How it was trained, on whatever machine, is not how it is used here.
    config = dataclasses.replace(config, remat="none", attention="xla")
    return Model(
        dataclasses.replace(config, dtype=dtype or config.dtype),
        variables,
        tokenizer=load_tokenizer(tokenizer) if tokenizer else None,
        max_length=max_length,
        **reading | {name: value for name, value in given.items() if value is not None},
    )
