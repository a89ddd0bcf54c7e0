"""A chest gives the same volume in whatever way its file is written."""

import itertools
import math

import nibabel as nib
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from data_pipelines.formats import read_nifti
from data_pipelines.hounsfield import resolve_hu_and_geometry
from data_pipelines.resample import Geometry, preprocess, to_hu

GEOMETRY = Geometry(shape=(20, 24, 24), spacing=(9.0, 9.0, 9.0))
ORIENTATIONS = [
    "".join(pair[flip] for pair, flip in zip(pairs, flips, strict=True))
    for pairs in itertools.permutations(("RL", "AP", "IS"))
    for flips in itertools.product((0, 1), repeat=3)
]


def chest(size, seed):
    """Air, soft tissue and lung in HU, no two corners alike; axes run to L, P, S."""
    rng = np.random.default_rng(seed)
    hu = rng.normal(0, 20, size) + 30
    x, y, z = (slice(n // 4, n // 2) for n in size)
    hu[: size[0] // 4] -= 1000
    hu[x, y, z] -= 880
    hu[-1, -1, -1] = 1500
    return np.rint(hu).astype(np.int16)


def write(path, hu, *, spacing, orientation, slope, intercept, form):
    """The file of `hu` with its axes as `orientation` says, values (HU - intercept) / slope."""
    lps = np.diag([-1.0, -1.0, 1.0, 1.0]) @ np.diag([*spacing, 1.0])
    lps[:3, 3] = (90, 80, -200)
    image = nib.Nifti1Image(((hu.astype(int) - intercept) // slope).astype(np.int16), lps)
    start, end = (nib.orientations.axcodes2ornt(axes) for axes in ("LPS", orientation))
    image = image.as_reoriented(nib.orientations.ornt_transform(start, end))
    affine, stored = image.affine, nib.Nifti1Image(np.asarray(image.dataobj), None)
    stored.header.set_data_dtype(np.int16)
    stored.set_sform(affine, code=1 if form == "sform" else 0)
    stored.set_qform(affine, code=1 if form == "qform" else 0)
    nib.save(stored, path)


def read(path, *, slope=math.nan, intercept=math.nan):
    scan = resolve_hu_and_geometry(read_nifti(path), slope=slope, intercept=intercept)
    volume = preprocess(
        scan.voxels,
        slope=scan.slope,
        intercept=scan.intercept,
        spacing_xyz=scan.spacing_xyz,
        geometry=GEOMETRY,
    )
    return to_hu(volume) / 1000


def test_there_are_48_orientations():
    assert len(set(ORIENTATIONS)) == 48 and "LPS" in ORIENTATIONS


@pytest.mark.parametrize("form", ["sform", "qform"])
def test_every_orientation_gives_the_same_array(tmp_path, form):
    hu = chest((22, 26, 18), seed=0)
    expected = None
    for orientation in ["LPS", *ORIENTATIONS]:
        path = tmp_path / f"{orientation}.nii"
        how = {"spacing": (7.7, 6.9, 10.1), "slope": 1, "intercept": 0, "form": form}
        write(path, hu, orientation=orientation, **how)
        array = read(path, slope=1.0, intercept=-8192.0)
        expected = array if expected is None else expected
        assert np.abs(array - expected).max() <= 1e-3, orientation


millimeters = st.floats(5.0, 12.0).map(lambda value: round(value, 4))


@settings(max_examples=60, deadline=None, derandomize=True)
@given(
    size=st.tuples(*[st.integers(16, 30)] * 3),
    spacing=st.tuples(*[millimeters] * 3),
    scale=st.sampled_from([(1, -1024), (1, -8192), (1, -1000), (1, 0), (2, -1024)]),
    orientation=st.sampled_from(ORIENTATIONS),
    form=st.sampled_from(["sform", "qform"]),
    seed=st.integers(0, 99),
)
def test_raw_values_or_hu(tmp_path_factory, size, spacing, scale, orientation, form, seed):
    hu = chest(size, seed) // 2 * 2  # so that a slope of 2 loses nothing
    slope, intercept = scale
    tmp_path = tmp_path_factory.mktemp("scan")
    plain = {"orientation": "LPS", "slope": 1, "intercept": 0, "form": "sform"}
    write(tmp_path / "plain.nii", hu, spacing=spacing, **plain)
    other = {"orientation": orientation, "slope": slope, "intercept": intercept, "form": form}
    write(tmp_path / "other.nii.gz", hu, spacing=spacing, **other)
    expected = read(tmp_path / "plain.nii")
    found = read(tmp_path / "other.nii.gz", slope=float(slope), intercept=float(intercept))
    assert np.abs(found - expected).max() <= 1e-3
