"""Contradicting affines, pixdim and tables: the credible claim wins, a note names the others."""

import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st

from data_pipelines.errors import InputError
from data_pipelines.formats import read_nifti
from data_pipelines.formats.stored import StoredVolume
from data_pipelines.geometry import (
    check_extent,
    is_spacing,
    orientation_of,
    resolve_geometry,
    to_lps,
)
from tests.data_pipelines.test_orientations import ORIENTATIONS

SPACING = (8.0, 9.0, 12.0)  # mm, x y z
LPS = np.array([[-8.0, 0, 0, 90], [0, -9.0, 0, 80], [0, 0, 12, -200], [0, 0, 0, 1]])
RAS = np.array([[8.0, 0, 0, -90], [0, 9, 0, -80], [0, 0, 12, -200], [0, 0, 0, 1]])
UNIT = LPS @ np.diag([1 / 8, 1 / 9, 1 / 12, 1])
MNI = np.array([[-2.0, 0, 0, 90], [0, 2, 0, -126], [0, 0, 2, -72], [0, 0, 0, 1]])
CHEST = np.arange(26 * 22 * 20, dtype=np.int16).reshape(26, 22, 20)


def resolve(affines, spacing_xyz=SPACING, **table):
    return resolve_geometry(StoredVolume(CHEST, 1, 0, affines, spacing_xyz), **table)


@pytest.mark.parametrize("sform", [UNIT, RAS @ np.diag([1 / 8, 1 / 9, 1 / 12, 1])])
def test_unit_vectors_give_the_axes_but_not_the_spacing(sform):
    found = resolve({"sform": sform})
    assert (found.axes, found.orientation) == ("header", orientation_of(sform))
    assert (found.spacing_source, found.spacing_xyz) == ("pixdim", SPACING)
    assert found.spacing_disputed and not found.orientation_disputed
    expected = "(pixdim 8 x 9 x 12 mm taken, sform 1 x 1 x 1 mm rejected: unit voxels)"
    assert found.notes == (f"spacing disputed {expected}",)
    np.testing.assert_allclose(nib.affines.voxel_sizes(found.affine), SPACING)
    np.testing.assert_array_equal(found.affine[:3, 3], sform[:3, 3])


@pytest.mark.parametrize("sform", [UNIT, MNI, np.eye(4), RAS @ np.diag([1.5, 1.5, 1.5, 1])])
def test_sound_qform_and_pixdim_beat_a_wrong_sform(sform):
    found = resolve({"sform": sform, "qform": LPS})
    assert (found.axes, found.orientation, found.spacing_xyz) == ("header", "LPS", SPACING)
    assert found.spacing_source == "header" and found.spacing_disputed
    np.testing.assert_array_equal(found.affine, LPS)


def test_sheared_affine_to_a_template_is_no_claim_and_no_tilted_gantry():
    sheared = LPS @ np.array([[1.0, 0.2, 0, 0], [0, 1, 0.1, 0], [0, 0, 1, 0], [0, 0, 0, 1]])
    found = resolve({"qform": LPS, "sform": sheared})
    assert (found.orientation, found.spacing_xyz) == ("LPS", SPACING)
    assert found.notes == ("sheared affine ignored (sform)",)
    with pytest.raises(InputError, match="tilted gantry"):
        resolve({"sform": sheared, "qform": LPS})


@pytest.mark.parametrize("degrees", [5, 25])
def test_oblique_axes_are_told(degrees):
    turn = np.eye(4)
    turn[:2, :2] = nib.eulerangles.euler2mat(z=math.radians(degrees))[:2, :2]
    found = resolve({"DICOM": turn @ LPS})
    assert found.orientation == "LPS"
    assert found.notes == (("oblique axes (25 degrees off)",) if degrees == 25 else ())


def test_identity_beside_pixdim_is_told():
    found = resolve({"sform": np.eye(4)})
    assert (found.axes, found.spacing_source) == ("stored", "pixdim") and found.spacing_disputed
    assert any("sform 1 x 1 x 1 mm rejected" in note for note in found.notes)
    assert not resolve({"sform": np.eye(4)}, (1.0, 1.0, 1.0), spacing=(12, 8, 9)).spacing_disputed


def test_sform_wins_over_a_qform_that_is_as_good():
    found = resolve({"sform": LPS, "qform": RAS})
    assert found.orientation == "LPS" and found.orientation_disputed and not found.spacing_disputed
    assert "sform LPS taken, qform RAS rejected: lower precedence" in found.notes[0]
    assert resolve({"sform": LPS, "qform": RAS}, axes="RAS").orientation == "RAS"


def test_header_that_contradicts_the_table_is_told():
    found = resolve({"sform": LPS, "qform": LPS}, axes="RAS", spacing=(5.0, 8.0, 9.0))
    assert (found.axes, found.orientation, found.spacing_xyz) == ("header", "LPS", SPACING)
    assert found.orientation_disputed and found.spacing_disputed
    assert "table RAS rejected: fewer claims agree" in found.notes[0]


@pytest.mark.parametrize("z", [0.0, -12.0, math.nan])
def test_pixdim_without_a_size_is_no_spacing(z):
    with pytest.raises(InputError, match=f"no voxel spacing: qform 8 x 9 x {z:g} mm"):
        resolve({"qform": LPS}, (8.0, 9.0, z))
    found = resolve({"qform": RAS}, (8.0, 9.0, z), spacing=(12.0, 8.0, 9.0))
    assert (found.orientation, found.spacing_source) == ("RAS", "table")
    assert resolve({"sform": LPS}, (8.0, 9.0, z)).spacing_xyz == SPACING


def test_stored_spacing_of_the_table_is_that_of_the_stored_axes():
    table = {"axes": "LIP", "spacing": (9.0, 8.0, 8.0), "stored_spacing": (8.0, 12.0, 9.0)}
    found = resolve({}, (1.0, 1.0, 1.0), **table)
    assert (found.axes, found.orientation, found.spacing_xyz) == ("table", "LIP", SPACING)


def test_a_whole_body_is_no_reason_against_a_spacing():
    body = np.broadcast_to(np.int16(0), (48, 40, 150))
    short = LPS @ np.diag([1, 1, 0.5, 1])
    scan = StoredVolume(body, affines={"sform": short, "qform": LPS}, spacing_xyz=SPACING)
    found = resolve_geometry(scan)
    assert found.spacing_xyz == SPACING and found.spacing_disputed


def test_largest_and_smallest_spacing():
    assert is_spacing((0.05, 20.0, 20.0))
    assert not is_spacing((0.049, 1.0, 1.0)) and not is_spacing((1.0, 1.0, 20.01))


def test_size_of_a_chest():
    assert check_extent((512, 512, 300), (0.7, 0.7, 1.0)) == ()
    for shape, spacing in (((512, 512, 30), (0.7, 0.7, 3.0)), ((512, 512, 99), (3.0, 3.0, 3.0))):
        (note,) = check_extent(shape, spacing)
        assert note.startswith("unusual extent (")
    with pytest.raises(InputError, match="358 x 358 x 20 mm.*at least 50 mm"):
        check_extent((512, 512, 2), (0.7, 0.7, 10.0))


# How a candidate may be corrupted: fields of the header that are then overwritten.
CORRUPTED = {
    "nothing": {},
    "sform of unit vectors": {"sform": "unit"},
    "sform to a template": {"sform": MNI},
    "identity": {"sform": np.eye(4)},
    "sform in micrometers": {"sform": "micrometers"},
    "sform not finite": {"srow_x": np.nan},
    "empty sform": {"sform": np.zeros((4, 4))},
    "other sform": {"sform": RAS},
    "qform not finite": {"quatern_b": np.nan},
    "pixdim of 0": {"pixdim": 0.0},
    "pixdim below 0": {"pixdim": -12.0},
    "pixdim not finite": {"pixdim": np.nan},
    "pixdim of 1": {"pixdim": 1.0},
}


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    orientation=st.sampled_from(ORIENTATIONS),
    corrupted=st.sampled_from(sorted(CORRUPTED)),
    sform_code=st.integers(0, 4),
    qform_code=st.integers(0, 2),
)
def test_no_header_is_silently_misread(
    tmp_path_factory, orientation, corrupted, sform_code, qform_code
):
    """Every chest is read as it is, refused, or told to be disputed or without axes."""
    assume(qform_code or corrupted != "other sform")  # which nothing would contradict
    start, end = (nib.orientations.axcodes2ornt(axes) for axes in ("LPS", orientation))
    image = nib.Nifti1Image(CHEST, LPS)
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    affine, header = image.affine, image.header
    header.set_sform(affine, sform_code)
    header.set_qform(affine, qform_code)
    for field, value in CORRUPTED[corrupted].items():
        if field == "sform":
            sizes = nib.affines.voxel_sizes(affine)
            wrong = {"unit": 1 / sizes, "micrometers": np.full(3, 1000.0)}
            by_name = isinstance(value, str)
            rows = affine @ np.diag([*wrong[value], 1]) if by_name else value
            header["srow_x"], header["srow_y"], header["srow_z"] = rows[:3]
        elif field == "pixdim":
            header["pixdim"][3] = value
        else:
            header[field] = value
    path = tmp_path_factory.mktemp("scan") / "scan.nii"
    voxels = np.asarray(image.dataobj).tobytes(order="F")
    path.write_bytes(header.binaryblock + bytes(4) + voxels)
    try:
        scan = read_nifti(path)
        found = resolve_geometry(scan)
        check_extent(CHEST.shape, found.spacing_xyz)
    except InputError:
        return
    is_right = found.spacing_xyz == SPACING and np.array_equal(
        to_lps(scan.voxels, found.orientation), CHEST
    )
    told = found.spacing_disputed or found.orientation_disputed or found.axes == "stored"
    assert is_right or (told and found.notes)
    # A sound qform (with pixdim) or a sound sform is enough, whatever the other one says.
    if qform_code and corrupted.startswith(("sform", "identity", "empty", "nothing")):
        assert is_right
    if sform_code and corrupted.startswith(("qform", "pixdim", "nothing")):
        assert is_right
