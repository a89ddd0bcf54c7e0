import hashlib

import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.uid import ExplicitVRBigEndian, JPEGLosslessSV1, RLELossless

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from data_pipelines.formats.dicom import read_dicom
from data_pipelines.hounsfield import resolve_hu_and_geometry
from tests.dicom_series import SPACING_LPS, chest_slices, name_of, store, write
from tests.scan_tree import chest_hu


@pytest.mark.parametrize("axes", ["LPS", "LPI", "RPI", "RAS", "PSL", "AIR", "LIP"])
def test_every_orientation_is_resolved_to_the_same_chest(tmp_path, axes):
    chest = resolve_hu_and_geometry(read_scan(write(tmp_path / "series", chest_slices(axes))))
    assert (chest.values, chest.axes, chest.spacing_source) == ("stored", "header", "header")
    assert chest.spacing_xyz == SPACING_LPS and chest.voxels.dtype == np.int16
    np.testing.assert_array_equal(chest.voxels, chest_hu())


def test_axes_are_column_row_and_slice_by_position(tmp_path):
    scan = read_dicom(write(tmp_path / "series", chest_slices()[::-1]))
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    expected = [[-5, 0, 0, 50], [0, -6, 0, 60], [0, 0, 8, 70], [0, 0, 0, 1]]
    np.testing.assert_allclose(scan.affines["DICOM"], expected)
    assert scan.spacing_xyz == SPACING_LPS
    assert scan.voxels[:, :, 3].T.flags.c_contiguous


def test_tilted_gantry_is_in_the_affine(tmp_path):
    slices = chest_slices()
    for k, ct in enumerate(slices):
        ct.ImagePositionPatient[1] += 2 * k
    affine = read_dicom(write(tmp_path / "series", slices)).affines["DICOM"]
    np.testing.assert_allclose(affine[:3, 2], [0, -2, 8])


def test_common_scale_is_not_applied(tmp_path):
    slices = chest_slices()
    for ct in slices:
        ct.RescaleIntercept = -2048
        store(ct, (ct.pixel_array + 2048).astype(np.uint16))
    scan = read_dicom(write(tmp_path / "series", slices))
    assert (scan.slope, scan.intercept, scan.voxels.dtype) == (1, -2048, np.uint16)
    np.testing.assert_array_equal(resolve_hu_and_geometry(scan).voxels, chest_hu() + 2048)


def test_missing_scale_is_identity(tmp_path):
    slices = chest_slices()
    for ct in slices:
        del ct.RescaleSlope, ct.RescaleIntercept, ct.Modality
    scan = read_dicom(write(tmp_path / "series", slices))
    assert (scan.slope, scan.intercept, scan.voxels.dtype) == (1, 0, np.int16)


def test_different_scales_are_applied(tmp_path):
    slices = chest_slices()
    for k, ct in enumerate(slices):
        ct.RescaleSlope, ct.RescaleIntercept = 0.5, -10 * k
        store(ct, 2 * (ct.pixel_array + 10 * k))
    scan = read_dicom(write(tmp_path / "series", slices))
    assert (scan.slope, scan.intercept, scan.voxels.dtype) == (1, 0, np.float32)
    np.testing.assert_array_equal(scan.voxels, chest_hu())


def test_different_pixel_types_are_one_volume(tmp_path):
    slices = chest_slices()
    store(slices[4], np.full((18, 20), 40_000, np.uint16))
    scan = read_dicom(write(tmp_path / "series", slices))
    expected = chest_hu().astype(np.float32)
    expected[:, :, 4] = 40_000
    np.testing.assert_array_equal(scan.voxels, expected)


@pytest.mark.parametrize("syntax", [RLELossless, ExplicitVRBigEndian])
def test_other_transfer_syntaxes(tmp_path, syntax):
    slices = chest_slices()
    for ct in slices:
        if syntax == RLELossless:
            ct.compress(RLELossless)
        else:
            ct.PixelData = ct.pixel_array.astype(">i2").tobytes()
            ct.file_meta.TransferSyntaxUID = syntax
    scan = read_dicom(write(tmp_path / "series", slices))
    assert scan.voxels.dtype.isnative
    np.testing.assert_array_equal(scan.voxels, chest_hu())


def test_sha256_is_of_the_file_digests_in_slice_order(tmp_path):
    slices = chest_slices()
    folder = write(tmp_path / "series", slices)
    files = [(folder / name_of(k)).read_bytes() for k in range(len(slices))]
    digests = "".join(hashlib.sha256(file).hexdigest() for file in files)
    before = read_dicom(folder).sha256
    assert before == hashlib.sha256(digests.encode()).hexdigest()
    slices[5].PatientID = "another"
    assert read_dicom(write(folder, slices)).sha256 != before


def test_other_files_are_ignored(tmp_path):
    folder = write(tmp_path / "series", chest_slices())
    dicom = (folder / name_of(0)).read_bytes()
    for name, content in {"DICOMDIR": dicom, ".hidden": dicom, "a.txt": b"x", "b": b""}.items():
        (folder / name).write_bytes(content)
    write(folder / "deeper", chest_slices())
    np.testing.assert_array_equal(read_dicom(folder).voxels, chest_hu())


def test_odd_values_are_not_logged(tmp_path, recwarn, caplog):
    slices = chest_slices()
    slices[0].PixelData += b"padding "
    folder = write(tmp_path / "series", slices)
    recwarn.clear()
    caplog.clear()
    read_dicom(folder)
    assert not recwarn.list and not caplog.records


def change(k: int, **tags):
    """An edit that sets tags of slice k, or deletes those that are None."""

    def edit(slices: list[Dataset]) -> None:
        for name, value in tags.items():
            if value is None:
                delattr(slices[k], name)
            else:
                setattr(slices[k], name, value)

    return edit


def compress(slices: list[Dataset]) -> None:
    slices[3].file_meta.TransferSyntaxUID = JPEGLosslessSV1
    slices[3].PixelData = pydicom.encaps.encapsulate([b"no JPEG!"])


def widen(slices: list[Dataset]) -> None:
    slices[3].Rows += 1
    store(slices[3], np.zeros((19, 20), np.int16))


REFUSED = {
    "no pixels": (change(3, PixelData=None), f"{name_of(3)}: unreadable"),
    "short pixels": (change(3, PixelData=b"12"), f"{name_of(3)}: unreadable"),
    "undecodable": (compress, f"{name_of(3)}: unreadable.*JPEG"),
    "no rows": (change(3, Rows=None), f"{name_of(3)}: unreadable.*Rows"),
    "two series": (change(3, SeriesInstanceUID="1.3"), "missing.*one of 2 series"),
    "size": (widen, f"{name_of(3)}: Rows or Columns differs"),
    "spacing": (change(3, PixelSpacing=[6, 6]), f"{name_of(3)}: PixelSpacing differs"),
    "turned": (
        change(3, ImageOrientationPatient=[-1, 0, 0, 0, -1, 0]),
        f"{name_of(3)}: ImageOrientationPatient differs",
    ),
    "no position": (change(3, ImagePositionPatient=None), "no ImagePositionPatient"),
    "empty position": (change(3, ImagePositionPatient=""), "no ImagePositionPatient"),
    "short position": (
        change(3, ImagePositionPatient=[1, 2]),
        "Position.*expected 3",
    ),
    "no orientation": (change(3, ImageOrientationPatient=None), "no ImageOrientationPatient"),
    "bad orientation": (change(3, ImageOrientationPatient=[0] * 6), "not two perpendicular"),
    "no spacing": (change(3, PixelSpacing=None), "no PixelSpacing"),
    "zero spacing": (change(3, PixelSpacing=[0, 5]), "PixelSpacing of 0 and 5 mm"),
    "MR": (change(3, Modality="MR"), "missing.*left out .1 MR image"),
    "localizer": (
        change(3, ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"]),
        "missing.*left out .1 localizer",
    ),
    "frames": (change(3, NumberOfFrames=2), f"{name_of(3)}: multi-frame"),
    "color": (
        change(3, SamplesPerPixel=3, PhotometricInterpretation="RGB"),
        "missing.*left out .1 color image",
    ),
    "torn text": (
        change(3, PhotometricInterpretation="RGB\n\nX"),
        "missing.*left out .1 color image",
    ),
    "palette": (
        change(3, PhotometricInterpretation="PALETTE COLOR"),
        "missing.*left out .1 color image",
    ),
    "twice": (change(3, ImagePositionPatient=[-50, -60, 86]), "at the same position"),
    "gap": (lambda slices: slices.pop(3), rf"0, 16.0\] mm after {name_of(2)}.*missing"),
    "uneven": (change(3, ImagePositionPatient=[-50, -60, 95]), f"after {name_of(2)}.*displaced"),
    "sideways": (change(3, ImagePositionPatient=[-49, -60, 94]), "displaced"),
    "one slice": (lambda slices: slices.__delitem__(slice(1, None)), "one slice is no volume"),
    "no slice": (lambda slices: slices.clear(), "no DICOM files"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_unusable_series_is_an_input_error(tmp_path, case):
    edit, reason = REFUSED[case]
    slices = chest_slices()
    edit(slices)
    with pytest.raises(InputError, match=reason) as refusal:
        read_dicom(write(tmp_path / "series", slices))
    assert str(refusal.value).startswith(str(tmp_path / "series"))
    assert len(str(refusal.value).splitlines()) == 1


@pytest.mark.parametrize("keep", [132, 141, 200, 400, 600, -200, -1])
def test_truncated_slice_is_an_input_error(tmp_path, keep):
    file = write(tmp_path / "series", chest_slices()) / name_of(3)
    file.write_bytes(file.read_bytes()[:keep])
    with pytest.raises(InputError, match=file.name):
        read_dicom(tmp_path / "series")


@pytest.mark.parametrize("content", [b"", b"hello"])
def test_damaged_dcm_file_is_an_input_error(tmp_path, content):
    file = write(tmp_path / "series", chest_slices()) / "last.dcm"
    file.write_bytes(content)
    with pytest.raises(InputError, match="last.dcm: unreadable"):
        read_dicom(tmp_path / "series")


def test_single_slice_is_an_input_error(tmp_path):
    write(tmp_path / "series", chest_slices())
    file = (tmp_path / "series" / name_of(0)).rename(tmp_path / "slice.dcm")
    with pytest.raises(InputError, match="slice.dcm: one slice is no volume"):
        read_scan(file)


@pytest.mark.parametrize("name", ["absent", "absent.dcm"])
def test_missing_path_is_an_input_error(tmp_path, name):
    with pytest.raises(InputError, match=f"{name}: no such file"):
        read_dicom(tmp_path / name)
