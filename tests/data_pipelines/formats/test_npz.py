import hashlib
import io
import zipfile

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from tests.scan_tree import chest_hu


def test_the_array_ct_or_the_only_one_is_read(tmp_path):
    np.savez(tmp_path / "two.npz", ct=chest_hu(), other=np.zeros(3))
    np.savez_compressed(tmp_path / "one.npz", volume=np.asfortranarray(chest_hu()))
    for name in ("two.npz", "one.npz"):
        scan = read_scan(tmp_path / name)
        np.testing.assert_array_equal(scan.voxels, chest_hu())
        assert scan.sha256 == hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
        assert not scan.affines


def claiming(shape):
    """An archive whose array says that it is of this shape, and holds eight bytes."""
    array = io.BytesIO()
    header = {"descr": "<i2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(array, header)
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as archive:
        archive.writestr("ct.npy", array.getvalue() + bytes(8))
    return content.getvalue()


def saved(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (claiming((10**5, 10**5, 10**4)), "implausible shape"),
        (claiming((10**3, 10**3, 10**3)), "in .* bytes"),
        (saved(a=np.zeros((2, 2, 2)), b=np.zeros(2)), "no array 'ct'; the arrays are a, b"),
        (saved(ct=np.zeros((2, 2))), "expected one 3-D volume"),
        (saved(ct=np.array([[["a"]]])), "expected one 3-D volume"),
        (saved(ct=np.array([[[{}]]], object)), "expected one 3-D volume"),
        (saved(ct=chest_hu())[:-40], "damaged or not an .npz"),
        (b"", "not a scan but an empty file"),
    ],
)
def test_unusable_archive_is_an_input_error(tmp_path, content, cause):
    (tmp_path / "scan.npz").write_bytes(content)
    with pytest.raises(InputError, match=f"scan.npz: .*{cause}"):
        read_scan(tmp_path / "scan.npz")


def test_missing_file_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_scan(tmp_path / "scan.npz")
