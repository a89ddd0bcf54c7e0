"""Tensor files: safetensors, and PyTorch state dicts, which only in an old format need PyTorch."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import safetensors
import safetensors.numpy

from ctclip_jax.checkpoints import torch_archive
from ctclip_jax.checkpoints.torch_archive import StoredTensor
from data_pipelines.errors import InputError, naming_file
from data_pipelines.files import check_unchanged
from data_pipelines.formats.sniff import START_BYTES, describe_content

TORCH_ENDINGS = (".pt", ".pth", ".bin")
ENDINGS = (".safetensors", *TORCH_ENDINGS)
LABEL_INFORMED = "label_informed"  # in the metadata of a .safetensors
_NO_TORCH_FILE = "not a PyTorch file of tensors only"
# The number with which files of PyTorch before 1.6 begin.
_LEGACY_MAGIC = (0x1950A86A20F9469CFC6C).to_bytes(10, "little")


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
        with naming_file(path, _NO_TORCH_FILE):
            return torch_archive.arrays(_read_torch(path), file_bytes=path.stat().st_size)
    raise InputError(f"{path}: unknown ending; expected {', '.join(ENDINGS)}")


def read_tensor_names(path: Path) -> list[str]:
    """Returns the names of the tensors of a file, without reading the tensors."""
    if path.suffix in TORCH_ENDINGS:
        with naming_file(path, _NO_TORCH_FILE):
            return list(_read_torch(path))
    if path.suffix != ".safetensors" or not path.is_file():
        return list(read_tensors(path))
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            return list(file.keys())
    except safetensors.SafetensorError as error:
        raise InputError(f"{path}: not a safetensors file ({error})") from error


def check_finite(tensors: Mapping[str, np.ndarray], *, source: str | Path) -> None:
    """Raises InputError, which names `source` and the first tensor that has NaN or infinity."""
    for name, value in tensors.items():
        if num_wrong := value.size - np.count_nonzero(np.isfinite(value)):
            raise InputError(
                f"{source}: {name}: {num_wrong} of {value.size} numbers are NaN or infinite"
            )


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
        torch = _import_torch(f"{path}: only PyTorch writes this format")
        torch.save({key: torch.from_numpy(value) for key, value in contiguous.items()}, path)
    else:
        raise InputError(f"{path}: unknown ending; expected {', '.join(ENDINGS)}")


def _import_torch(need: str) -> Any:
    try:
        import torch
    except ImportError as error:
        raise InputError(f"{need}; pip install 'ctclip-jax[torch]'") from error
    return torch


def _read_torch(path: Path) -> dict[str, StoredTensor]:
    """The state dict of a PyTorch file."""
    with path.open("rb") as file:
        start = file.read(START_BYTES)
        if start.startswith(torch_archive.SIGNATURE):
            content = torch_archive.read(file)
        elif _LEGACY_MAGIC in start:
            content = _read_legacy(file)
        else:
            raise InputError(f"{_NO_TORCH_FILE}: {describe_content(start) or 'unknown content'}")
    for wrapper in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(wrapper), dict):
            content = content[wrapper]
    if not isinstance(content, dict):
        raise InputError("no state dict in it")
    others = [str(key) for key, value in content.items() if not isinstance(value, StoredTensor)]
    if others:
        raise InputError(f"not tensors: {', '.join(others)}")
    return content


def _read_legacy(file: BinaryIO) -> Any:
    """A file of PyTorch before 1.6, which PyTorch converts to an archive."""
    torch = _import_torch("written before PyTorch 1.6, so only PyTorch reads it")
    file.seek(0)
    content = torch.load(file, map_location="cpu", weights_only=True)
    with tempfile.TemporaryFile() as archive:
        torch.save(content, archive)
        return torch_archive.read(archive)
