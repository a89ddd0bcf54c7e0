"""PyTorch files without PyTorch: equal to what it reads, and nothing but tensors."""

import io
import pickle
import sys
import tracemalloc
import zipfile
from collections import OrderedDict

import numpy as np
import pytest

from ctclip_jax.checkpoints import torch_archive
from ctclip_jax.checkpoints.tensor_files import read_tensor_names, read_tensors, write_tensors
from data_pipelines.errors import InputError

ROOT = "archive"


@pytest.fixture
def torch():
    return pytest.importorskip("torch")


@pytest.fixture
def without_torch(torch, monkeypatch):
    """What the test saved by `torch` is read where PyTorch is not installed."""
    return lambda: monkeypatch.setitem(sys.modules, "torch", None)


def tensors_of_all_kinds(torch) -> dict:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(6, 4, generator=generator)
    dtypes = ("float64", "float32", "float16", "bfloat16", "int64", "int32", "int16", "int8")
    tensors = {name: (100 * values).to(getattr(torch, name)) for name in (*dtypes, "uint8")}
    return tensors | {
        "bool": values > 0,
        "scalar": torch.tensor(3.5),
        "empty": torch.zeros(2, 0, 3),
        "transposed": values.T,
        "rows": values[1::2],
        "column": values[:, 2],
        "same storage": values.view(-1)[5:17],
        "expanded": torch.ones(1, 1).expand(3, 2),
        "permuted": torch.arange(24).reshape(2, 3, 4).permute(2, 0, 1),
        "parameter": torch.nn.Parameter(values),
        "frozen": torch.nn.Parameter(values[0], requires_grad=False),
    }


def expected_array(tensor) -> np.ndarray:
    tensor = tensor.detach()
    return (tensor.float() if str(tensor.dtype) == "torch.bfloat16" else tensor).numpy()


def assert_equal(actual, tensors) -> None:
    assert list(actual) == list(tensors)
    for name, tensor in tensors.items():
        expected = expected_array(tensor)
        assert (actual[name].dtype, actual[name].shape) == (expected.dtype, expected.shape), name
        assert actual[name].tobytes() == expected.tobytes(), name


@pytest.mark.parametrize("ending", ["pt", "pth", "bin"])
def test_tensors_of_all_kinds_are_equal_to_what_torch_saved(torch, without_torch, tmp_path, ending):
    tensors = tensors_of_all_kinds(torch)
    path = tmp_path / f"all.{ending}"
    torch.save(tensors, path)
    without_torch()
    assert_equal(read_tensors(path), tensors)
    assert read_tensor_names(path) == list(tensors)


@pytest.mark.parametrize("wrapper", [None, "model", "state_dict"])
def test_a_module_with_tied_weights_and_an_optimizer(torch, without_torch, tmp_path, wrapper):
    module = torch.nn.Sequential(
        torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 4, bias=False)
    )
    module[2].weight = module[0].weight
    optimizer = torch.optim.AdamW(module.parameters())
    module(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    state = module.state_dict()  # an OrderedDict with an attribute _metadata
    trained = {"optim": optimizer.state_dict(), "step": 7, "shape": torch.Size([1, 2]), "on": {1}}
    torch.save({wrapper: state, **trained} if wrapper else state, tmp_path / "model.pt")
    without_torch()
    assert_equal(read_tensors(tmp_path / "model.pt"), state)


def test_an_archive_without_checksums(torch, without_torch, tmp_path, monkeypatch):
    monkeypatch.setattr(torch.serialization, "get_crc32_options", lambda: False)
    torch.save({"a": torch.arange(9)}, tmp_path / "a.pt")
    with zipfile.ZipFile(tmp_path / "a.pt") as archive:
        assert not any(entry.CRC for entry in archive.infolist())
    without_torch()
    assert_equal(read_tensors(tmp_path / "a.pt"), {"a": torch.arange(9)})


def test_files_of_other_pickle_protocols(torch, without_torch, tmp_path):
    tensors = {"a": torch.arange(9)}
    protocols = range(2, pickle.HIGHEST_PROTOCOL + 1)
    for protocol in protocols:
        torch.save(tensors, tmp_path / f"{protocol}.pt", pickle_protocol=protocol)
    without_torch()
    for protocol in protocols:
        assert_equal(read_tensors(tmp_path / f"{protocol}.pt"), tensors)


def test_the_format_before_1_6_needs_torch(torch, without_torch, tmp_path):
    tensors = tensors_of_all_kinds(torch)
    path = tmp_path / "old.pt"
    torch.save(tensors, path, _use_new_zipfile_serialization=False)
    assert_equal(read_tensors(path), tensors)
    without_torch()
    with pytest.raises(InputError, match=r"old.pt: .*pip install 'ctclip-jax\[torch\]'"):
        read_tensors(path)
    with pytest.raises(InputError, match=r"new.pt: .*pip install 'ctclip-jax\[torch\]'"):
        write_tensors(tmp_path / "new.pt", {"a": np.ones(2)})


# Archives made by hand, as an attacker would.


class Name:
    """Pickles as a name in a library, or a call of one, whether or not the library is there."""

    def __init__(self, module: str, name: str, *arguments):
        self.module, self.name, self.arguments = module, name, arguments

    def write(self, save, write) -> None:
        write(b"c" + f"{self.module}\n{self.name}\n".encode())
        if self.arguments:
            save(self.arguments)
            write(pickle.REDUCE)


class Change:
    """Pickles as a change of the attributes of another object."""

    def __init__(self, target, state):
        self.target, self.state = target, state

    def write(self, save, write) -> None:
        save(self.target)
        save(self.state)
        write(pickle.BUILD)


class Storage(tuple):
    """The persistent id of a storage."""


class Pickler(pickle._Pickler):
    def persistent_id(self, value):
        return tuple(value) if isinstance(value, Storage) else None

    def save(self, value, **options):
        if isinstance(value, Name | Change):
            value.write(self.save, self.write)
        else:
            super().save(value, **options)


def storage(*, key="0", size=6, kind="FloatStorage") -> Storage:
    return Storage(("storage", Name("torch", kind), key, "cpu", size))


def tensor(stored, *, offset=0, shape=(2, 3), strides=(3, 1)) -> Name:
    arguments = stored, offset, shape, strides, False, {}
    return Name("torch._utils", "_rebuild_tensor_v2", *arguments)


def write_archive(path, content, *, compression=zipfile.ZIP_STORED, **files: bytes) -> None:
    pickled = io.BytesIO()
    Pickler(pickled, protocol=2).dump(content)
    entries = {"data.pkl": pickled.getvalue(), "data/0": bytes(24), "byteorder": b"little"}
    with zipfile.ZipFile(path, "w", compression) as archive:
        for name, data in (entries | files).items():
            archive.writestr(f"{ROOT}/{name}", data)


def test_an_archive_made_by_hand_is_read(tmp_path):
    data = np.arange(6, dtype=np.float32)
    write_archive(tmp_path / "a.pt", {"w": tensor(storage())}, **{"data/0": data.tobytes()})
    np.testing.assert_array_equal(read_tensors(tmp_path / "a.pt")["w"], data.reshape(2, 3))


@pytest.mark.parametrize(
    "module, name",
    [
        ("os", "system"),
        ("builtins", "eval"),
        ("builtins", "getattr"),
        ("torch", "load"),
        ("torch._utils", "_rebuild_tensor_v3"),
        ("numpy.core.multiarray", "_reconstruct"),
        ("ctclip_jax.checkpoints.torch_archive", "StoredTensor"),
        ("collections", "OrderedDict.fromkeys"),
    ],
)
def test_other_objects_are_refused_by_name(tmp_path, module, name):
    trace, path = tmp_path / "trace", tmp_path / "hostile.pt"
    write_archive(path, {"w": tensor(storage()), "x": Name(module, name, f"touch {trace}")})
    for read in (read_tensors, read_tensor_names):
        with pytest.raises(InputError) as error:
            read(path)
        assert str(error.value) == f"{path}: holds {module}.{name}; only tensors are read"
    assert not trace.exists()


def test_an_object_is_refused_wherever_it_stands(torch, tmp_path):
    class Hostile:
        def __reduce__(self):
            return print, ("run",)

    for number, content in enumerate(({"model": {"w": Hostile()}}, [Hostile()], Hostile())):
        torch.save(content, tmp_path / f"{number}.pt")
        with pytest.raises(InputError, match="holds builtins.print; only tensors are read"):
            read_tensors(tmp_path / f"{number}.pt")


@pytest.mark.parametrize("state", [{"x": 1}, (None, {"__defaults__": (1,)})])
@pytest.mark.parametrize(
    "target",
    [
        Name("collections", "OrderedDict"),
        Name("torch._utils", "_rebuild_tensor_v2"),
        Name("torch._utils", "_rebuild_parameter"),
        tensor(storage()),
    ],
)
def test_a_pickle_cannot_change_what_reads_it(tmp_path, target, state):
    good, bad = tmp_path / "good.pt", tmp_path / "bad.pt"
    write_archive(good, {"w": tensor(storage())})
    write_archive(bad, {"w": tensor(storage()), "x": Change(target, state)})
    with pytest.raises(InputError, match="bad.pt: changes an object; only tensors are read"):
        read_tensors(bad)
    assert not vars(torch_archive._Archive._tensor) and not vars(torch_archive._Archive._parameter)
    assert read_tensors(good)["w"].shape == (2, 3)


def test_attributes_of_a_state_dict_are_dropped(tmp_path):
    """PyTorch's `_metadata`, and whatever else."""
    state = Change(
        Name("collections", "OrderedDict", []), {"__setstate__": Name("builtins", "set")}
    )
    write_archive(tmp_path / "a.pt", state)
    with (tmp_path / "a.pt").open("rb") as file:
        content = torch_archive.read(file)
    assert type(content) is OrderedDict and not vars(content)


@pytest.mark.parametrize(
    "content, files, problem",
    [
        (tensor(storage(key="1")), {}, "archive/data/1"),
        (tensor(storage(key="../data.pkl")), {}, "data.pkl"),
        (tensor(storage(size=5)), {}, "got 24 bytes, expected 5 x float32"),
        (tensor(storage(size=10**12)), {}, "got 24 bytes, expected"),
        (tensor(storage(kind="DoubleStorage")), {}, "got 24 bytes, expected 6 x float64"),
        (tensor(storage(), offset=1), {}, r"cannot be a tensor of shape \(2, 3\)"),
        (tensor(storage(), offset=-1), {}, "known kind"),
        (tensor(storage(), strides=(6, 1)), {}, "cannot be a tensor"),
        (tensor(storage(), strides=(-3, 1)), {}, "known kind"),
        (tensor(storage(), strides=(3,)), {}, "not a PyTorch file"),
        (tensor(storage(), shape=(10**6, 10**6), strides=(0, 0)), {}, "tensors of 4000000000000 b"),
        (tensor(storage(), shape=(10**10, 10**10), strides=(0, 0)), {}, "not a PyTorch file"),
        (tensor(storage(), shape=("2", 3)), {}, "known kind"),
        (tensor(("archive/data/0", "O", 3)), {}, "known kind"),
        (tensor(7), {}, "not a PyTorch file"),
        (tensor(storage()), {"byteorder": b"big"}, "little-endian"),
        (tensor(storage()), {"more/data.pkl": b""}, "2 files"),
        ("text", {}, "not tensors: w"),
    ],
)
def test_a_tensor_that_is_not_in_its_storage_is_one_line(tmp_path, content, files, problem):
    path = tmp_path / "bad.pt"
    write_archive(path, {"w": content}, **files)
    with pytest.raises(InputError, match=rf"bad.pt: .*{problem}") as error:
        read_tensors(path)
    assert "\n" not in str(error.value)


def test_a_pickle_cannot_fill_the_memory(tmp_path):
    """A number in its memo makes the unpickler in C reserve as many places."""
    pickled = pickle.PROTO + b"\2" + pickle.EMPTY_DICT + pickle.LONG_BINPUT
    with zipfile.ZipFile(tmp_path / "bomb.pt", "w") as archive:
        archive.writestr(f"{ROOT}/data.pkl", pickled + (2**32 - 1).to_bytes(4, "little") + b".")
    tracemalloc.start()
    assert read_tensors(tmp_path / "bomb.pt") == {}
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


@pytest.mark.parametrize("strides", [(0,), (1,)])
def test_tensors_of_the_same_bytes_cannot_fill_the_memory(tmp_path, strides):
    """Each as large as the file, and of bfloat16, which is read as float32."""
    path, size = tmp_path / "bomb.pt", 10**6
    stored = storage(size=size, kind="BFloat16Storage")
    for count in (4, 200):
        tensors = {str(n): tensor(stored, shape=(size,), strides=strides) for n in range(count)}
        write_archive(path, tensors, **{"data/0": bytes(2 * size)})
        if count == 4:  # weights that are tied
            assert len(read_tensors(path)) == count
    tracemalloc.start()
    with pytest.raises(
        InputError, match="bomb.pt: got tensors of 400000000 bytes, expected .* 4 x"
    ):
        read_tensors(path)
    assert tracemalloc.get_traced_memory()[1] < 2**24
    tracemalloc.stop()


def test_compressed_and_damaged_archives_are_one_line(tmp_path):
    path = tmp_path / "bad.pt"
    write_archive(path, {"w": tensor(storage())}, compression=zipfile.ZIP_DEFLATED)
    with pytest.raises(InputError, match="compressed"):
        read_tensors(path)
    write_archive(path, {"w": tensor(storage())}, **{"data/0": b"weights!" * 3})
    content = path.read_bytes()
    path.write_bytes(content.replace(b"weights!", b"weighs!!", 1))
    with pytest.raises(InputError, match="archive/data/0: damaged"):
        read_tensors(path)
    path.write_bytes(content[:-30])
    with pytest.raises(InputError, match="bad.pt: not a PyTorch file"):
        read_tensors(path)


@pytest.mark.parametrize(
    "name, content, problem",
    [
        ("broken.pt", b"", "an empty file"),
        ("broken.pt", b"PK\3\4 this is not a model" * 9, "not a zip file"),
        ("broken.pt", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        ("broken.pt", pickle.dumps({"w": 1}), "a Python pickle"),
        ("broken.safetensors", b"", "safetensors"),
        ("broken.safetensors", b"PK\3\4 this is not a model" * 9, "safetensors"),
    ],
)
def test_another_file_is_one_line(tmp_path, name, content, problem):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=rf"{name}: .*{problem}") as error:
        read_tensors(tmp_path / name)
    assert "\n" not in str(error.value)


def test_no_state_dict_is_one_line(tmp_path):
    write_archive(tmp_path / "list.pt", [tensor(storage())])
    with pytest.raises(InputError, match="list.pt: no state dict"):
        read_tensors(tmp_path / "list.pt")
