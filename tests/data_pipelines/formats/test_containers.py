"""One chest in every container: NIfTI-1 and -2, pairs, Analyze, NRRD and MetaImage."""

import hashlib
import re
import sys

import nibabel as nib
import numpy as np
import pytest
import SimpleITK as sitk

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from data_pipelines.geometry import orientation_of
from data_pipelines.resample import Geometry
from data_pipelines.shard_tasks import prepare_scan
from data_pipelines.sources.case import CaseRecord
from tests.scan_tree import chest_hu

SPACING = (6.0, 7.0, 9.0)
LPS = np.array([[-6.0, 0, 0, 50], [0, -7, 0, 60], [0, 0, 9, -70], [0, 0, 0, 1]])
GEOMETRY = Geometry(shape=(12, 18, 18), spacing=(9.0, 7.0, 7.0))
NIFTI = {
    "one.nii": nib.Nifti1Image,
    "one.nii.gz": nib.Nifti1Image,
    "two.nii.gz": nib.Nifti2Image,
    "pair.hdr": nib.Nifti1Pair,
    "pair_gz.img.gz": nib.Nifti1Pair,
    "pair_2.hdr": nib.nifti2.Nifti2Pair,
}
DIRECTIONS = "space directions: (6,0,0) (0,7,0) (0,0,9)"
ITK = ("scan.nrrd", "scan.nhdr", "scan.mha", "scan.mhd")


def itk_image(axes="LPS"):
    image = sitk.GetImageFromArray(chest_hu().T)
    image.SetSpacing(SPACING)
    image.SetOrigin((-50.0, -60.0, -70.0))
    return sitk.DICOMOrient(image, axes)


def write(folder, name, axes="LPS"):
    path = folder / name
    if name in ITK:
        sitk.WriteImage(itk_image(axes), path, useCompression=True)
        return path
    start, end = (nib.orientations.axcodes2ornt(letters) for letters in ("LPS", axes))
    image = NIFTI[name](chest_hu(), LPS)
    nib.save(image.as_reoriented(nib.orientations.ornt_transform(start, end)), path)
    return path


def prepare(path, **claims):
    return prepare_scan(CaseRecord("a", "a", "a", (path,), **claims), geometry=GEOMETRY)


@pytest.mark.parametrize("axes", ["LPS", "RAS", "SAR", "PIR"])
@pytest.mark.parametrize("name", [*NIFTI, *ITK])
def test_every_container_gives_the_same_volume(tmp_path, name, axes):
    expected = prepare(write(tmp_path, "one.nii")).volume
    prepared = prepare(write(tmp_path, name, axes))
    np.testing.assert_array_equal(prepared.volume, expected)
    assert (prepared.oriented.axes, prepared.oriented.orientation) == ("header", axes)
    assert prepared.oriented.spacing_xyz == SPACING
    assert not [note for note in prepared.notes if "extent" not in note]


@pytest.mark.parametrize("name", ["two.nii.gz", "scan.nrrd", "scan.mha"])
def test_content_counts_and_not_the_name(tmp_path, name):
    path = write(tmp_path, name)
    expected = read_scan(path).voxels
    for suffix in (".nii.gz", ".dcm", ".npz", ""):
        path = path.rename(tmp_path / f"scan{suffix}")
        np.testing.assert_array_equal(read_scan(path).voxels, expected)


@pytest.mark.parametrize("other", ["pair.img", "pair_gz.hdr.gz", "pair_2.img"])
def test_either_file_of_a_pair(tmp_path, other):
    for name in NIFTI:
        write(tmp_path, name)
    scan = read_scan(tmp_path / other)
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    stem, _, rest = other.partition(".")
    both = [
        (tmp_path / f"{stem}.{kind}").read_bytes()
        for kind in (rest.replace("img", "hdr"), rest.replace("hdr", "img"))
    ]
    assert scan.sha256 == hashlib.sha256(b"".join(both)).hexdigest()


@pytest.mark.parametrize("name", ["scan.nhdr", "scan.mhd"])
def test_sha256_covers_the_file_with_the_voxels(tmp_path, name):
    path = write(tmp_path, name)
    (data,) = (file for file in tmp_path.iterdir() if file != path)
    both = path.read_bytes() + data.read_bytes()
    assert read_scan(path).sha256 == hashlib.sha256(both).hexdigest()


def test_analyze_has_no_orientation_and_says_so(tmp_path):
    nib.save(nib.AnalyzeImage(chest_hu(), LPS), tmp_path / "scan.img")
    prepared = prepare(tmp_path / "scan.img")
    assert (prepared.oriented.axes, prepared.oriented.spacing_xyz) == ("stored", SPACING)
    assert "orientation assumed (" in prepared.notes[0]
    claimed = prepare(tmp_path / "scan.hdr", axes="LAS")
    np.testing.assert_array_equal(claimed.oriented.voxels, chest_hu()[:, ::-1])


@pytest.mark.parametrize(
    ("header", "spacing"),
    [
        ("spacings: 6 7 9", SPACING),
        (f"space: 3D-right-handed\n{DIRECTIONS}", SPACING),  # not said of what
        ("spacings: 6 7 nan", None),
        ("", None),
    ],
)
def test_nrrd_without_axes_or_spacing(tmp_path, header, spacing):
    size = "x".join(map(str, chest_hu().shape)).replace("x", " ")
    fields = f"type: short\ndimension: 3\nsizes: {size}\nendian: little\nencoding: raw\n{header}"
    text = "\n".join(line for line in ("NRRD0004", *fields.splitlines()) if line)
    path = tmp_path / "scan.nrrd"
    path.write_bytes(f"{text}\n\n".encode() + chest_hu().tobytes(order="F"))
    if spacing is None:
        with pytest.raises(InputError, match="no voxel spacing"):
            prepare(path)
    else:
        oriented = prepare(path).oriented
        assert (oriented.axes, oriented.spacing_xyz) == ("stored", spacing)
        assert "orientation assumed (" in oriented.notes[0]


def test_nrrd_with_a_list_of_one_value(tmp_path):
    path = write(tmp_path, "scan.nrrd")
    header, voxels = path.read_bytes().split(b"\n\n", 1)
    for old, new in {"dimension: 3": "dimension: 4", "sizes: ": "sizes: 1 "}.items():
        header = header.replace(old.encode(), new.encode())
    header = re.sub(rb"(space directions:|kinds:)", rb"\1 none", header)
    path.write_bytes(header.replace(b"kinds: none", b"kinds: list") + b"\n\n" + voxels)
    scan = read_scan(path)
    np.testing.assert_array_equal(scan.voxels, chest_hu())
    assert scan.spacing_xyz == SPACING and "NRRD" in scan.affines


def test_pointer_in_place_of_the_voxels_is_named(tmp_path):
    path = tmp_path / "scan.mhd"
    sitk.WriteImage(itk_image(), path)
    path.with_suffix(".raw").write_text("version https://git-lfs.github.com/spec/v1")
    with pytest.raises(InputError, match="scan.raw is a Git LFS pointer"):
        read_scan(path)


@pytest.mark.parametrize("suffix", [".nrrd", ".mha"])
def test_a_millimeter_is_a_size_if_the_header_states_it(tmp_path, suffix):
    image = itk_image("RAS")
    image.SetSpacing((1.0, 1.0, 1.0))
    sitk.WriteImage(image, tmp_path / f"scan{suffix}")
    scan = read_scan(tmp_path / f"scan{suffix}")
    (affine,) = scan.affines.values()
    assert scan.spacing_xyz == (1, 1, 1) and orientation_of(affine) == "RAS"


def test_header_that_names_two_files_is_refused(tmp_path):
    """As SimpleITK might take the other one."""
    path = write(tmp_path, "scan.mha")
    path.write_bytes(b"Comment = ElementDataFile = ../secret\n" + path.read_bytes())
    with pytest.raises(InputError, match="expected one file beside the header"):
        read_scan(path)


@pytest.mark.parametrize("name", ["../scan.raw", "/etc/hostname", "LIST", "scan_%03d.raw 1 9 1"])
def test_voxels_elsewhere_are_refused(tmp_path, name):
    sitk.WriteImage(itk_image(), tmp_path / "scan.nhdr")
    sitk.WriteImage(itk_image(), tmp_path / "scan.mhd")
    for path in (tmp_path / "scan.nhdr", tmp_path / "scan.mhd"):
        path.write_text(path.read_text().replace("scan.raw", name))
        with pytest.raises(InputError, match="expected one file beside the header"):
            read_scan(path)


@pytest.mark.parametrize("name", ITK)
def test_damaged_voxels_are_an_input_error(tmp_path, name):
    """SimpleITK itself ignores the checksums of compressed voxels."""
    write(tmp_path, name)
    data = max(tmp_path.iterdir(), key=lambda path: path.stat().st_size)
    content = data.read_bytes()
    for damaged in (content[:-100], content[:-500] + b"damage" + content[-494:]):
        data.write_bytes(damaged)
        with pytest.raises(InputError, match=f"{name}: damaged"):
            read_scan(tmp_path / name)
    if data.name != name:
        data.unlink()
        with pytest.raises(InputError, match=f"no {data.name} beside"):
            read_scan(tmp_path / name)


@pytest.mark.parametrize(
    ("name", "field"), [("scan.mha", b"NDims = 3"), ("scan.nrrd", b"dimension: 3")]
)
def test_countless_dimensions_are_refused_and_not_counted(tmp_path, name, field):
    """SimpleITK would not return."""
    path = write(tmp_path, name)
    content = path.read_bytes()
    assert content.count(field) == 1
    path.write_bytes(content.replace(field, field + b"997177124023"))
    with pytest.raises(InputError, match="3997177124023 dimensions, expected 3"):
        read_scan(path)


def test_image_without_its_header_names_the_header(tmp_path):
    (tmp_path / "scan.img").write_bytes(bytes(5000))
    with pytest.raises(InputError, match="scan.hdr: no such file"):
        read_scan(tmp_path / "scan.img")
    write(tmp_path, "pair.hdr").rename(tmp_path / "pair.nii")
    with pytest.raises(InputError, match="pair.nii.*the header of a pair"):
        read_scan(tmp_path / "pair.nii")


def test_without_simpleitk_one_line_says_what_to_install(tmp_path, monkeypatch):
    path = write(tmp_path, "scan.nrrd")
    monkeypatch.setitem(sys.modules, "SimpleITK", None)
    with pytest.raises(InputError, match=r"scan.nrrd: NRRD.*pip install 'ctclip-jax\[formats\]'"):
        read_scan(path)


@pytest.mark.parametrize("count", [1, 3])
def test_other_arrays_are_refused(tmp_path, count):
    image = itk_image()
    image = image[:, :, 0] if count == 1 else sitk.Compose([image] * count)
    sitk.WriteImage(image, tmp_path / "scan.mha")
    with pytest.raises(InputError, match="expected one 3-D volume"):
        read_scan(tmp_path / "scan.mha")
