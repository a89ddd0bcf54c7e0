"""One scan in, probabilities out: the same however it is stored; a bad scan costs itself alone."""

import csv
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import nibabel as nib
import numpy as np
import pytest
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import CTImageStorage, ExplicitVRLittleEndian

import ctclip_jax
from configs import phantoms
from ctclip_jax import predict
from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.common.configs import from_dict
from ctclip_jax.inference import scans
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError
from data_pipelines.hounsfield import to_lps
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.sources.phantoms import write_samples
from data_pipelines.tokenizers import train_sentencepiece
from tests.dicom_series import LPS, store

REAL = Path(__file__).parents[3] / "shared" / "real_ct" / "example_ct_sm.nii.gz"
needs_real = pytest.mark.skipif(not REAL.exists(), reason=f"no {REAL}")


@pytest.fixture(scope="module")
def samples(tmp_path_factory):
    """Two phantoms as files, and their manifest."""
    return write_samples(tmp_path_factory.mktemp("samples"), count=2, seed=0).parent


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """An export of the demo's architecture, tiny, with random weights that tell scans apart."""
    folder = tmp_path_factory.mktemp("export")
    texts = [prompt.format(label) for label in LABELS for prompt in PROMPTS]
    tokenizer = folder.parent / "tokenizer.model"
    train_sentencepiece(texts, tokenizer, 100)
    config = phantoms.get_config("smoke")
    config.model.init_logit_scale_log = 4.0
    model = from_dict(TrainConfig, config.to_dict()).model
    variables = jax.jit(CTCLIP(model).init)(jax.random.key(0))
    described = {"model": config.model.to_dict(), "max_length": 24, "report": "joined"}
    save_export(folder, variables, config=described, tokenizer=tokenizer)
    return folder


@pytest.fixture(scope="module")
def model(export):
    return ctclip_jax.load(export)


def probabilities(model, path):
    return model.detect(model.prepare(path).volume[None])[0]


def reoriented(path, folder, axes):
    image = nib.load(path)
    start = nib.orientations.io_orientation(image.affine)
    moves = nib.orientations.ornt_transform(start, nib.orientations.axcodes2ornt(axes))
    nib.save(image.as_reoriented(moves), folder / f"{axes}.nii.gz")
    return folder / f"{axes}.nii.gz"


def as_dicom(path, folder):
    """The series that a scanner would write of a NIfTI file."""
    image = nib.load(path)
    voxels, (x, y, z) = to_lps(np.asarray(image.dataobj), image.affine)
    folder.mkdir()
    for k in range(voxels.shape[2]):
        ct = Dataset()
        ct.file_meta = FileMetaDataset()
        ct.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
        ct.SOPClassUID, ct.SOPInstanceUID, ct.SeriesInstanceUID = CTImageStorage, f"1.{k}", "1"
        ct.Modality, ct.ImageType, ct.InstanceNumber = "CT", ["ORIGINAL", "PRIMARY", "AXIAL"], k
        ct.ImagePositionPatient = [0, 0, k * z]
        ct.ImageOrientationPatient = [*LPS["L"], *LPS["P"]]
        ct.PixelSpacing, ct.RescaleSlope, ct.RescaleIntercept = [y, x], 1, 0
        ct.SamplesPerPixel, ct.PhotometricInterpretation = 1, "MONOCHROME2"
        ct.Columns, ct.Rows = voxels.shape[:2]
        store(ct, voxels[:, :, k].T.astype(np.int16))
        ct.save_as(folder / f"IM{k}", enforce_file_format=True)
    return folder


@pytest.mark.parametrize("which", ["phantom", pytest.param("real", marks=needs_real)])
def test_a_scan_is_the_same_scan_however_it_is_stored(model, samples, tmp_path, which):
    path = REAL if which == "real" else samples / "sample_1.nii.gz"
    expected = probabilities(model, path)
    forms = [reoriented(path, tmp_path, axes) for axes in ("RAS", "PIR", "SLA")]
    for form in (*forms, as_dicom(path, tmp_path / "dicom")):
        np.testing.assert_allclose(probabilities(model, form), expected, atol=1e-3)
    other = probabilities(model, samples / "sample_2.nii.gz")
    assert np.abs(other - expected).max() > 5e-3, "the model does not tell scans apart"


def run(*arguments):
    command = [sys.executable, "-m", "ctclip_jax.predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_program(model, export, samples, tmp_path):
    """Good scans have all their files, a bad one its line, and the status says so."""
    out, bad = tmp_path / "out", tmp_path / "bad.nii.gz"
    bad.write_bytes(b"no scan")
    done = run(f"{samples}/*.nii.gz", bad, f"--checkpoint={export}", f"--out={out}", "--heatmaps=2")
    assert done.returncode == 1, done.stderr
    assert "1 of 3 scans could not be used" in done.stderr
    assert f"{bad}: damaged or no NIfTI file" in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    with (out / "scores.csv").open() as file:
        rows = {row["VolumeName"]: row for row in csv.DictReader(file)}
    assert set(rows) == {"sample_1.nii.gz", "sample_2.nii.gz"}
    for name, row in rows.items():
        assert f"{name}: " in done.stdout
        expected = probabilities(model, samples / name)
        np.testing.assert_allclose([float(row[label]) for label in LABELS], expected, atol=1e-5)
        told = json.loads((out / name / "prediction.json").read_text())
        assert told["axes"] == "header" and told["heatmaps"]["of"] == "exact contributions"
        np.testing.assert_allclose(list(told["probabilities"].values()), expected, atol=1e-5)
        drawn = [LABELS[i] for i in np.argsort(-expected, kind="stable")[:2]]
        assert told["heatmaps"]["findings"] == drawn
        files = {path.name for path in (out / name).iterdir()}
        assert files == {
            "prediction.json",
            *(f"{n}{e}" for n in drawn for e in (".png", ".nii.gz")),
        }
        mapped, scan = nib.load(out / name / f"{drawn[0]}.nii.gz"), nib.load(samples / name)
        assert mapped.shape == scan.shape
    alone = run(bad, f"--checkpoint={export}")
    assert alone.returncode == 1 and alone.stderr.count("\n") == 1, alone.stderr
    again = run(bad, f"--checkpoint={export}", f"--out={out}")
    assert again.returncode == 2 and "has a scores.csv already" in again.stderr


def test_a_table_of_scans_and_findings_of_ones_own(export, samples, tmp_path):
    findings = tmp_path / "findings.csv"
    findings.write_text("finding,present,absent\nStent/clip,A stent.,No stent.\n")
    table = f"--scans={samples / 'samples.csv'}"
    out = tmp_path / "out"
    done = run(table, f"--checkpoint={export}", f"--prompts={findings}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert (out / "scores.csv").read_text().splitlines()[0] == "VolumeName,Stent/clip"
    assert (out / "sample_1.nii.gz" / "prediction.json").exists()


def test_names_of_files_lead_nowhere():
    assert predict.file_name("Stent/clip") == "Stent_clip"
    assert predict.file_name("/data/../x.nii.gz") == "_data_.._x.nii.gz"
    assert predict.file_name("..") == "_"
    assert len(predict.file_name("患" * 120).encode()) <= 200
    with pytest.raises(InputError, match="'a/b' and 'a_b': would be written to one file"):
        predict.check_file_names(["a/b", "c", "a_b"])


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ([], "no scan: give paths, or --scans=TABLE"),
        (["x*.nii"], "x*.nii: matches nothing"),
        (["x.nii", "--heatmaps=1"], "--heatmaps: pictures need a folder, --out"),
        (["x.nii", "--scores=classifier"], "this model has no classifier"),
        (["x.nii", "--scores=classifier", "--prompts=y.csv"], "--prompts: a classifier reads none"),
        (["x.nii", "--checkpoint=nowhere.pt"], "nowhere.pt: "),
    ],
)
def test_what_cannot_be_done_is_one_line(export, arguments, told):
    done = run(f"--checkpoint={export}", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and told in done.stderr
    assert done.stderr.count("\n") == 1


def test_names_tell_paths_apart():
    assert scans.names_of([Path("胸部\u3000CT.nii")]) == ["胸部\u3000CT.nii"]
    assert scans.names_of([Path("a/x.nii"), Path("b/y.nii")]) == ["x.nii", "y.nii"]
    assert scans.names_of([Path("a/x.nii"), Path("b/x.nii")]) == ["a_x.nii", "b_x.nii"]
    with pytest.raises(InputError, match="told apart"):
        scans.names_of([Path("/a_b/x"), Path("/a/b_x"), Path("/a/b/x"), Path("/a/b/x")])


def test_names_of_files_that_are_no_text_can_be_written(export, samples, tmp_path):
    """A German scanner's Latin-1 name, on a disk of UTF-8."""
    scan = os.fsencode(tmp_path) + b"/M\xfcller.nii.gz"
    shutil.copy(os.fsencode(samples / "sample_1.nii.gz"), scan)
    out = tmp_path / "out"
    done = run(f"{tmp_path}/*.nii.gz", f"--checkpoint={export}", f"--out={out}", "--heatmaps=1")
    assert done.returncode == 0, done.stderr
    with (out / "scores.csv").open() as file:
        (name,) = [row["VolumeName"] for row in csv.DictReader(file)]
    assert name == r"M\udcfcller.nii.gz"
    assert len(list((out / predict.file_name(name)).iterdir())) == 3


def test_scans_are_read_in_order_and_few_at_a_time():
    reading, most = [], []

    class Slow:
        def prepare(self, case):
            reading.append(case.volume_name)
            most.append(len(reading))
            if case.volume_name == "2":
                raise ZeroDivisionError("a fault of ours")
            return case.volume_name

    cases = [scans.Case(str(n), "", "", (Path(str(n)),)) for n in range(7)]
    found = []
    for scan in scans.read_ahead(Slow(), cases, workers=2):
        found.append(scan)
        assert len(reading) <= len(found) + 2
    assert [scan.case.volume_name for scan in found] == list("0123456")
    assert isinstance(found[2], scans.SkippedCase) and "ZeroDivisionError" in found[2].reason
