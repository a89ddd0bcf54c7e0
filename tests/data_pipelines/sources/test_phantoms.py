"""Synthetic chest CTs: layout, determinism, signs that are where they should be, true reports."""

import csv
import re

import nibabel as nib
import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources import ct_rate
from data_pipelines.sources.phantoms import wording, write_tree
from data_pipelines.sources.phantoms.abnormalities import PREVALENCE, SIGNS
from data_pipelines.sources.phantoms.anatomy import random_anatomy, random_grid
from data_pipelines.sources.phantoms.chest import draw_chest
from data_pipelines.sources.phantoms.dataset import Task, draw, plan
from data_pipelines.sources.phantoms.findings import Finding
from data_pipelines.sources.phantoms.phrases import ABSENT, CONCLUDED, PRESENT
from data_pipelines.sources.phantoms.vocabulary import VOCABULARY

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
    return healthy, *SIGNS[label](healthy, rng)


def files_of(root):
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


def test_the_same_seed_gives_the_same_bytes_with_any_number_of_processes(tree, tmp_path):
    write_tree(tmp_path, train_scans=12, valid_scans=3, seed=5, processes=2)
    assert files_of(tmp_path) == files_of(tree)


def test_a_file_in_place_of_the_folder_is_an_input_error(tmp_path):
    (tmp_path / "out").write_text("")
    with pytest.raises(InputError, match="out: a file"):
        write_tree(tmp_path / "out", train_scans=1, valid_scans=1, seed=0, processes=1)


def test_another_seed_gives_other_scans():
    first, second = (draw(Task("", "train", seed, 1, 0)) for seed in (0, 1))
    assert first.report != second.report


def test_splits_are_disjoint_streams():
    train, valid = (draw(Task("", split, 0, 1, 0)) for split in ("train", "valid"))
    assert train.report != valid.report


def test_a_longer_tree_starts_with_the_shorter_one():
    short, long = (plan("", "train", scans=scans, seed=0) for scans in (20, 60))
    assert long[:20] == short


def test_some_patients_come_back_with_the_same_anatomy():
    tasks = plan("", "train", scans=60, seed=0)
    assert any(task.visit for task in tasks)
    assert len({task.name for task in tasks}) == 60


@pytest.mark.parametrize("split", ["train", "valid"])
def test_the_tree_is_one_of_ct_rate(tree, split):
    cases = ct_rate.read_collection(tree, split).cases
    assert len({case.scan for case in cases}) == {"train": 12, "valid": 3}[split]
    assert all(case.path().is_file() and not case.skip for case in cases)
    assert len(list((tree / "dataset" / split).rglob("*.nii.gz"))) == len(cases)


def test_reconstructions_share_labels_and_report_but_not_voxels(tree):
    scans = {}
    for case in ct_rate.read_collection(tree, "train").cases:
        scans.setdefault(case.scan, []).append(case)
    repeated = [cases for cases in scans.values() if len(cases) > 1]
    assert repeated
    for first, second, *_ in repeated:
        assert first.findings == second.findings and first.labels == second.labels
        assert first.path().read_bytes() != second.path().read_bytes()


def test_stored_values_are_hu_minus_the_intercept(tree):
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


@pytest.mark.parametrize("label", LABELS)
def test_each_sign_changes_the_chest_and_leaves_the_healthy_one_alone(label):
    for seed in range(3):
        rng = np.random.default_rng(seed)
        anatomy = random_anatomy(rng)
        healthy = draw_chest(random_grid(rng, anatomy), anatomy, rng)
        before = healthy.hu.copy()
        chest, _ = SIGNS[label](healthy, rng)
        assert np.array_equal(healthy.hu, before)
        change = np.abs(chest.hu - healthy.hu)
        assert chest.hu.dtype == np.float32 and np.isfinite(chest.hu).all()
        assert change.max() > 60 and (change > 30).sum() >= 5


@pytest.mark.parametrize("label", LUNG_SIGNS)
def test_lung_signs_stay_in_the_lungs(label):
    healthy, chest, _ = chest_with(label, 1)
    change = np.abs(chest.hu - healthy.hu)
    assert change[healthy.lungs > 0].sum() > 0.98 * change.sum()


@pytest.mark.parametrize("label", ["Cardiomegaly", "Pericardial effusion", "Hiatal hernia"])
def test_heart_and_hernia_displace_lung(label):
    healthy, chest, _ = chest_with(label, 2)
    assert chest.lungs.sum() < healthy.lungs.sum()


def test_emphysema_lowers_the_attenuation_of_the_lungs():
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


def test_the_side_in_words_is_the_side_drawn():
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
    assert set(SIGNS) == set(PREVALENCE) == set(VOCABULARY) == set(LABELS)
    for words in VOCABULARY.values():
        assert len({*PRESENT, *words.present}) >= 5 and len({*ABSENT, *words.absent}) >= 5
    assert all(0.15 <= share <= 0.4 for share in PREVALENCE.values())


@pytest.mark.parametrize("label", LABELS)
def test_statements_affirm_and_denials_deny(label):
    rng = np.random.default_rng(0)
    negation = re.compile(r"\b(no|not|free|normal|thin|clear|unremarkable|homogeneous)\b", re.I)
    _, _, finding = chest_with(label, 5)
    for _ in range(60):
        for patterns in (PRESENT, CONCLUDED):
            sentence = wording.state(label, finding, patterns, rng)
            affirmed = sentence.replace("above normal", "")
            assert not negation.search(affirmed) and "{" not in sentence and "  " not in sentence
    denials = {wording.deny(label, rng) for _ in range(60)}
    assert len(denials) > 8 and all("{" not in denial for denial in denials)


@pytest.mark.parametrize("number", [1, 3])
def test_a_finding_of_any_number_goes_by_its_own_name(number):
    rng, finding = np.random.default_rng(0), Finding(number=number)
    stated = [wording.state("Lung opacity", finding, CONCLUDED, rng) for _ in range(200)]
    assert 40 < sum("lung opacity" in sentence.lower() for sentence in stated) < 160
    assert any("opacities" in sentence for sentence in stated) == (number > 1)


def test_a_report_names_every_abnormality_and_both_parts_vary():
    findings = {label: Finding(number=1) for label in ("Cardiomegaly", "Emphysema")}
    reports = [
        wording.write_report(findings, np.random.default_rng(seed), contrast=False, thickness=8)
        for seed in range(40)
    ]
    assert len({report.findings for report in reports}) == 40
    assert len({report.impressions for report in reports}) > 30
    heart = re.compile(r"cardi|heart", re.I)
    assert all(heart.search(report.findings) for report in reports)


def test_reports_have_a_plausible_length(tree):
    for case in ct_rate.read_collection(tree, "train").cases:
        assert 6 <= len(case.findings.split(". ")) <= 24
