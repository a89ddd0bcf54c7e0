"""Synthetic chest CTs: layout, determinism, place and density of signs, truth of reports."""

import csv
import re
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources import ct_rate
from data_pipelines.sources.phantoms.anatomy import random_anatomy, random_grid
from data_pipelines.sources.phantoms.chest import draw_chest
from data_pipelines.sources.phantoms.layout import ExamKey, draw, plan, write_samples, write_tree
from data_pipelines.sources.phantoms.report_writer import (
    ANY_LABEL,
    BY_LABEL,
    affirm,
    deny,
    write_report,
)
from data_pipelines.sources.phantoms.signs import SIGNS, Finding

LUNG_SIGNS = (
    "Emphysema", "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela",
    "Mosaic attenuation pattern", "Peribronchial thickening", "Consolidation", "Bronchiectasis",
    "Interlobular septal thickening", "Pleural effusion",
)  # fmt: skip


def chest_with(label, seed):
    """A healthy chest, the same chest with the sign of `label`, and the finding."""
    rng = np.random.default_rng(seed)
    anatomy = random_anatomy(rng)
    healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
    return healthy, *SIGNS[label].draw(healthy, rng)


def read_files(root):
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in sorted(root.rglob("*"))
        if path.is_file()
    }


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    root = tmp_path_factory.mktemp("phantoms")
    write_tree(root, train_scans=12, valid_scans=3, seed=5, processes=1)
    return root


def test_same_seed_same_bytes_for_any_number_of_processes(tree, tmp_path):
    write_tree(tmp_path, train_scans=12, valid_scans=3, seed=5, processes=2)
    assert read_files(tmp_path) == read_files(tree)


def test_phantoms_are_not_prepared_as_patients(tree, tmp_path):
    command = [sys.executable, "-m", "data_pipelines.prepare", f"--data={tree}"]
    done = subprocess.run([*command, f"--out={tmp_path / 'out'}"], capture_output=True, text=True)
    assert (done.returncode, list(tmp_path.iterdir())) == (2, [])
    assert done.stderr == (
        f"error: --source: got ct_rate, but {tree} holds phantoms; pass phantoms\n"
    )


def test_output_path_that_is_a_file_is_rejected(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: "):
        write_tree(tmp_path / "out", train_scans=1, valid_scans=1, seed=0, processes=1)


@pytest.mark.parametrize("other", [ExamKey("train", 1, 1, 0), ExamKey("valid", 0, 1, 0)])
def test_seeds_and_splits_are_disjoint_streams(other):
    assert draw(ExamKey("train", 0, 1, 0)).report != draw(other).report


def test_larger_dataset_starts_with_the_smaller_one():
    short, long = (plan("train", scans=scans, seed=0) for scans in (20, 60))
    assert long[:20] == short


def test_some_patients_have_several_exams():
    keys = plan("train", scans=60, seed=0)
    assert any(key.visit for key in keys)
    assert len({key.name for key in keys}) == 60


@pytest.mark.parametrize("split", ["train", "valid"])
def test_layout_is_read_by_ct_rate(tree, split):
    cases = ct_rate.read_collection(tree, split).cases
    assert len({case.scan for case in cases}) == {"train": 12, "valid": 3}[split]
    assert all(case.path().is_file() and not case.skip for case in cases)
    assert len(list((tree / "dataset" / split).rglob("*.nii.gz"))) == len(cases)


def test_reconstructions_of_an_exam_share_labels_and_report_only(tree):
    scans = {}
    for case in ct_rate.read_collection(tree, "train").cases:
        scans.setdefault(case.scan, []).append(case)
    repeated = [cases for cases in scans.values() if len(cases) > 1]
    assert repeated
    for first, second, *_ in repeated:
        assert first.findings == second.findings and first.labels == second.labels
        assert first.path().read_bytes() != second.path().read_bytes()


def test_stored_values_are_hu_minus_intercept(tree):
    with open(tree / "dataset/metadata/train_metadata.csv", newline="") as file:
        rows = {row["VolumeName"]: row for row in csv.DictReader(file)}
    for case in ct_rate.read_collection(tree, "train").cases:
        image = nib.load(case.path())
        stored, row = np.asarray(image.dataobj), rows[case.volume_name]
        shape = tuple(int(row[name]) for name in ("Columns", "Rows", "NumberofSlices"))
        assert stored.dtype == np.int16 and stored.shape == shape
        middle = stored[shape[0] // 4 : -shape[0] // 4, shape[1] // 4 : -shape[1] // 4]
        hu = middle + case.intercept
        assert -1024 <= hu.min() < -900 and 100 < hu.max() <= 3071
        assert image.header["sform_code"] == image.header["qform_code"] == 0


def test_samples_are_the_valid_exams_in_hu_with_a_full_header(tree, tmp_path):
    manifest = write_samples(tmp_path, count=3, seed=5)
    with manifest.open(newline="") as file:
        rows = list(csv.DictReader(file))
    cases = {case.volume_name: case for case in ct_rate.read_collection(tree, "valid").cases}
    assert [row["path"] for row in rows] == [f"sample_{number}.nii.gz" for number in (1, 2, 3)]
    for row, key in zip(rows, plan("valid", scans=3, seed=5), strict=True):
        case = cases[f"{key.name}_1.nii.gz"]
        assert (row["findings"], row["impressions"]) == (case.findings, case.impressions)
        image = nib.load(tmp_path / row["path"])
        stored = np.asarray(nib.load(case.path()).dataobj)
        assert np.array_equal(np.asarray(image.dataobj), stored + np.int16(case.intercept))
        assert nib.aff2axcodes(image.affine) == ("L", "P", "S")


@pytest.mark.parametrize("label", LABELS)
def test_sign_changes_a_copy_of_the_chest(label):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        anatomy = random_anatomy(rng)
        healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
        before = healthy.hu.copy()
        chest, _ = SIGNS[label].draw(healthy, rng)
        assert np.array_equal(healthy.hu, before)
        change = np.abs(chest.hu - healthy.hu)
        assert chest.hu.dtype == np.float32 and np.isfinite(chest.hu).all()
        assert change.max() > 60 and (change > 30).sum() >= 5


@pytest.mark.parametrize("label", LUNG_SIGNS)
def test_lung_sign_stays_in_the_lungs(label):
    healthy, chest, _ = chest_with(label, 1)
    change = np.abs(chest.hu - healthy.hu)
    assert change[healthy.lungs > 0].sum() > 0.98 * change.sum()


@pytest.mark.parametrize("label", ["Cardiomegaly", "Pericardial effusion", "Hiatal hernia"])
def test_enlarged_heart_and_hernia_displace_lung(label):
    healthy, chest, _ = chest_with(label, 2)
    assert chest.lungs.sum() < healthy.lungs.sum()


def test_emphysema_lowers_lung_attenuation():
    healthy, chest, _ = chest_with("Emphysema", 3)
    inside = healthy.lungs > 0.99
    assert chest.hu[inside].mean() < healthy.hu[inside].mean() - 15


def test_calcifications_and_metal_are_bright():
    brightest = {
        label: chest_with(label, 4)[1].hu.max()
        for label in ("Arterial wall calcification", "Coronary artery wall calcification")
    }
    assert all(value > 300 for value in brightest.values()), brightest
    assert chest_with("Medical material", 4)[1].hu.max() > 600


def test_side_in_words_is_the_side_drawn():
    sides = set()
    for seed in range(8):
        healthy, chest, finding = chest_with("Pleural effusion", seed)
        fluid = np.abs(chest.hu - healthy.hu)
        right = fluid[np.broadcast_to(healthy.grid.x < 0, fluid.shape)].sum() / fluid.sum()
        expected = {"on the right": right > 0.95, "on the left": right < 0.05}
        assert expected.get(finding.where, 0.2 < right < 0.8), (seed, finding, right)
        sides.add(finding.where)
    assert len(sides) > 1


def test_every_label_has_a_sign_a_prevalence_and_five_wordings_each_way():
    assert set(SIGNS) == set(BY_LABEL) == set(LABELS)
    for label, words in BY_LABEL.items():
        for style in ("present", "absent"):
            assert len({*ANY_LABEL[style], *words[style]}) >= 5, (label, style)
    assert all(0.15 <= sign.prevalence <= 0.4 for sign in SIGNS.values())


@pytest.mark.parametrize("label", LABELS)
def test_affirmations_affirm_and_denials_deny(label):
    rng = np.random.default_rng(0)
    negation = re.compile(r"\b(no|not|free|normal|thin|clear|unremarkable|homogeneous)\b", re.I)
    _, _, finding = chest_with(label, 5)
    for _ in range(60):
        for style in ("present", "concluded"):
            sentence = affirm(label, finding, style, rng)
            without_idiom = sentence.replace("above normal", "")
            assert not negation.search(without_idiom)
            assert "{" not in sentence and "  " not in sentence
    denials = {deny(label, rng) for _ in range(60)}
    assert len(denials) > 8 and all("{" not in denial for denial in denials)


@pytest.mark.parametrize("number", [1, 3])
def test_plural_nouns_need_several_findings(number):
    rng, finding = np.random.default_rng(0), Finding(number=number)
    sentences = [affirm("Lung opacity", finding, "concluded", rng) for _ in range(200)]
    assert 40 < sum("lung opacity" in sentence.lower() for sentence in sentences) < 160
    assert any("opacities" in sentence for sentence in sentences) == (number > 1)


def test_report_names_every_abnormality_and_varies():
    findings = {label: Finding(number=1) for label in ("Cardiomegaly", "Emphysema")}
    reports = [
        write_report(findings, np.random.default_rng(seed), has_contrast=False, slice_spacing=8)
        for seed in range(40)
    ]
    assert len({report.findings for report in reports}) == 40
    assert len({report.impressions for report in reports}) > 30
    heart = re.compile(r"cardi|heart", re.I)
    assert all(heart.search(report.findings) for report in reports)


def test_reports_have_a_plausible_length(tree):
    for case in ct_rate.read_collection(tree, "train").cases:
        assert 6 <= len(case.findings.split(". ")) <= 24
