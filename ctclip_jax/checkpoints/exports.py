"""Exports: a directory with the weights, config.json and tokenizer, for inference."""

import dataclasses
import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp

from ctclip_jax.checkpoints.run import METADATA
from ctclip_jax.checkpoints.tensor_files import (
    check_finite,
    is_marked_label_informed,
    read_tensor_names,
    read_tensors,
    write_tensors,
)
from ctclip_jax.checkpoints.torch_convert import export_weights, has_classifier, import_weights
from ctclip_jax.common import trees
from ctclip_jax.common.configs import PositiveInt, from_dict
from ctclip_jax.common.devices import check_devices
from ctclip_jax.common.shapes import Variables
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.lora import merged
from data_pipelines.errors import InputError, one_line
from data_pipelines.files import (
    CHECKSUMS,
    check_unchanged,
    checksum_folder,
    make_folder,
    read_json,
    write_text,
)
from data_pipelines.reports import ReportFormat

CONFIG_FILE = "config.json"
WEIGHTS_FILE = "model.safetensors"
CALIBRATION_FILE = "calibration.json"
REFERENCE_FILE = "reference.npz"
# Computed from the weights of an export: new weights make them wrong.
DERIVED_FILES = (WEIGHTS_FILE, CALIBRATION_FILE, REFERENCE_FILE)
# Keys of config.json in earlier exports and checkpoints, and their names now.
RENAMED_KEYS = {
    "report": "report_format",
    "labels": "num_labels",
    "report_labels": "num_report_labels",
    "init_temperature": "init_logit_scale_log",
    "head": "pool",
    "drop": "patch_dropout",
}


@dataclasses.dataclass(frozen=True)
class _Description:
    """The keys of config.json, of which an export may lack some, and their types."""

    model: dict | None = None
    tokenizer: str | None = None
    max_length: PositiveInt | None = None
    report_format: ReportFormat = "joined"
    pool_sentences: bool = False
    label_informed: bool = False


def save_export(
    directory: Path,
    variables: Variables,
    *,
    config: dict[str, Any],
    tokenizer: Path | None = None,
    tensors: Mapping[str, np.ndarray] | None = None,
) -> None:
    """Saves an export with SHA256SUMS, which `load_export` compares.

    It takes the place of an older one, with its `DERIVED_FILES`, once it is complete.

    Args:
      directory: gets variables/ (orbax), config.json and the tokenizer's file.
      variables: {'params', 'codebook'}.
      config: `{"model": CTCLIPConfig as a dict, "max_length": tokens of a text, "report_format":
        of data_pipelines.reports, "pool_sentences": whether the latent of a report is the mean of
        its sentences', "label_informed": whether the weights were trained with labels}`.
      tokenizer: vocab.txt or *.model to copy.
      tensors: the weights with published key names, for model.safetensors.
    """
    check_devices()
    directory = Path(directory).absolute()
    is_main_process = jax.process_index() == 0
    scratch = directory / ".writing-export"  # the same for all processes
    try:
        if is_main_process:
            shutil.rmtree(scratch, ignore_errors=True)  # of a killed program
            make_folder(scratch)
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(scratch / "variables", variables)
        if is_main_process:
            if tokenizer is not None:
                shutil.copyfile(tokenizer, scratch / tokenizer.name)
            if tensors is not None:
                is_informed = config.get("label_informed", False)
                write_tensors(scratch / WEIGHTS_FILE, tensors, label_informed=is_informed)
            description = {**config, "tokenizer": tokenizer.name if tokenizer else None}
            write_text(scratch / CONFIG_FILE, json.dumps(description, indent=2) + "\n")
            checksum_folder(scratch)
            _replace(directory, scratch)
    except Exception as error:  # orbax and tensorstore raise all kinds for a full disk
        raise InputError(f"{directory}: cannot be saved ({one_line(error)})") from error
    finally:
        if is_main_process:
            shutil.rmtree(scratch, ignore_errors=True)


def _replace(directory: Path, scratch: Path) -> None:
    """Moves a finished export from `scratch` to `directory`, in place of an older one."""
    # The config goes first and comes last: a kill in between leaves no export, not a mixture.
    for name in (CONFIG_FILE, CHECKSUMS, *DERIVED_FILES):
        (directory / name).unlink(missing_ok=True)
    shutil.rmtree(directory / "variables", ignore_errors=True)
    for name in sorted(os.listdir(scratch), key=CONFIG_FILE.__eq__):
        os.replace(scratch / name, directory / name)


def load_export(directory: Path) -> tuple[Variables, dict[str, Any]]:
    """Returns the variables of an export as numpy arrays, and its config.json; if a file is not as
    it was saved (SHA256SUMS), or a number is not finite, it raises InputError.

    A checkpoint of a run, WORKDIR/checkpoints/STEP, loads as the export that would be saved of it:
    with averaged weights (EMA) in place of the trained ones, and adapters multiplied in.
    """
    check_devices()
    directory = Path(directory).absolute()
    description = describe_export(directory)
    check_unchanged(directory)
    if _is_checkpoint(directory):
        saved = _restore(directory / "state")
        params = merged(trees.overlay(saved["params"], saved.get("ema", {})))
        variables = {"params": params, "codebook": saved["codebook"]}
    else:
        variables = _restore(directory / "variables")
    check_finite(trees.flatten(variables), source=directory)
    return variables, description


def load_variables(path: Path) -> Variables:
    """Returns the variables at any path that `ctclip_jax.load` opens, as numpy arrays."""
    if path.is_dir():
        return load_export(find_export(path))[0]
    return import_weights(read_tensors(path), source=str(path)).variables


def describe_export(directory: Path) -> dict[str, Any]:
    """Returns config.json of an export, or what that of an export of a checkpoint would be; the
    `tokenizer` is relative to an export, and absolute for a checkpoint."""
    if _is_checkpoint(directory):
        file = str(METADATA)
        description = read_json(directory / file).get("export")
        if description is None:
            raise InputError(
                f"{directory}: a checkpoint of an earlier release, which does not describe its"
                " export; run `main.py --export` of that release"
            )
    else:
        file = CONFIG_FILE
        for name in (file, "variables"):
            if not (directory / name).exists():
                raise InputError(f"{directory}: not an export: no {name} in it")
        description = read_json(directory / file)
    check_unchanged(directory, [file])
    return _rename_keys(description, source=directory / file)


def find_export(path: Path) -> Path:
    """Returns the directory for `load_export`: `path`, or of a run's WORKDIR its export, or its
    newest checkpoint if there is no export."""
    path = Path(path)
    if not (path / "checkpoints").is_dir():
        return path
    return path / "export" if (path / "export").is_dir() else _newest_checkpoint(path)


def resolve_export(path: Path) -> Path:
    """Returns the export of `find_export`; not a checkpoint, which cannot be added to."""
    folder = find_export(path)
    if not (folder / "variables").is_dir():
        raise InputError(f"{folder}: no export; create one by train --export or convert")
    return folder


def is_label_informed(path: Path) -> bool:
    """Whether the weights at any path that `ctclip_jax.load` opens were trained with labels, as far
    as they say: what such a model detects is not zero-shot."""
    if not path.is_dir():
        return has_classifier(read_tensor_names(path)) or is_marked_label_informed(path)
    description = describe_export(find_export(path))
    model = description.get("model") or {}
    return bool(description.get("label_informed") or model.get("num_labels"))


def export_newest(workdir: Path) -> None:
    """Saves WORKDIR/export of a run's newest checkpoint, with model.safetensors (published key
    names) if the model has a published layout."""
    checkpoint, out = _newest_checkpoint(workdir), workdir / "export"
    variables, description = load_export(checkpoint)
    tokenizer = Path(description.pop("tokenizer"))
    if not tokenizer.exists():
        raise InputError(f"{tokenizer}: no such file, the tokenizer of {checkpoint}")
    tensors, config = None, from_dict(CTCLIPConfig, description["model"], name=str(checkpoint))
    try:
        tensors = export_weights(variables, config=config)
    except InputError as error:
        print(f"no {WEIGHTS_FILE}: {error}")
    save_export(out, variables, config=description, tokenizer=tokenizer, tensors=tensors)
    print(f"{checkpoint} -> {out}")


def _is_checkpoint(directory: Path) -> bool:
    return (directory / "state").is_dir()


def _newest_checkpoint(workdir: Path) -> Path:
    folders = (workdir / "checkpoints").glob("*/state")
    steps = [int(path.parent.name) for path in folders if path.parent.name.isdecimal()]
    if not steps:
        raise InputError(f"{workdir / 'checkpoints'}: no checkpoint to export")
    return workdir / "checkpoints" / str(max(steps))


def _restore(path: Path) -> dict:
    """Loads only params, codebook and ema of a state, as numpy arrays."""
    try:
        with ocp.PyTreeCheckpointer() as checkpointer:
            tree = checkpointer.metadata(path).item_metadata.tree
            item = {name: tree[name] for name in ("params", "codebook", "ema") if name in tree}
            as_numpy = jax.tree.map(lambda _: ocp.RestoreArgs(restore_type=np.ndarray), item)
            options = {"restore_args": as_numpy, "partial_restore": True}
            return checkpointer.restore(path, args=ocp.args.PyTreeRestore(item=item, **options))
    except Exception as error:  # orbax and tensorstore raise all kinds for a damaged folder
        raise InputError(f"{path}: damaged ({one_line(error)})") from error


def _rename_keys(config: dict[str, Any], *, source: Path) -> dict[str, Any]:
    """Gives the keys their names of now, and checks the types of their values."""

    def renamed(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        return {RENAMED_KEYS.get(key, key): renamed(inner) for key, inner in value.items()}

    description = renamed(config)
    names = [field.name for field in dataclasses.fields(_Description)]
    known = {name: description[name] for name in names if name in description}
    from_dict(_Description, known, name=str(source))
    return description
