"""crop=chest: the lungs are inside the grid, and what lies outside is said."""

import dataclasses
import itertools

import nibabel as nib
import numpy as np
import pytest
from etils import epath

from benchmarks.long_bodies import ARMS, CONDITIONS, MAX_MM, MIN_MM, SPACING_XYZ, draw_body
from data_pipelines.crop import place_grid
from data_pipelines.formats.stored import StoredVolume
from data_pipelines.hounsfield import resolve_hu_and_geometry
from data_pipelines.resample import GRIDS, Geometry, grid_positions, preprocess
from data_pipelines.shard_tasks import prepare_scan, provenance
from data_pipelines.sources.case import CaseRecord

COARSE = Geometry((60, 45, 45), (6.0, 8.0, 8.0))  # 360 mm, as the published grid
KINDS = list(itertools.product(CONDITIONS, ARMS))


def oriented(hu, spacing=SPACING_XYZ):
    x, y, z = spacing
    return resolve_hu_and_geometry(StoredVolume(hu, affines={"sform": np.diag([-x, -y, z, 1.0])}))


def lung_inside(body, coverage, scan, geometry):
    *_, z = grid_positions(scan.voxels.shape, scan.spacing_xyz, geometry, coverage.z_center)
    return body.lung_inside((z >= -0.5) & (z < geometry.shape[0] - 0.5))


def prepared(path, hu, *, affine=None, mode="sound", crop=None, **claims):
    x, y, z = SPACING_XYZ
    nib.save(nib.Nifti1Image(hu, np.diag([-x, -y, z, 1.0]) if affine is None else affine), path)
    case = CaseRecord("", "", "", paths=(epath.Path(path),), **claims)
    return prepare_scan(case, geometry=COARSE, mode=mode, crop=crop)


@pytest.fixture(scope="module")
def whole():
    """1,750 mm of a healthy patient; the lungs are far from the middle."""
    return draw_body(
        np.random.default_rng(1), millimeters=1750, condition="healthy", arms="outside"
    )


@pytest.fixture(scope="module")
def legs(whole):
    return whole.hu[:, :, : int(np.flatnonzero(whole.lungs.any((0, 1)))[0]) - 60]


@pytest.mark.parametrize("number", range(len(KINDS)))
def test_lungs_are_inside(number):
    condition, arms = KINDS[number]
    millimeters = np.linspace(MIN_MM, MAX_MM, len(KINDS))[number * 7 % len(KINDS)]
    rng = np.random.default_rng(number)
    body = draw_body(rng, millimeters=millimeters, condition=condition, arms=arms)
    scan = resolve_hu_and_geometry(body.scan)
    for geometry in GRIDS.values():
        coverage = place_grid(scan, geometry, "chest")
        height, length = geometry.shape[0] * geometry.spacing[0], coverage.scan_mm[2]
        # Tall lungs leave no room on the smallest grid, of 288 mm.
        assert lung_inside(body, coverage, scan, geometry) > (0.98 if height < 300 else 0.999)
        assert coverage.crop == ("chest" if length > height + 5 else "none")
        assert coverage.outside_mm[2] == pytest.approx(max(0, length - height), abs=6)
        share = coverage.outside_mm[2] / length
        assert [note.split(" (")[0] for note in coverage.notes] == ["outside the grid"] * (
            share > 0.2
        )


def test_lungs_are_centered_where_the_scan_goes_on(whole):
    scan = resolve_hu_and_geometry(whole.scan)
    slices = np.flatnonzero(whole.lungs.sum((0, 1)) > 1)
    center = place_grid(scan, Geometry(), "chest").z_center
    assert center == pytest.approx((slices[0] + slices[-1]) / 2, abs=4)


@pytest.mark.parametrize("affine", ["header", "none"])
def test_feet_first(tmp_path, whole, affine):
    expected = prepared(tmp_path / "a.nii", whole.hu)
    assert expected.coverage.crop == "chest"
    x, y, z = SPACING_XYZ
    flipped = np.ascontiguousarray(whole.hu[::-1, :, ::-1])
    if affine == "header":
        volume = prepared(tmp_path / "b.nii", flipped, affine=np.diag([x, -y, -z, 1.0])).volume
        np.testing.assert_array_equal(volume, expected.volume)
        return
    # The header does not tell, so the patient stands on the head; the lungs are found all the same.
    scan = prepared(tmp_path / "b.nii", flipped, affine=np.eye(4), spacing=(z, x, y))
    assert scan.coverage.crop == "chest"
    np.testing.assert_allclose(
        scan.coverage.z_center, whole.hu.shape[2] - 1 - expected.coverage.z_center, atol=1.5
    )


@pytest.mark.parametrize("millimeters", [240, 300, 354, 360])
def test_scans_no_longer_than_the_grid_are_untouched(tmp_path, whole, millimeters):
    top = int(np.flatnonzero(whole.lungs.any((0, 1)))[-1]) + 2
    hu = whole.hu[:, :, top - millimeters // 6 : top]
    chest = prepared(tmp_path / "a.nii", hu)
    expected = preprocess(
        hu, slope=1, intercept=0, spacing_xyz=SPACING_XYZ, geometry=COARSE, steps_per_hu=1
    )
    np.testing.assert_array_equal(chest.volume, expected)
    assert chest.coverage.crop == "none" and chest.coverage.z_center is None
    assert chest.coverage.outside_mm[2] == 0 and not chest.notes


@pytest.mark.parametrize("mode", ["sound", "published_train", "published_inference"])
def test_center_crops_stay_and_say_what_they_lose(tmp_path, whole, mode):
    x, y, z = SPACING_XYZ
    claims = {"slope": 1.0, "intercept": 0.0, "spacing": (z, x, y)} if mode != "sound" else {}
    scan = prepared(tmp_path / "a.nii", whole.hu, mode=mode, crop="center", **claims)
    exact = {} if mode == "sound" else {"dtype": np.float64}
    expected = preprocess(
        whole.hu,
        slope=1,
        intercept=0,
        spacing_xyz=SPACING_XYZ,
        geometry=COARSE,
        clip="after_resampling" if mode == "published_train" else "before_resampling",
        steps_per_hu=1 if mode == "sound" else 16,
        **exact,
    )
    np.testing.assert_array_equal(scan.volume, expected)
    about = provenance(scan)
    beyond = whole.hu.shape[2] * 6 - 360
    assert about["crop"] == "center" and about["outside_mm"].split("x")[2] == str(beyond)
    assert about["lung_liters"] == 0
    share = round(100 * beyond / (beyond + 360))
    assert f"outside the grid ({share} % of the scan's {beyond + 360} mm along z)" in about["notes"]
    assert "no lung inside the grid (0.00 of " in about["notes"]


def test_no_lung_in_legs(legs):
    coverage = place_grid(oriented(legs), COARSE, "chest")
    assert coverage.crop == "center" and coverage.z_center is None
    assert coverage.notes[-1] == "no lung inside the grid (0.00 of 0.00 l in the scan)"


def test_gas_and_foam_are_not_lung():
    """An abdomen with a liter of bowel gas, on foam in a shell of 5 mm, below a folded blanket."""
    rng = np.random.default_rng(0)
    x, y = np.meshgrid(np.linspace(-250, 250, 100), np.linspace(-200, 200, 80), indexing="ij")
    plane = np.full(x.shape, -1000.0)
    plane[np.hypot(x / 180, y / 120) < 1] = 40
    plane[np.hypot((x - 60) / 60, (y + 30) / 35) < 1] = -1000
    plane[(np.abs(x) < 230) & (np.abs(y - 155) < 35)] = 0
    plane[(np.abs(x) < 225) & (np.abs(y - 155) < 30)] = -940
    plane[(np.abs(x) < 200) & (np.abs(y + 140) < 15)] = -900
    hu = np.rint(plane[..., None] + rng.normal(0, 20, (*x.shape, 60))).astype(np.int16)
    assert place_grid(oriented(hu, (5.0, 5.0, 6.0)), COARSE, "chest").scan_lung_liters == 0


def test_air_trapping_is_lung(whole):
    """Lungs of which six tenths are as dark as gas, in lobules, and the rest is dense."""
    x, y, z = np.indices(whole.hu.shape) // 6
    lobules = (7 * x + 5 * y + 3 * z) % 10
    hu = np.where(whole.lungs > 0.9, np.where(lobules < 6, -1010, -780), whole.hu)
    expected = place_grid(resolve_hu_and_geometry(whole.scan), COARSE, "chest")
    coverage = place_grid(oriented(hu.astype(np.int16)), COARSE, "chest")
    assert coverage.z_center == pytest.approx(expected.z_center, abs=3)
    assert coverage.scan_lung_liters == pytest.approx(expected.scan_lung_liters, rel=0.1)


def test_thin_noisy_slices_and_a_narrow_field_of_view(whole):
    """Voxels of a third of the size, and a scan that cuts the arms and the sides of the chest."""
    expected = place_grid(resolve_hu_and_geometry(whole.scan), COARSE, "chest")
    fine = whole.hu[10:-10].repeat(3, 0).repeat(3, 1).repeat(3, 2)
    fine += np.random.default_rng(0).integers(-150, 151, fine.shape, np.int16)
    coverage = place_grid(oriented(fine, tuple(mm / 3 for mm in SPACING_XYZ)), COARSE, "chest")
    assert coverage.z_center / 3 == pytest.approx(expected.z_center, abs=5)
    assert coverage.scan_lung_liters == pytest.approx(expected.scan_lung_liters, rel=0.15)
    wall = int(np.flatnonzero(whole.lungs.max((1, 2)) > 0.5)[0]) + 2
    narrow = place_grid(oriented(whole.hu[wall:-wall]), COARSE, "chest")
    assert narrow.z_center == pytest.approx(expected.z_center, abs=6)
    assert narrow.scan_lung_liters > 0.3 * expected.scan_lung_liters


def test_in_plane_the_body_counts_not_the_air_beside_it():
    x, y = np.meshgrid(np.arange(-50, 50) * 5 + 2.5, np.arange(-50, 50) * 5 + 2.5, indexing="ij")
    chest = np.where(np.hypot(np.abs(x) / 120 - 0.6, y / 80) < 0.5, -850, 40)
    notes = {}
    for width in (160, 245):
        plane = np.where(np.hypot(x / width, y / 140) < 1, chest, -1000).astype(np.int16)
        coverage = place_grid(oriented(plane[..., None].repeat(50, 2), (5, 5, 6)), COARSE, "chest")
        assert coverage.outside_mm == pytest.approx((140, 140, 0), abs=10)
        notes[width] = coverage.notes, coverage.body_beside
    assert notes[160] == ((), 0.0)
    # Of an ellipse with half axis 245 mm, 17 % lies more than 180 mm from its middle.
    assert notes[245][0] == () and notes[245][1] == pytest.approx(0.17, abs=0.02)


def test_without_a_body_none_of_it_is_beside_the_grid(whole):
    scan = resolve_hu_and_geometry(whole.scan)
    air = dataclasses.replace(scan, voxels=np.full_like(scan.voxels, -1000))
    assert place_grid(air, COARSE, "chest").body_beside == 0


@pytest.mark.parametrize("millimeters", [90, 240, 1750])
def test_coverage_is_what_is_not_padding(tmp_path, whole, millimeters):
    top = int(np.flatnonzero(whole.lungs.any((0, 1)))[-1]) + 2
    bottom = max(0, top - millimeters // 6) if millimeters < 1750 else 0
    scan = prepared(tmp_path / "a.nii", whole.hu[8:-8, :, bottom : top if bottom else None])
    body = np.full_like(scan.oriented.voxels, 40)
    volume = preprocess(
        body,
        slope=1,
        intercept=0,
        spacing_xyz=SPACING_XYZ,
        geometry=COARSE,
        z_center=scan.coverage.z_center,
    )
    is_filled = volume > -16000
    f, h, w = (is_filled.any(others).mean() for others in ((1, 2), (0, 2), (0, 1)))
    assert scan.coverage.filled == (h, w, f)
    assert provenance(scan)["coverage"] == f"{h:.2f}x{w:.2f}x{f:.2f}"
    assert (f < 0.5) == (millimeters == 90)
    padded = [note for note in scan.notes if note.startswith("mostly padding")]
    expected = f"mostly padding (of the grid the scan fills {100 * f:.0f} % along z)"
    assert padded == [expected] * (millimeters == 90)


def test_little_lung_is_said(tmp_path, whole):
    """A scan of the abdomen that has the bases of the lungs; the whole chest has enough lung."""
    first = int(np.flatnonzero(whole.lungs.sum((0, 1)) > 20)[0])
    scan = prepared(tmp_path / "a.nii", whole.hu[:, :, first - 44 : first + 10])
    share, liters = scan.coverage.lung_share, scan.coverage.lung_liters
    assert liters > 0.2 and share < 0.03 and provenance(scan)["lung_share"] == round(share, 3)
    assert f"little lung inside the grid ({100 * share:.0f} % of the body)" in scan.notes
    chest = prepared(tmp_path / "b.nii", whole.hu)
    assert chest.coverage.lung_share > 0.08 and "lung" not in " ".join(chest.notes)
