"""One phantom, as every file that a hospital has: the prepared volume is the same."""

import shutil

import nibabel as nib
import numpy as np
import pytest
from etils import epath

from data_pipelines.resample import Geometry
from data_pipelines.shard_tasks import prepare_scan
from data_pipelines.sources.case import CaseRecord
from data_pipelines.sources.phantoms.layout import write_samples
from tests.dicom_series import chest_slices, enhanced, write

GEOMETRY = Geometry(shape=(24, 48, 48), spacing=(15.0, 7.5, 7.5))


def prepare(path):
    case = CaseRecord("a", "a", "a", (epath.Path(path),))
    return prepare_scan(case, geometry=GEOMETRY)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """The paths by format."""
    folder = tmp_path_factory.mktemp("scans")
    write_samples(folder, count=1, seed=0)
    image = nib.as_closest_canonical(nib.load(folder / "sample_1.nii.gz"))
    hu = np.asarray(image.dataobj)[::-1, ::-1].astype(np.int16)  # RAS to LPS
    spacing = tuple(map(float, image.header.get_zooms()))
    slices = chest_slices(spacing=spacing, hu=hu)
    disc = folder / "disc"
    write(disc / "DICOM" / "ST0" / "SE0", slices)
    (disc / "DICOMDIR").write_bytes(b"an index")
    multiframe = folder / "multiframe"
    multiframe.mkdir()
    enhanced(slices).save_as(multiframe / "IM0", enforce_file_format=True)
    return {
        "nifti": folder / "sample_1.nii.gz",
        "series": write(folder / "series", slices),
        "coronal series": write(
            folder / "coronal", chest_slices("LIP", spacing=spacing, hu=hu, series="1.3")
        ),
        "disc": disc,
        "zip": shutil.make_archive(str(folder / "zipped"), "zip", disc),
        "enhanced": multiframe / "IM0",
        "folder of enhanced": multiframe,
    }


@pytest.mark.parametrize(
    "kind", ["series", "coronal series", "disc", "zip", "enhanced", "folder of enhanced"]
)
def test_every_dicom_is_the_nifti(scans, kind):
    expected, prepared = prepare(scans["nifti"]), prepare(scans[kind])
    np.testing.assert_array_equal(prepared.volume, expected.volume)
    assert not prepared.scan.notes
