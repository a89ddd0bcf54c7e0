"""PyTorch's zip archives of tensors, read without PyTorch and without running what they hold.

An archive has a pickle, in which tensors are strided views of storages, and the bytes of each
storage. The bytes are memory-mapped: none are read before they are asked for.
"""

import io
import math
import pickle
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Mapping
from typing import Any, BinaryIO, NamedTuple

import ml_dtypes
import numpy as np

from data_pipelines.errors import InputError

SIGNATURE = b"PK"
_DTYPES = {
    "torch.FloatStorage": "float32",
    "torch.DoubleStorage": "float64",
    "torch.HalfStorage": "float16",
    "torch.BFloat16Storage": "bfloat16",
    "torch.LongStorage": "int64",
    "torch.IntStorage": "int32",
    "torch.ShortStorage": "int16",
    "torch.CharStorage": "int8",
    "torch.ByteStorage": "uint8",
    "torch.BoolStorage": "bool",
}
_PICKLE = "/data.pkl"
# Tied weights are tensors of the same bytes: T5 has four names for its embedding.
_MAX_SHARED = 4


def read(file: BinaryIO) -> Any:
    """Returns what `torch.save` was given: containers, numbers and texts as they are, tensors as
    StoredTensor. Raises InputError for anything else, and other exceptions for damaged files."""
    return _Archive(file).load()


class StoredTensor(NamedTuple):
    """A tensor of an archive, not read yet; `storage` is (file, dtype, number of elements)."""

    archive: "_Archive"
    storage: tuple[str, str, int]
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def view(self) -> np.ndarray:
        """Returns the tensor, memory-mapped."""
        name, dtype, size = self.storage
        sizes = (size, self.offset, *self.shape, *self.strides)
        if dtype not in _DTYPES.values() or not all(type(n) is int and n >= 0 for n in sizes):
            raise InputError(f"{name}: not a tensor of a known kind")
        dtype, content = np.dtype(dtype), self.archive.bytes_of(name)
        if len(content) != size * dtype.itemsize:
            raise InputError(f"{name}: got {len(content)} bytes, expected {size} x {dtype}")
        last = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True))
        if math.prod(self.shape) and self.offset + last >= size:
            raise InputError(f"{name}: {size} elements cannot be a tensor of shape {self.shape}")
        elements = content.view(dtype)[self.offset :]
        strides = [step * dtype.itemsize for step in self.strides]
        return np.lib.stride_tricks.as_strided(elements, self.shape, strides)


def arrays(tensors: Mapping[str, StoredTensor], *, file_bytes: int) -> dict[str, np.ndarray]:
    """Returns tensors, memory-mapped; of bfloat16, which numpy lacks, float32 copies."""
    views = {name: tensor.view() for name, tensor in tensors.items()}
    # Strides, and tensors of the same bytes, could fill the memory from a small file.
    num_bytes = sum(view.nbytes for view in views.values())
    if num_bytes > _MAX_SHARED * file_bytes:
        raise InputError(
            f"got tensors of {num_bytes} bytes, expected at most {_MAX_SHARED} x {file_bytes}"
        )
    return {
        name: view.astype(np.float32) if view.dtype == ml_dtypes.bfloat16 else view
        for name, view in views.items()
    }


class _Archive(pickle._Unpickler):
    """Looks up no name in a library: a pickle calls containers and two methods, and changes none.
    The unpickler is the one in Python: that in C fills the memory for one number."""

    def __init__(self, file: BinaryIO):
        self.mapped = np.memmap(file, np.uint8, mode="c").view(np.ndarray)
        with zipfile.ZipFile(file) as archive:
            self._entries = {entry.filename: entry for entry in archive.infolist()}
        self._contents: dict[str, np.ndarray] = {}
        roots = [name.removesuffix(_PICKLE) for name in self._entries if name.endswith(_PICKLE)]
        if len(roots) != 1:
            raise InputError(f"a zip archive with {len(roots)} files {_PICKLE}; expected 1")
        self._root, order = roots[0], f"{roots[0]}/byteorder"
        if order in self._entries and self.bytes_of(order).tobytes() != b"little":
            raise InputError("not little-endian")
        super().__init__(io.BytesIO(self.bytes_of(self._root + _PICKLE)), encoding="utf-8")
        self._names = _DTYPES | {
            "collections.OrderedDict": OrderedDict,
            "collections.Counter": dict,
            "builtins.set": set,
            "torch.Size": tuple,
            "torch._utils._rebuild_tensor_v2": self._tensor,
            "torch._utils._rebuild_parameter": self._parameter,
        }

    def bytes_of(self, name: str) -> np.ndarray:
        """Returns the bytes of a file, whose checksum is compared the first time."""
        if name not in self._contents:
            entry = self._entries[name]
            # Bytes as they are cannot be a small file that fills the memory.
            if entry.compress_type != zipfile.ZIP_STORED:
                raise InputError(f"{name}: compressed; expected stored, as PyTorch writes")
            # A local header: 26 bytes, the lengths of a name and of extra bytes, then both.
            header = entry.header_offset + 26
            start = header + 4 + int(self.mapped[header : header + 4].view("<u2").sum())
            content = self.mapped[start : start + entry.file_size]
            # A checksum of 0 is none: PyTorch can leave it out.
            if len(content) != entry.file_size or entry.CRC not in (0, zlib.crc32(content)):
                raise InputError(f"{name}: damaged (its checksum differs)")
            self._contents[name] = content
        return self._contents[name]

    def find_class(self, module: str, name: str) -> Any:
        # PyTorch writes protocol 2, which has names of Python 2.
        full_name = f"{module.replace('__builtin__', 'builtins')}.{name}"
        if full_name not in self._names:
            raise InputError(f"holds {full_name}; only tensors are read")
        return self._names[full_name]

    def persistent_load(self, pid: tuple) -> tuple[str, str, int]:
        _, dtype, key, _, size = pid
        return f"{self._root}/data/{key}", dtype, size

    def load_build(self) -> None:
        self.stack.pop()
        # A state dict has an attribute _metadata, which no tensor needs.
        if type(self.stack[-1]) is not OrderedDict:
            raise InputError("changes an object; only tensors are read")

    dispatch = pickle._Unpickler.dispatch | {pickle.BUILD[0]: load_build}

    def _tensor(self, storage, offset, shape, strides, requires_grad, hooks) -> StoredTensor:
        return StoredTensor(self, storage, offset, shape, strides)

    def _parameter(self, tensor, requires_grad, hooks) -> StoredTensor:
        return tensor
