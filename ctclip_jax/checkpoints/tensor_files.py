"""Tensor files: safetensors, and PyTorch state dicts if PyTorch is installed."""

import pickle
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy

from data_pipelines.errors import InputError
from data_pipelines.files import check_unchanged

TORCH_ENDINGS = (".pt", ".pth", ".bin")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
LABEL_INFORMED = "label_informed"  # in the metadata of a .safetensors


def read_tensors(path: str | Path) -> dict[str, np.ndarray]:
    """Returns the tensors of a .safetensors or PyTorch file, memory-mapped if the format allows.

    The state dict may be at the top of a PyTorch file, or under 'model' or 'state_dict'. Only
    tensors are unpickled, since other objects can run code: they are an InputError, as is a file
    that differs from a SHA256SUMS beside it.
    """
    path = Path(path)
    if not path.is_file():
        raise InputError(f"{path}: no such file")
    check_unchanged(path.parent, [path.name])
    if path.suffix == ".safetensors":
        try:
            return safetensors.numpy.load_file(path)
        except safetensors.SafetensorError as error:
            raise InputError(f"{path}: not a safetensors file ({error})") from error
    if path.suffix in TORCH_ENDINGS:
        return _read_torch(path)
    raise InputError(f"{path}: unknown ending; expected {', '.join(ENDINGS)}")


def read_tensor_names(path: Path) -> list[str]:
    """Returns the names of the tensors of a file; of a .safetensors it reads only the header."""
    if path.suffix != ".safetensors" or not path.is_file():
        return list(read_tensors(path))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def is_marked_label_informed(path: Path) -> bool:
    """Whether the metadata of a .safetensors say `label_informed`; PyTorch files have none."""
    if path.suffix != ".safetensors":
        return False
    with safetensors.safe_open(path, framework="numpy") as file:
        return (file.metadata() or {}).get(LABEL_INFORMED) == "true"


def write_tensors(
    path: str | Path, tensors: Mapping[str, np.ndarray], *, label_informed: bool = False
) -> None:
    """Writes a .safetensors file, whose metadata say if the tensors are `label_informed`, or by its
    ending a PyTorch state dict."""
    path = Path(path)
    contiguous = {key: np.require(value, requirements="CW") for key, value in tensors.items()}
    if path.suffix == ".safetensors":
        metadata = {LABEL_INFORMED: "true"} if label_informed else None
        safetensors.numpy.save_file(contiguous, path, metadata=metadata)
        path.chmod(0o644)  # safetensors creates files that only their owner can read
    elif path.suffix in TORCH_ENDINGS:
        torch = _import_torch(path)
        torch.save({key: torch.from_numpy(value) for key, value in contiguous.items()}, path)
    else:
        raise InputError(f"{path}: unknown ending; expected {', '.join(ENDINGS)}")


def _import_torch(path: Path) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{path}: needs PyTorch; pip install 'ctclip-jax[torch]'") from error
    return torch


def _read_torch(path: Path) -> dict[str, np.ndarray]:
    torch = _import_torch(path)
    try:
        # Files of PyTorch before 1.6 are not zip archives, and cannot be memory-mapped.
        content = torch.load(
            path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path)
        )
    except (pickle.UnpicklingError, EOFError, RuntimeError) as error:
        raise InputError(f"{path}: not a PyTorch file of tensors only") from error
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError(f"{path}: no state dict in it")
    others = [str(key) for key, value in content.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise InputError(f"{path}: not tensors: {', '.join(others)}")
    # numpy has no bfloat16.
    floats = {k: t.float() if t.dtype == torch.bfloat16 else t for k, t in content.items()}
    return {key: tensor.detach().numpy() for key, tensor in floats.items()}
