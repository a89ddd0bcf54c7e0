"""Exports: the weights alone, with what it takes to use them."""

import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ctclip_jax.checkpoints.run import one_line
from ctclip_jax.checkpoints.tensor_files import read_tensors, says_label_informed, write_tensors
from ctclip_jax.checkpoints.torch_convert import has_classifier
from ctclip_jax.checkpoints.torch_export import export_weights
from ctclip_jax.common import trees
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.shapes import Variables
from ctclip_jax.inference import calibration, heatmaps
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.lora import merged
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError
from data_pipelines.files import read_json

WEIGHTS = "model.safetensors"


def save_export(
    directory: Path, variables: Variables, *, config: dict[str, Any], tokenizer: Path | None = None
) -> None:
    """Writes the weights alone with what it takes to use them; replaces an older export, and takes
    away what was made of its weights: a calibration, a reference, a weight file.

    Args:
      directory: gets variables/ (orbax), config.json and the tokenizer's file.
      variables: {'params', 'codebook'}.
      config: `{"model": CTCLIPConfig as a dict, "max_length": tokens of a text, "report":
        the form of its reports, "pool_sentences": whether they are read by sentences,
        "label_informed": whether it was trained with labels}`.
      tokenizer: vocab.txt or *.model to copy.

    Raises:
      InputError: it cannot be written.
    """
    directory = Path(directory).absolute()
    try:
        if jax.process_index() == 0:
            for made in (WEIGHTS, calibration.FILE, heatmaps.BASELINE_FILE):
                (directory / made).unlink(missing_ok=True)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(directory / "variables", variables, force=True)
        if jax.process_index() == 0:
            if tokenizer is not None:
                shutil.copyfile(tokenizer, directory / tokenizer.name)
            described = {**config, "tokenizer": tokenizer.name if tokenizer else None}
            (directory / "config.json").write_text(json.dumps(described, indent=2) + "\n")
    except Exception as error:  # orbax and tensorstore raise all kinds for a full disk
        raise InputError(f"{directory}: not written ({one_line(error)})") from error


def load_export(directory: Path) -> tuple[Variables, dict[str, Any]]:
    """Returns the variables of an export as numpy arrays, and its config.json.

    A checkpoint of a run, WORKDIR/checkpoints/STEP, is read as the export that would be made of it.

    Raises:
      InputError: the directory is neither.
    """
    directory = Path(directory).absolute()
    described = describe_export(directory)
    if (directory / "state").is_dir():
        saved = _restore(directory / "state")
        params = merged(trees.overlay(saved["params"], saved.get("ema", {})))
        return {"params": params, "codebook": saved["codebook"]}, described
    return _restore(directory / "variables"), described


def find_export(path: Path) -> Path:
    """The directory that `load_export` reads: `path`, or of a run's WORKDIR its export, or its
    newest checkpoint if there is none."""
    path = Path(path)
    if not (path / "checkpoints").is_dir():
        return path
    return path / "export" if (path / "export").is_dir() else _newest(path)


def resolve_export(path: Path) -> Path:
    """The export at `path`, or of a run's WORKDIR, to which something is to be added.

    Raises:
      InputError: there is none.
    """
    path = Path(path)
    folder = path / "export" if (path / "checkpoints").is_dir() else path
    if not (folder / "variables").is_dir():
        raise InputError(f"{folder}: no export; `main.py --export` and ctclip_jax.convert make one")
    return folder


def reads_labels(path: Path) -> bool:
    """Whether the weights at any path that `ctclip_jax.load` opens have read labels, as it says."""
    if not path.is_dir():
        return has_classifier(read_tensors(path)) or says_label_informed(path)
    described = describe_export(find_export(path))
    return bool(described.get("label_informed") or described["model"].get("labels"))


def describe_export(directory: Path) -> dict[str, Any]:
    """Returns what `load_export` does beside the variables.

    Raises:
      InputError: the directory is neither an export nor a checkpoint.
    """
    if (directory / "state").is_dir():
        return _described(directory)
    for name in ("config.json", "variables"):
        if not (directory / name).exists():
            raise InputError(f"{directory}: not an export: no {name} in it")
    return read_json(directory / "config.json")


def export_newest(workdir: Path) -> None:
    """Writes WORKDIR/export of the newest checkpoint of a run, without the run.

    It gets model.safetensors too, the weights with the published key names, if they fit them.

    Raises:
      InputError: there is no checkpoint, or it cannot be read.
    """
    checkpoint, out = _newest(workdir), workdir / "export"
    variables, described = load_export(checkpoint)
    tokenizer = Path(described.pop("tokenizer"))
    if not tokenizer.exists():
        raise InputError(f"{tokenizer}: not there, the tokenizer of {checkpoint}")
    save_export(out, variables, config=described, tokenizer=tokenizer)
    try:
        config = from_dict(CTCLIPConfig, described["model"], name=f"{checkpoint}: model")
        weights = export_weights(variables, config=config)
        write_tensors(out / WEIGHTS, weights, label_informed=described["label_informed"])
    except InputError as error:
        print(f"no {WEIGHTS}: {error}")
    print(f"{checkpoint} -> {out}")


def _newest(workdir: Path) -> Path:
    folders = (workdir / "checkpoints").glob("*/state")
    steps = [int(path.parent.name) for path in folders if path.parent.name.isdecimal()]
    if not steps:
        raise InputError(f"{workdir / 'checkpoints'}: no checkpoint to export")
    return workdir / "checkpoints" / str(max(steps))


def _restore(path: Path) -> dict:
    """What is in it of params, codebook and ema, and nothing else."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            wanted = {name: tree[name] for name in ("params", "codebook", "ema") if name in tree}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), wanted)
            options = {"restore_args": as_numpy, "partial_restore": True}
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=wanted, **options))
    except Exception as error:  # orbax and tensorstore raise all kinds for a damaged folder
        raise InputError(f"{path}: damaged ({one_line(error)})") from error


def _described(checkpoint: Path) -> dict[str, Any]:
    """What an export would say of a checkpoint, from the config that it holds."""
    path = checkpoint / "run" / "metadata"
    saved = read_json(path)["config"]
    config = from_dict(TrainConfig, saved, name=str(path))
    return {
        "model": saved["model"],
        **config.evaluation.reading,
        "label_informed": config.label_informed,
        "tokenizer": str(config.data.tokenizer_path.absolute()),
    }
