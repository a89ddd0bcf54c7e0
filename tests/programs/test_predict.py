"""predict: the same probabilities however a scan is stored; bad scans are skipped."""

import csv
import dataclasses
import json
import os
import re
import shutil
import subprocess
import sys
import threading
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
from ctclip_jax.inference import reference, scans
from ctclip_jax.inference.calibration import Calibration, Curve
from ctclip_jax.inference.reference import Reference
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.reporting import predictions
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import InputError
from data_pipelines.formats import read_nifti
from data_pipelines.geometry import resolve_geometry, to_lps
from data_pipelines.reports import LABELS, PROMPTS
from data_pipelines.sources.case import CaseRecord
from data_pipelines.sources.phantoms.layout import write_samples
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
    """A tiny export of the demo's architecture, with random weights that distinguish scans."""
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
    """A NIfTI file as the DICOM series of a scanner."""
    scan = read_nifti(path)
    geometry = resolve_geometry(scan)
    voxels, (x, y, z) = to_lps(scan.voxels, geometry.orientation), geometry.spacing_xyz
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


@pytest.mark.parametrize("scan", ["phantom", pytest.param("real", marks=needs_real)])
def test_probabilities_do_not_depend_on_how_a_scan_is_stored(model, samples, tmp_path, scan):
    path = REAL if scan == "real" else samples / "sample_1.nii.gz"
    expected = probabilities(model, path)
    paths = [reoriented(path, tmp_path, axes) for axes in ("RAS", "PIR", "SLA")]
    for stored in (*paths, as_dicom(path, tmp_path / "dicom")):
        np.testing.assert_allclose(probabilities(model, stored), expected, atol=1e-3)
    other = probabilities(model, samples / "sample_2.nii.gz")
    assert np.abs(other - expected).max() > 5e-3, "the model does not distinguish scans"


def run(*arguments):
    command = [sys.executable, "-m", "ctclip_jax.predict", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_program(model, export, samples, tmp_path):
    out, bad = tmp_path / "out", tmp_path / "bad.nii.gz"
    bad.write_bytes(b"not a scan")
    done = run(f"{samples}/*.nii.gz", bad, f"--checkpoint={export}", f"--out={out}", "--heatmaps=2")
    assert done.returncode == 1, done.stderr
    assert "1 of 3 scans skipped" in done.stderr
    assert f"{bad}: " in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr
    with (out / "scores.csv").open() as file:
        rows = {row["VolumeName"]: row for row in csv.DictReader(file)}
    assert set(rows) == {f"{samples}/sample_1.nii.gz", f"{samples}/sample_2.nii.gz"}
    for name, row in rows.items():
        assert f"{name}: " in done.stdout
        expected = probabilities(model, name)
        np.testing.assert_allclose([float(row[label]) for label in LABELS], expected, atol=1e-5)
        folder = out / Path(name).name.removesuffix(".nii.gz")
        prediction = json.loads((folder / "prediction.json").read_text())
        assert prediction["axes"] == "header"
        assert tuple(prediction["probabilities"]) == LABELS
        np.testing.assert_allclose(list(prediction["probabilities"].values()), expected, atol=1e-5)
        top = [LABELS[i] for i in np.argsort(-expected, kind="stable")[:2]]
        about = prediction["heatmaps"]
        assert about["of"] == "exact contributions" and about["findings"] == top
        maps = [f"{finding.lower().replace(' ', '_')}_map" for finding in top]
        heatmaps = {f"{file}{suffix}" for file in maps for suffix in (".png", ".nii.gz")}
        assert {path.name for path in folder.iterdir()} == {"prediction.json", *heatmaps}
        heatmap, scan = nib.load(folder / f"{maps[0]}.nii.gz"), nib.load(name)
        assert heatmap.shape == scan.shape
        # A phantom is shorter than the grid: some of the sum is of patches beside it.
        assert 0 < float(prediction["coverage"].split("x")[2]) < 1
        assert prediction["lung_share"] > 0.1
        assert about["from_padding"][top[0]] not in (0, about["sums"][top[0]])
    folders = f"2 folders such as {out}/sample_1/: 2 maps each"
    assert done.stdout.splitlines()[-1] == f"{out}/scores.csv, {folders}"
    alone = run(bad, f"--model={export}")
    assert alone.returncode == 1 and alone.stderr.count("\n") == 1, alone.stderr
    again = run(bad, f"--model={export}", f"--out={out}")
    assert again.returncode == 2 and "already has scores.csv" in again.stderr


def test_table_of_scans_and_custom_findings(export, samples, tmp_path):
    findings = tmp_path / "findings.csv"
    findings.write_text("finding,present,absent\nStent/clip,A stent.,No stent.\n")
    table = f"--scans={samples / 'samples.csv'}"
    out = tmp_path / "out"
    done = run(table, f"--model={export}", f"--prompts={findings}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    assert (out / "scores.csv").read_text().splitlines()[0] == "VolumeName,Stent/clip"
    assert (out / "sample_1" / "prediction.json").exists()


def test_file_names_stay_in_the_folder():
    assert predictions.file_name("Stent/clip") == "Stent_clip"
    assert predictions.file_name("/data/../x.nii.gz") == "_data_.._x.nii.gz"
    assert predictions.file_name("..") == "_"
    assert len(predictions.file_name("患" * 120).encode()) <= 200
    with pytest.raises(InputError, match="'a/b' and 'A_b'"):
        predictions.check_findings(["a/b", "c", "A_b"])
    # The name of a map is the end of a long finding.
    long = ["xax" + "y" * 185, "xbx" + "y" * 185]
    assert predictions.map_name(long[0]) == predictions.map_name(long[1])
    with pytest.raises(InputError, match="xax.* and 'xbx.*: both would be x?y.*_map; rename one"):
        predictions.check_findings(long)
    assert len(predictions.map_name("İ" * 120).encode()) <= 200, "in lower case it has more bytes"


@pytest.mark.parametrize("count", [3, 100, 256])
def test_a_rank_is_rounded_down_to_percents(count):
    for below in range(count + 1):
        rank = (np.arange(count) < below).mean()
        assert predictions.above(rank, count) == f"{100 * below // count} %"


@pytest.mark.parametrize(
    ("names", "folders"),
    [
        (["/data/sample_2.nii.gz", "x.NRRD"], ["sample_2", "x"]),
        (["/data/p1/CT", "/data/p2/CT/"], ["p1_CT", "p2_CT"]),
        (["/a/ct.nii", "/a/CT.nii.gz"], ["_a_ct.nii", "_a_CT.nii.gz"]),
        (["dicom/1.2.840.113", "DICOM/3", "x y/3"], ["dicom_1.2.840.113", "DICOM_3", "x_y_3"]),
        (["..", "valid_1_a_1.nii.gz"], ["_", "valid_1_a_1"]),
    ],
)
def test_folders_of_scans_are_short_and_never_collide(names, folders):
    assert predictions.folder_names(names) == dict(zip(names, folders, strict=True))


def test_scans_of_one_folder_are_an_error():
    with pytest.raises(InputError, match="'a:b/c' and 'a_b/c'"):
        predictions.folder_names(["x", "a:b/c", "a_b/c"])


def test_scans_are_named_by_their_paths(tmp_path):
    for path in (tmp_path / "a.nii", tmp_path / "胸部\u3000[1].nii"):
        path.touch()
    table = tmp_path / "scans.csv"
    table.write_text("path,volume_name\nx.nii,one\n")
    cases = scans.list_scans([f"{tmp_path}/*.nii", f"{tmp_path}/a.nii"], str(table), split="valid")
    names = [f"{tmp_path}/a.nii", f"{tmp_path}/胸部\u3000[1].nii", "one"]
    assert [case.volume_name for case in cases] == names
    assert scans.expand(names[1]) == [Path(names[1])]
    table.write_text(f"path,volume_name\nx.nii,{names[0]}\n")
    with pytest.raises(InputError, match=f"{names[0]}: duplicate"):
        scans.list_scans(names[:1], str(table), split="valid")
    table.write_text("path,split\nx.nii,train\ny.nii,valid\n")
    assert [case.volume_name for case in scans.list_scans([], str(table), split="valid")] == [
        "y.nii"
    ]


def test_control_characters_of_file_names_are_escaped(tmp_path):
    (tmp_path / "a\x1b[2J\n.nii").touch()
    (scan,) = scans.list_scans([f"{tmp_path}/*"], split="valid")
    assert scan.volume_name == rf"{tmp_path}/a\x1b[2J\n.nii" and scan.path().exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["x.nii", "--heatmaps=1"], "--heatmaps: "),
        (["x.nii", "--scores=classifier"], "no classifier"),
    ],
)
def test_invalid_arguments_are_one_line(export, arguments, message):
    done = run(f"--model={export}", *arguments)
    assert done.returncode == 2 and done.stderr.startswith("error: ") and message in done.stderr
    assert done.stderr.count("\n") == 1


def test_arguments_are_checked_before_scans_are_read(model):
    with pytest.raises(InputError, match="no scan"):
        scans.list_scans([], split="valid")
    with pytest.raises(InputError, match=r"x\*.nii: matches nothing"):
        scans.list_scans(["x*.nii"], split="valid")
    with pytest.raises(InputError, match="--prompts"):
        predict.build_classifier(model, kind="classifier", prompts="y.csv")


def predict_one(model, classifier, pattern, *, attribute=True):
    cases = scans.list_scans([pattern], split="valid")
    prepared = scans.read_ahead(model, cases, num_workers=1, on_skip=pytest.fail)
    (result,) = predict.predict(model, classifier, prepared, batch_size=2, attribute=attribute)
    return result


def test_file_names_that_are_not_utf8(model, samples, tmp_path):
    """A German scanner's Latin-1 name, on a disk of UTF-8."""
    path = os.fsencode(tmp_path) + b"/M\xfcller.nii.gz"
    shutil.copy(os.fsencode(samples / "sample_1.nii.gz"), path)
    prediction = predict_one(model, model.zero_shot_classifier(), f"{tmp_path}/*.nii.gz")
    predictions.save(prediction, model, tmp_path, folder="scan", num_heatmaps=1)
    with (tmp_path / "scores.csv").open() as file:
        (name,) = [row["VolumeName"] for row in csv.DictReader(file)]
    assert name == rf"{tmp_path}/M\udcfcller.nii.gz"
    assert len(list((tmp_path / "scan").iterdir())) == 3
    assert predictions.folder_names([name]) == {name: r"M_udcfcller"}


def test_calibrated_probabilities_are_in_all_outputs(model, samples, tmp_path):
    curve = Curve((0.0, 1.0), (0.25, 0.25), volumes=4, positive=1, threshold=0.625)
    calibration = Calibration("zero_shot", {LABELS[3]: curve}, "4 volumes")
    classifier = dataclasses.replace(model.zero_shot_classifier(), calibration=calibration)
    prediction = predict_one(model, classifier, str(samples / "sample_1.nii.gz"), attribute=False)
    predictions.save(prediction, model, tmp_path, folder="sample_1", num_heatmaps=0)
    header, row = (tmp_path / "calibrated.csv").read_text().splitlines()
    assert header == f"VolumeName,{','.join(LABELS)}"
    name = prediction.case.volume_name
    assert row == f"{name},,,,0.25{',' * 14}"
    content = json.loads((tmp_path / "sample_1" / "prediction.json").read_text())
    assert content["calibrated"] == dict.fromkeys(LABELS) | {LABELS[3]: 0.25}
    assert content["thresholds"] == dict.fromkeys(LABELS) | {LABELS[3]: 0.625}
    assert not {"heatmaps", "ranks", "usual", "reference"} & content.keys()
    printed = predictions.format_prediction(prediction, model, is_only=True)
    name, header, first, *rows = printed.splitlines()
    assert re.split("  +", header)[1:] == ["calibrated", "score", "score threshold"]
    assert len(rows) == 17
    score = f"{content['probabilities'][LABELS[3]]:.3f}"
    assert first.split("  ", 1)[0] == LABELS[3]
    assert first.split()[-4:] == ["25", "%", score, "0.625"], "calibrated findings come first"
    values = [float(row.split()[-2]) for row in rows]
    assert values == sorted(values, reverse=True)
    assert "%" not in "".join(rows), "a score is no probability"
    line = predictions.format_prediction(prediction, model, is_only=False)
    assert line.startswith(f"{name}: {LABELS[3]} 25 % (score {score[:3]}")


def test_ranks_among_reference_volumes_are_in_all_outputs(export, samples, tmp_path):
    """Of findings in the user's words too."""
    others = write_samples(tmp_path / "others", count=4, seed=1).parent
    scan = samples / "sample_1.nii.gz"
    folder = shutil.copytree(export, tmp_path / "export")
    model = ctclip_jax.load(folder)
    volumes = [model.prepare(path).volume for path in (*others.glob("*.nii.gz"), scan)]
    *latents, own = model.encode_image(np.stack(volumes))
    latents = np.stack(latents)
    reference.save(folder, Reference("4 volumes of S, valid", latents))
    findings = tmp_path / "findings.csv"
    findings.write_text("finding\nEmphysema\nasdfgh banana\n")
    out = tmp_path / "out"
    done = run(scan, f"--model={folder}", f"--prompts={findings}", f"--out={out}")
    assert done.returncode == 0, done.stderr
    content = json.loads((out / "sample_1" / "prediction.json").read_text())
    assert content["reference"] == {"volumes": 4, "source": "4 volumes of S, valid"}
    loaded = ctclip_jax.load(folder)
    classifier = predict.build_classifier(loaded, kind="zero_shot", prompts=str(findings))
    probabilities = classifier.probabilities(latents)
    expected = (probabilities < classifier.probabilities(own[None])).mean(axis=0)
    names = list(classifier.names)
    assert content["ranks"] == dict(zip(names, expected, strict=True))
    usual = np.median(probabilities, axis=0)
    np.testing.assert_allclose([content["usual"][name] for name in names], usual, atol=1e-5)
    table = (out / "ranks.csv").read_text().splitlines()
    assert table == [
        f"VolumeName,{','.join(names)}",
        f"{scan},{','.join(map('{:g}'.format, expected))}",
    ]
    name, header, *rows, note, where = done.stdout.splitlines()
    assert re.split("  +", header)[1:] == ["score", "higher than (of 4)", "median score"]
    ranks = [int(row.split()[-3]) for row in rows]
    assert sorted(ranks) == sorted(100 * expected) and ranks == sorted(ranks, reverse=True)
    assert note == "higher than, median score: of 4 volumes of S, valid"
    assert where == f"{out}/scores.csv, {out}/ranks.csv, {out}/sample_1/"
    prediction = predict_one(loaded, classifier, str(scan), attribute=False)
    line = predictions.format_prediction(prediction, loaded, is_only=False)
    assert line.count(" % of 4)") == 2 and "(higher than " in line


def test_scans_are_read_in_order_and_few_at_a_time():
    started = []

    class Slow:
        def prepare(self, case):
            started.append(case.volume_name)
            if case.volume_name == "2":
                raise ZeroDivisionError("a bug")
            return case.volume_name

    cases = [CaseRecord(str(n), "", "", (Path(str(n)),)) for n in range(7)]
    cases.insert(5, dataclasses.replace(cases[0], volume_name="7", skip="no path"))
    results, reasons = [], []
    for result in scans.read_ahead(Slow(), cases, num_workers=2, on_skip=reasons.append):
        results.append(result)
        assert len(started) <= len(results) + len(reasons) + 2
    assert reasons == ["2: ZeroDivisionError: a bug", "7: no path"]
    assert [(case.volume_name, prepared) for case, prepared in results] == [
        (name, name) for name in "013456"
    ]


def test_the_next_scan_is_prepared_while_one_is_in_use():
    """Even by one thread."""
    is_prepared = {str(n): threading.Event() for n in range(3)}

    class Recorder:
        def prepare(self, case):
            is_prepared[case.volume_name].set()
            return case.volume_name

    cases = [CaseRecord(name, "", "", (Path(name),)) for name in is_prepared]
    results = scans.read_ahead(Recorder(), cases, num_workers=1, on_skip=pytest.fail)
    assert next(results)[1] == "0"
    assert is_prepared["1"].wait(10)
    assert [prepared for _, prepared in results] == ["1", "2"]
