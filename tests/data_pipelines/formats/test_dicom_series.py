"""DICOM as it comes: discs, zips, odd files, duplicates, and the choice among several series."""

import gzip
import io
import shutil
import zipfile
from collections.abc import Sequence
from pathlib import Path

import nibabel as nib
import numpy as np
import pydicom
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydicom.dataset import Dataset
from pydicom.uid import (
    RTStructureSetStorage,
    SecondaryCaptureImageStorage,
    XRayRadiationDoseSRStorage,
)

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from tests.dicom_series import chest_slices, name_of, store, write
from tests.scan_tree import chest_hu

SPACING = (10.0, 10.0, 20.0)  # a chest of 240 mm


def series(uid: str, **tags) -> list[Dataset]:
    """The chest as a series of a study, with these elements in all slices."""
    slices = chest_slices(series=uid, spacing=SPACING)
    for ct in slices:
        ct.StudyInstanceUID, ct.PatientID = "1.1", "P1"
        for name, value in tags.items():
            setattr(ct, name, value)
    return slices


def thinned(slices: Sequence[Dataset], step: int) -> list[Dataset]:
    return list(slices)[::step]


def marked(slices: list[Dataset], hu: int) -> list[Dataset]:
    """With one voxel by which the series is recognized."""
    for ct in slices:
        pixels = ct.pixel_array.copy()
        pixels[9, 9] = hu
        store(ct, pixels)
    return slices


def write_disc(folder: Path, *series_of_disc: list[Dataset]) -> Path:
    """As a hospital burns it: an index, a viewer, a folder per series, names without suffix."""
    for k, slices in enumerate(series_of_disc):
        write(folder / "DICOM" / "ST00000" / f"SE{k:05d}", slices)
    (folder / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    (folder / "README.TXT").write_text("A viewer is on this disc.")
    (folder / "VIEWER").mkdir()
    (folder / "VIEWER" / "run.exe").write_bytes(b"MZ" + bytes(300))
    return folder


def write_zip(path: Path, folder: Path) -> Path:
    return Path(shutil.make_archive(str(path.with_suffix("")), "zip", folder))


def other_objects() -> list[Dataset]:
    """A localizer, a dose report, a screenshot and an RT structure set of the study."""
    (localizer,) = series("1.7", ImageType=["ORIGINAL", "PRIMARY", "LOCALIZER"])[:1]
    objects = [localizer]
    for k, (sop_class, modality) in enumerate(
        [
            (XRayRadiationDoseSRStorage, "SR"),
            (SecondaryCaptureImageStorage, "CT"),
            (RTStructureSetStorage, "RTSTRUCT"),
        ]
    ):
        (other,) = series(f"1.8.{k}", SOPClassUID=sop_class, Modality=modality)[:1]
        del other.ImagePositionPatient, other.ImageOrientationPatient, other.PixelSpacing
        if modality != "CT":
            del other.PixelData
        objects.append(other)
    return objects


def test_disc_and_its_zip_are_read(tmp_path):
    disc = write_disc(tmp_path / "disc", chest_slices())
    archive = write_zip(tmp_path / "disc.zip", disc)
    paths = (disc, archive, disc / "DICOMDIR", disc / "DICOM")
    for scan in map(read_scan, paths):
        np.testing.assert_array_equal(scan.voxels, chest_hu())
        assert not scan.notes
    (disc / "DICOMDIR").write_bytes(b"torn")  # the folder counts, not its index
    np.testing.assert_array_equal(read_scan(disc / "DICOMDIR").voxels, chest_hu())


def test_links_in_a_tree_do_not_lead_around(tmp_path):
    disc = write_disc(tmp_path / "disc", chest_slices())
    (disc / "DICOM" / "again").symlink_to(disc)
    assert not read_scan(disc).notes


@pytest.mark.parametrize("implicit", [True, False])
def test_files_without_preamble_or_meta_information(tmp_path, implicit):
    (tmp_path / "series").mkdir()
    for k, ct in enumerate(chest_slices()):
        del ct.file_meta
        with (tmp_path / "series" / name_of(k)).open("wb") as file:
            pydicom.dcmwrite(file, ct, implicit_vr=implicit, little_endian=True)
    (tmp_path / "series" / "notes").write_bytes(b"\x08\x00 not DICOM at all")
    np.testing.assert_array_equal(read_scan(tmp_path / "series").voxels, chest_hu())


ODD = {
    "text": lambda ct: ct.add_new("PixelSpacing", "UT", "6.0\\5.0"),
    "decimal commas": lambda ct: (
        ct.add_new("PixelSpacing", "LO", ["6,0", "5,00"]),
        ct.add_new("RescaleSlope", "LO", "1,0"),
        ct.add_new(
            "ImagePositionPatient",
            "LO",
            [str(n).replace(".", ",") for n in ct.ImagePositionPatient],
        ),
    ),
    "binary": lambda ct: ct.add_new("PixelSpacing", "FD", [6.0, 5.0]),
    "unknown": lambda ct: ct.add_new("PixelSpacing", "UN", b"6.0\\5.0 "),
    "number of no series": lambda ct: ct.add_new("SeriesNumber", "LO", "two"),
}


@pytest.mark.parametrize("case", ODD)
def test_odd_value_representations(tmp_path, case):
    slices = chest_slices()
    for ct in slices:
        ODD[case](ct)
    scan = read_scan(write(tmp_path / "series", slices))
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    assert scan.spacing_xyz == (5, 6, 8)


def test_duplicates_count_once(tmp_path):
    folder = write(tmp_path / "series", chest_slices())
    shutil.copy(folder / name_of(3), folder / "copy")
    again = chest_slices()[7]
    again.SOPInstanceUID, again.InstanceNumber = "1.2.99", 99  # other bytes, the same pixels
    write(folder / "again", [again])
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    assert scan.notes == ("duplicate slices, counted once (2)",)


@pytest.mark.parametrize("case", ["pixels", "scale"])
def test_two_acquisitions_in_a_series_are_refused(tmp_path, case):
    folder = write(tmp_path / "series", chest_slices())
    again = chest_slices()
    for ct in again:
        ct.AcquisitionNumber = 2
        if case == "pixels":
            store(ct, ct.pixel_array + np.int16(1))
        else:
            ct.RescaleIntercept = 1
    write(folder / "again", again)
    with pytest.raises(InputError, match=r"same position.*AcquisitionNumber \? and 2.*choose"):
        read_scan(folder)


def test_acquisitions_that_take_turns_are_refused(tmp_path):
    """Slices of two phases, each between two of the other, would be a volume of stripes."""
    slices = chest_slices()
    for k, ct in enumerate(slices):
        ct.AcquisitionNumber = 1 + k // 4  # a step of the table each
    assert read_scan(write(tmp_path / "series", slices)).voxels.shape == chest_hu().shape
    for k, ct in enumerate(slices):
        ct.AcquisitionNumber = 1 + k % 2
    with pytest.raises(InputError, match="series: slices take turns in AcquisitionNumber"):
        read_scan(write(tmp_path / "series", slices))


def test_slices_without_positions_of_their_own_are_refused(tmp_path):
    slices = chest_slices()
    for ct in slices:
        ct.ImagePositionPatient = [0, 0, 0]  # as some anonymizers do
    with pytest.raises(InputError, match=f"{len(slices)} slices at one position are no volume"):
        read_scan(write(tmp_path / "series", slices))


@pytest.mark.parametrize("suffix", [".nii", ".zip", ".dcm.gz"])
def test_folder_without_dicom_says_what_is_in_it(tmp_path, suffix):
    contents = {
        ".nii": (nib.Nifti1Image(chest_hu(), np.eye(4)).to_bytes(), "NIfTI-1"),
        ".zip": (b"PK\x03\x04", "a zip archive"),
        ".dcm.gz": (gzip.compress(bytes(128) + b"DICM"), "DICOM in a gzip file"),
    }
    content, description = contents[suffix]
    (tmp_path / f"scan{suffix}").write_bytes(content)
    with pytest.raises(InputError, match=rf"no DICOM files \(scan{suffix} is {description}\)$"):
        read_scan(tmp_path)


def test_other_objects_of_a_study_are_left_out_and_told(tmp_path):
    disc = write_disc(tmp_path / "disc", series("1.2"), *([ct] for ct in other_objects()))
    scan = read_scan(disc)
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    assert scan.notes == (
        "DICOM files left out (1 RT Structure Set, 1 Secondary Capture Image, 1 X-Ray Radiation"
        " Dose SR, 1 localizer)",
    )


def test_reformat_within_a_series_is_left_out_and_told(tmp_path):
    slices = chest_slices()
    (view,) = chest_slices("LIP")[:1]
    folder = write(tmp_path / "series", slices)
    write(folder, [view], prefix="A")
    scan = read_scan(folder)
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    assert scan.notes == ("DICOM files left out (1 slice of another plane)",)


def test_folder_without_ct_is_refused(tmp_path):
    with pytest.raises(InputError, match="disc: no CT series; got 1 RT Structure Set"):
        read_scan(write_disc(tmp_path / "disc", *([ct] for ct in other_objects())))


def test_slices_in_a_secondary_capture_class_are_read(tmp_path):
    folder = write(tmp_path / "series", series("1.2", SOPClassUID=SecondaryCaptureImageStorage))
    np.testing.assert_array_equal(read_scan(folder).voxels, chest_hu())


def coronal(uid: str) -> list[Dataset]:
    slices = chest_slices("LIP", series=uid, spacing=SPACING)
    for ct in slices:
        ct.StudyInstanceUID, ct.PatientID = "1.1", "P1"
    return slices


RULE = {  # the series to read, 9, against another that its UID alone would put first
    "axial": (series("9"), coronal("1")),
    "HU": (series("9"), series("1", RescaleType="MGML")),
    "no projection": (series("9"), series("1", ImageType=["DERIVED", "PRIMARY", "MIP"])),
    "chest": (thinned(series("9"), 2), series("1")[:5]),
    "thin": (series("9"), thinned(series("1"), 2)),
    "soft": (series("9", ConvolutionKernel="B30f"), series("1", ConvolutionKernel="B70f")),
    "soft of GE": (
        series("9", ConvolutionKernel="STANDARD"),
        series("1", ConvolutionKernel="LUNG"),
    ),
    "soft of Canon": (series("9", ConvolutionKernel="FC08"), series("1", ConvolutionKernel="FC52")),
    "soft of Philips": (series("9", ConvolutionKernel="B"), series("1", ConvolutionKernel="YC")),
    "iterative": (
        series("9", ConvolutionKernel=["Br40f", "3"]),
        series("1", ConvolutionKernel=["Bl64f", "3"]),
    ),
    "UID": (series("9"), series("91")),
    "CT": (series("9"), series("1", Modality="PT")),
}


@pytest.mark.parametrize("case", RULE)
def test_rule_of_choice(tmp_path, case):
    best, other = RULE[case]
    disc = write_disc(tmp_path / "disc", other, marked(best, 777))
    scan = read_scan(disc)
    assert scan.voxels[9, 9].tolist() == [777] * len(best)
    if case != "CT":
        kernel = best[0].get("ConvolutionKernel", "no kernel")
        kernel = kernel if isinstance(kernel, str) else "\\".join(kernel)
        (note,) = scan.notes
        assert note.startswith(
            f"one of 2 series (read: series ?: no description, {kernel}, {len(best)} slices, 9 |"
        )
        assert f"{len(other)} slices, {other[0].SeriesInstanceUID})" in note


def test_series_by_name(tmp_path):
    disc = write_disc(
        tmp_path / "disc",
        marked(series("1.2", SeriesNumber=2, SeriesDescription="Thorax, soft; 1.0"), 701),
        marked(series("1.3", SeriesNumber=3, SeriesDescription="Lung 1.0"), 702),
        marked(coronal("1.4"), 703),
    )
    archive = write_zip(tmp_path / "disc.zip", disc)
    for path in (disc, archive):
        for name, hu in {"1.3": 702, "3": 702, "lung 1.0": 702, "2": 701, "1.4": 703}.items():
            scan = read_scan(path, series=name)
            assert (scan.voxels == hu).any(), name
            assert (
                scan.notes[0].startswith("one of 3 series (read: series ")
                and ";" not in scan.notes[0]
            )
    with pytest.raises(InputError, match=r"no series '7'; there are series 2: Thorax.*1\.4"):
        read_scan(archive, series="7")


def test_series_by_a_description_in_its_character_set(tmp_path):
    slices = series("1.3", SpecificCharacterSet="ISO_IR 144", SeriesDescription="Лёгкие 1.0")
    disc = write_disc(tmp_path / "disc", series("1.2"), marked(slices, 702))
    assert (read_scan(disc, series="лёгкие 1.0").voxels == 702).any()


def test_other_patients_in_a_folder_are_refused_unless_named(tmp_path):
    disc = write_disc(tmp_path / "disc", series("1.2"), marked(series("1.3", PatientID="P2"), 702))
    with pytest.raises(
        InputError, match="several patients; choose one with --series=UID.*1.2 .*1.3"
    ):
        read_scan(disc)
    assert (read_scan(disc, series="1.3").voxels == 702).any()


def test_damaged_series_is_refused_only_if_it_is_chosen(tmp_path):
    broken = series("1.3", SeriesNumber=3)
    del broken[4].PixelSpacing
    disc = write_disc(tmp_path / "disc", series("1.2"), thinned(broken, 2))
    np.testing.assert_array_equal(read_scan(disc).voxels, chest_hu())
    with pytest.raises(InputError, match="no PixelSpacing"):
        read_scan(disc, series="3")


def test_slice_without_the_name_of_its_series_is_refused(tmp_path):
    slices = chest_slices()
    del slices[11].SeriesInstanceUID, slices[11].ImagePositionPatient
    with pytest.raises(InputError, match=f"{name_of(11)}: no ImagePositionPatient"):
        read_scan(write(tmp_path / "series", slices))


MIXTURE = st.lists(
    st.tuples(
        st.sampled_from(["LPS", "LPI", "LIP", "PSL"]),  # the last two are not axial
        st.sampled_from([1, 2, 3]),
        st.sampled_from(["B30f", "B70f", ""]),
        st.booleans(),
    ),
    min_size=1,
    max_size=4,
)


@settings(max_examples=8, deadline=None)
@given(mixture=MIXTURE, others=st.sets(st.integers(0, 3)), order=st.randoms())
def test_any_mixture_gives_the_same_choice_in_any_order(tmp_path_factory, mixture, others, order):
    """One series is read as if it were alone, an axial one if possible; notes list all others."""
    stacks = []
    for k, (axes, step, kernel, is_projection) in enumerate(mixture):
        slices = thinned(chest_slices(axes, series=f"1.{k}", spacing=SPACING), step)
        for ct in slices:
            ct.StudyInstanceUID, ct.ConvolutionKernel = "1.1", kernel
            ct.ImageType = ["DERIVED", "PRIMARY", "MIP"] if is_projection else ["ORIGINAL"]
        stacks.append(slices)
    extra = [[other_objects()[k]] for k in sorted(others)]
    shuffled = [*stacks, *extra]
    order.shuffle(shuffled)
    scans = [
        read_scan(write_disc(tmp_path_factory.mktemp("mixture"), *disc))
        for disc in ([*stacks, *extra], shuffled)
    ]
    assert scans[0].sha256 == scans[1].sha256 and scans[0].notes == scans[1].notes
    alone = [read_scan(write(tmp_path_factory.mktemp("alone"), stack)).sha256 for stack in stacks]
    chosen = mixture[alone.index(scans[0].sha256)]
    axial = [one for one in mixture if one[0] in ("LPS", "LPI")]
    assert chosen in (axial or mixture)
    notes = " ".join(scans[0].notes)
    assert (f"one of {len(mixture)} series" in notes) == (len(mixture) > 1)
    assert ("DICOM files left out" in notes) == bool(others)


def test_zip_errors_name_the_zip(tmp_path):
    (tmp_path / "none.zip").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="^.*none.zip: damaged or no zip file"):
        read_scan(tmp_path / "none.zip")
    with pytest.raises(InputError, match="absent.zip: no such file"):
        read_scan(tmp_path / "absent.zip")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("../../a.dcm", b"none")
    (tmp_path / "bad.zip").write_bytes(buffer.getvalue())
    with pytest.raises(InputError, match="^.*/bad.zip/0_a.dcm: not DICOM but text"):
        read_scan(tmp_path / "bad.zip")
