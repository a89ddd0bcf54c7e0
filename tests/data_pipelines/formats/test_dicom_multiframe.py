import sys

import numpy as np
import pytest
from highdicom.legacy import LegacyConvertedEnhancedCTImage
from pydicom.dataset import Dataset

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from tests.dicom_series import chest_slices, enhanced, store, write
from tests.scan_tree import chest_hu


def save(folder, ct: Dataset, name: str = "IM0"):
    folder.mkdir(exist_ok=True)
    ct.save_as(folder / name, enforce_file_format=True)
    return folder / name


@pytest.mark.parametrize("name", ["IM0", "scan.dcm"])
@pytest.mark.parametrize("axes", ["LPS", "LPI", "RAS", "LIP"])
def test_enhanced_ct_is_the_volume_of_its_slices(tmp_path, axes, name):
    slices = chest_slices(axes)
    classic = read_scan(write(tmp_path / "series", slices))
    path = save(tmp_path / "enhanced", enhanced(slices[::-1]), name)
    for scan in (read_scan(path), read_scan(path.parent)):
        np.testing.assert_array_equal(scan.voxels, classic.voxels)
        np.testing.assert_allclose(scan.affines["DICOM"], classic.affines["DICOM"], atol=1e-6)
        assert scan.spacing_xyz == pytest.approx(classic.spacing_xyz)
        assert scan.voxels.dtype == np.float32 and len(scan.sha256) == 64 and not scan.notes


def test_legacy_converted_enhanced_ct(tmp_path):
    slices = chest_slices()
    for ct in slices:
        ct.StudyInstanceUID, ct.FrameOfReferenceUID, ct.PatientID = "1.1", "1.9", "P"
        ct.PatientName, ct.PatientBirthDate, ct.PatientSex, ct.StudyID = "P", "", "", ""
        ct.StudyDate, ct.StudyTime, ct.AccessionNumber = "20200101", "000000", ""
        ct.ReferringPhysicianName, ct.Manufacturer = "", "x"
        ct.file_meta.MediaStorageSOPClassUID = ct.SOPClassUID
        ct.file_meta.MediaStorageSOPInstanceUID = ct.SOPInstanceUID
        ct.InstanceNumber = slices.index(ct) + 1
    legacy = LegacyConvertedEnhancedCTImage(slices, "1.2.3", 1, "1.2.4", 1)
    scan = read_scan(save(tmp_path / "legacy", legacy))
    np.testing.assert_array_equal(scan.voxels, chest_hu())


def test_each_frame_has_its_own_scale(tmp_path):
    slices = chest_slices()
    for k, ct in enumerate(slices):
        ct.RescaleSlope, ct.RescaleIntercept = 0.5, -10 * k
        store(ct, 2 * (ct.pixel_array + 10 * k))
    scan = read_scan(save(tmp_path / "enhanced", enhanced(slices)))
    np.testing.assert_array_equal(scan.voxels, chest_hu())


def test_files_of_one_frame_are_slices(tmp_path):
    for k, ct in enumerate(chest_slices()):
        ct.RescaleIntercept = -100
        store(ct, ct.pixel_array + np.int16(100))
        save(tmp_path / "series", enhanced([ct]), f"IM{k}")
    scan = read_scan(tmp_path / "series")
    np.testing.assert_array_equal(scan.voxels + scan.intercept, chest_hu())


def test_padding_of_frames_is_air(tmp_path):
    slices = chest_slices()
    for ct in slices:
        pixels = ct.pixel_array.copy()
        pixels[:, 0] = -2000
        store(ct, pixels)
    ct = enhanced(slices)
    ct.add_new("PixelPaddingValue", "US", 63536)
    scan = read_scan(save(tmp_path / "enhanced", ct))
    assert (scan.voxels[0] == -1000).all()
    np.testing.assert_array_equal(scan.voxels[1:], chest_hu()[1:])
    assert scan.notes == ("padding read as air (PixelPaddingValue 63536, 5.0% of the voxels)",)


def test_frames_without_scale_are_refused(tmp_path):
    slices = chest_slices()
    del slices[3].RescaleSlope, slices[3].RescaleIntercept
    with pytest.raises(InputError, match="frame 4 has no RescaleSlope"):
        read_scan(save(tmp_path / "enhanced", enhanced(slices)))


def test_missing_and_doubled_frames_are_refused(tmp_path):
    slices = chest_slices()
    for frames in (slices[:3] + slices[4:], slices + slices):
        with pytest.raises(InputError, match="IM0: frames are not the evenly spaced slices"):
            read_scan(save(tmp_path / "enhanced", enhanced(frames)))


def test_part_of_a_concatenation_is_refused(tmp_path):
    ct = enhanced(chest_slices())
    ct.InConcatenationTotalNumber = 2
    with pytest.raises(InputError, match="concatenation"):
        read_scan(save(tmp_path / "enhanced", ct))


def test_without_highdicom_one_line_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "highdicom", None)
    path = save(tmp_path / "enhanced", enhanced(chest_slices()))
    with pytest.raises(InputError, match=r"IM0: Enhanced CT.*pip install 'ctclip-jax\[formats\]'"):
        read_scan(path)
