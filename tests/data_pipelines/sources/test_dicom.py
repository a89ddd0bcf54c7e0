"""Trees of DICOM folders as a source, and series by name in tables and on the command line."""

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctclip_jax.inference import scans
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from data_pipelines.sources import dicom, manifest
from tests.dicom_series import chest_slices, write
from tests.scan_tree import write_nifti

ROOT = Path(__file__).parents[3]


def study(folder: Path, patient: str, uid: str, *, spacing=(12.0, 12.0, 20.0)) -> Path:
    """Two axial series, a coronal one and a localizer, in a folder each."""
    for number, axes in enumerate(["LPS", "LPS", "LIP", "LPS"], start=1):
        slices = chest_slices(axes, series=f"{uid}.{number}", spacing=spacing)
        for ct in slices:
            ct.PatientID, ct.StudyInstanceUID, ct.SeriesNumber = patient, uid, number
            ct.SeriesDescription, ct.PatientSex, ct.PatientAge = f"Series {number}", "F", "061Y"
            ct.ConvolutionKernel = {1: "B70f"}.get(number, "B30f")
            ct.StudyDate, ct.Manufacturer = "20200131", "Siemens"
            if number == 4:
                ct.ImageType = ["ORIGINAL", "PRIMARY", "LOCALIZER"]
        write(folder / f"SE {number}", slices[:1] if number == 4 else slices)
    return folder


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """Names with commas and spaces, no suffixes; two studies in one folder; a damaged file."""
    root = tmp_path_factory.mktemp("PACS export")
    study(root / "Doe, Jane" / "CT 1", "P1", "1.1")
    study(root / "Doe, Jane" / "CT 2", "P1", "1.2")
    study(root / "both", "P2", "1.3")
    for folder in study(root / "other", "P3", "1.4").iterdir():
        for file in folder.iterdir():
            file.rename(root / "both" / folder.name / f"other {file.name}")
    shutil.rmtree(root / "other")
    (root / "broken").mkdir()
    (root / "broken" / "IM1.dcm").write_bytes(b"none")
    (root / "DICOMDIR").write_bytes(b"an index")
    return root


def test_a_case_is_the_chosen_series_of_a_study(tree):
    collection = dicom.read_collection(tree)
    *cases, broken = sorted(collection.cases, key=lambda case: case.volume_name == "broken/IM1.dcm")
    assert [case.volume_name for case in cases] == [
        "Doe, Jane/CT 1",
        "Doe, Jane/CT 2",
        "both/1.3",
        "both/1.4",
    ]
    assert [case.series for case in cases] == ["1.1.2", "1.2.2", "1.3.2", "1.4.2"]
    assert [case.scan for case in cases] == ["1.1", "1.2", "1.3", "1.4"]
    digests = [hashlib.sha256(name.encode()).hexdigest()[:16] for name in ("P1", "P1", "P2", "P3")]
    assert [case.patient for case in cases] == digests
    assert cases[0].strata == {
        "sex": "F",
        "age": "061Y",
        "manufacturer": "Siemens",
        "kernel": "B30f",
        "date": "20200131",
    }
    assert broken.volume_name == "broken/IM1.dcm" and "not DICOM but text" in broken.skip
    for case in cases:
        (note, *_) = read_scan(case.path(), series=case.series).notes
        assert note.startswith(
            f"one of 3 series (read: series 2: Series 2, B30f, 12 slices, {case.scan}"
        )


def test_all_series_are_the_axial_ones(tree):
    cases = dicom.read_collection(tree, series="all").cases
    assert [(case.volume_name, case.series) for case in cases if not case.skip][:3] == [
        ("Doe, Jane/CT 1/1", "1.1.1"),
        ("Doe, Jane/CT 1/2", "1.1.2"),
        ("Doe, Jane/CT 2/1", "1.2.1"),
    ]
    assert len(cases) == 9


def test_studies_without_the_series_are_skipped(tree):
    cases = dicom.read_collection(tree, series="1.1.3").cases
    assert [case.series for case in cases if not case.skip] == ["1.1.3"]
    assert all("no series '1.1.3'" in case.skip for case in cases if case.volume_name[:4] == "both")


def test_folder_without_dicom_is_an_input_error(tmp_path):
    for folder in (tmp_path, tmp_path / "absent"):
        with pytest.raises(InputError, match="no DICOM files|no such folder"):
            dicom.read_collection(folder)


def test_series_of_a_manifest(tmp_path):
    study(tmp_path / "CT", "P1", "1.1")
    shutil.make_archive(str(tmp_path / "CT"), "zip", tmp_path / "CT")
    (tmp_path / "CT" / "DICOMDIR").write_bytes(bytes(128) + b"DICM")
    write_nifti(tmp_path / "a.nii", np.zeros((3, 3, 3)))
    table = tmp_path / "scans.csv"
    table.write_text(
        "path,series,volume_name\nCT,Series 1,one\nCT.zip,all,each\nCT/DICOMDIR,all,disc\n"
        "CT,,rule\na.nii,all,a\n"
    )
    cases = manifest.read_collection(table, "train").cases
    named = [(case.volume_name, case.series) for case in dicom.name_series(cases, "3")]
    assert named == [
        ("a", ""),
        ("disc/1", "1.1.1"),
        ("disc/2", "1.1.2"),
        ("each/1", "1.1.1"),
        ("each/2", "1.1.2"),
        ("one", "Series 1"),
        ("rule", "3"),
    ]


def test_series_on_the_command_line_of_predict(tmp_path):
    folder = str(study(tmp_path / "CT", "P1", "1.1"))
    cases = scans.list_scans([folder], split="valid", series="all")
    assert [case.volume_name for case in cases] == [f"{folder}/1", f"{folder}/2"]
    (case,) = scans.list_scans([folder], split="valid", series="2")
    assert (case.volume_name, case.series) == (folder, "2")
    (case,) = scans.list_scans([str(tmp_path / "none.zip")], split="valid", series="all")
    assert "no such file" in case.skip


def run(*arguments):
    grid = ("--shape=8,14,12", "--spacing=36,22.5,22.5", "--processes=1")
    command = [sys.executable, "-m", "data_pipelines.prepare", *grid, *arguments]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_program(tree, tmp_path):
    done = run("--source=dicom", f"--data={tree}", f"--out={tmp_path}", "--splits=train")
    assert done.returncode == 0, done.stderr
    assert "train: 4 prepared, 1 skipped" in done.stderr
    assert "one of 3 series 4 · DICOM files left out 4" in done.stderr
    records = shards.read(str(tmp_path), "train")
    assert {record["strata"]["kernel"] for record in records} == {"B30f"}
    done = run("--source=dicom", f"--data={tree}", f"--out={tmp_path}")
    assert done.returncode == 2 and "--splits: got train,valid, expected one" in done.stderr
    done = run(f"--data={tree}", f"--out={tmp_path}", "--series=all")
    assert done.returncode == 2 and "--series: only for" in done.stderr
