"""Evaluation folders: round trip, rows paired by name, and one line for unusable input."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest

from ctclip_jax.evaluation import files, suite
from ctclip_jax.evaluation.protocol import ProtocolConfig
from data_pipelines.errors import InputError
from tests.eval_sets import make_eval_set


@pytest.fixture
def eval_set():
    labels = make_eval_set().labels.copy()
    labels[5, 1] = -1
    ages = np.array([f"{age:03d}Y" for age in range(20, 80)])
    return dataclasses.replace(make_eval_set(), labels=labels, subgroups={"age": ages})


@pytest.fixture
def folder(eval_set, tmp_path):
    """A folder with all files of an EvalSet."""
    files.write_eval_set(tmp_path, eval_set)
    np.savez(
        tmp_path / "latents.npz", names=eval_set.names, image=eval_set.image, text=eval_set.text
    )
    return tmp_path


def edit(path, change):
    """Rewrites a table through a function of its lines."""
    path.write_text("".join(change(path.read_text().splitlines(keepends=True))))


def test_round_trip(eval_set, folder):
    found = files.read_scores(folder)
    for name in ("names", "patients", "scans", "reports", "labels"):
        np.testing.assert_array_equal(getattr(found, name), getattr(eval_set, name))
    np.testing.assert_allclose(found.scores, eval_set.scores, rtol=1e-12)
    np.testing.assert_array_equal(found.subgroups["age"], eval_set.subgroups["age"])
    assert found.source == eval_set.source and found.notes == ()
    latents, arrays = files.read_latents(folder)
    np.testing.assert_array_equal(latents.image, eval_set.image)
    np.testing.assert_array_equal(latents.text, eval_set.text)
    assert latents.scores is None and arrays == {}


@pytest.mark.parametrize("name", ["labels.csv", "scores.csv", "cases.csv"])
def test_rows_are_paired_by_name(eval_set, folder, name):
    edit(folder / name, lambda lines: [lines[0], *reversed(lines[1:])])
    found = files.read_scores(folder)
    np.testing.assert_array_equal(found.names, eval_set.names)
    np.testing.assert_allclose(found.scores, eval_set.scores, rtol=1e-12)
    np.testing.assert_array_equal(found.labels, eval_set.labels)
    np.testing.assert_array_equal(found.reports, eval_set.reports)


def test_latents_are_paired_by_name(eval_set, folder):
    order = np.random.default_rng(0).permutation(len(eval_set.names))
    arrays = {"names": eval_set.names, "image": eval_set.image, "text": eval_set.text}
    mixed = {name: array[order] for name, array in arrays.items()}
    np.savez(folder / "latents.npz", **mixed, temperature=3.0)
    found, rest = files.read_latents(folder)
    np.testing.assert_array_equal(found.image, eval_set.image)
    assert rest == {"temperature": 3.0}


def test_patients_from_ct_rate_names(eval_set, folder):
    (folder / "cases.csv").unlink()
    found = files.read_scores(folder)
    assert found.patients[0] == "valid_0000" and found.scans[0] == "valid_0000/valid_0000_a"
    assert len(np.unique(found.patients)) == 30 and found.notes == ()


def test_other_names_are_separate_patients(tmp_path):
    rows = pd.DataFrame({"VolumeName": ["x", "y"], "Emphysema": [0, 1]})
    rows.to_csv(tmp_path / "labels.csv", index=False)
    rows.to_csv(tmp_path / "scores.csv", index=False)
    found = files.read_scores(tmp_path)
    assert found.patients.tolist() == ["x", "y"]
    metrics, _ = suite.evaluate(found, protocol=ProtocolConfig(prompts=(("{}", "no {}"),)))
    assert metrics["notes"][0].startswith("2 volumes have no known patient")


def test_volumes_without_labels_or_scores_are_noted(eval_set, folder):
    edit(folder / "labels.csv", lambda lines: [*lines[:-1], "valid_0999_a_1.nii.gz,1,0\n"])
    found = files.read_scores(folder)
    assert found.notes == (
        "labels.csv has 1 volumes without scores, which are not counted, such as"
        " valid_0999_a_1.nii.gz",
        "no labels for 1 volumes, such as valid_0029_a_1.nii.gz",
    )
    assert found.labels[-1].tolist() == [-1, -1]


def test_labels_are_the_common_columns(eval_set, folder):
    labels = pd.read_csv(folder / "labels.csv")
    labels.insert(1, "sex", 1)  # 0 and 1, or any numbers: no scores, no label
    labels.insert(2, "PatientID", range(len(labels)))
    labels.to_csv(folder / "labels.csv", index=False)
    scores = pd.read_csv(folder / "scores.csv").drop(columns="Cardiomegaly")
    scores.to_csv(folder / "scores.csv", index=False)
    found = files.read_scores(folder)
    assert found.label_names == ("Emphysema",)
    others = "'sex', 'PatientID', 'Cardiomegaly'"
    assert found.notes == (f"labels.csv: no label that has scores, and not used: {others}",)


def test_different_spelling_of_labels(folder):
    scores = pd.read_csv(folder / "scores.csv").rename(columns=str.lower)
    scores.rename(columns={"volumename": "VolumeName"}).to_csv(folder / "scores.csv", index=False)
    assert files.read_scores(folder).label_names == ("Emphysema", "Cardiomegaly")
    scores.columns = ["VolumeName", "Stent clip", "ILD"]
    scores.to_csv(folder / "scores.csv", index=False)
    with pytest.raises(InputError, match="it has 'Emphysema', .*, scores.csv 'Stent clip', 'ILD'"):
        files.read_scores(folder)
    labels = pd.read_csv(folder / "labels.csv")
    labels.columns = ["volume_name", "stent_clip", "ild "]
    labels.to_csv(folder / "labels.csv", index=False)
    assert files.read_scores(folder).label_names == ("Stent clip", "ILD")


def test_names_saved_as_objects(eval_set, folder):
    np.savez(folder / "latents.npz", names=eval_set.names.astype(object), image=eval_set.image)
    with pytest.raises(InputError, match="save names as strings: names.astype"):
        files.read_latents(folder)


def test_cases_without_patients_are_noted(eval_set, folder):
    cases = pd.read_csv(folder / "cases.csv").rename(columns={"patient": "PatientID"})
    cases.to_csv(folder / "cases.csv", index=False)
    assert files.read_scores(folder).notes == ("cases.csv has no column patient",)


@pytest.mark.parametrize(
    ("cells", "expected"),
    [("0,1", [0, 1]), ("False,TRUE", [0, 1]), ("1.0,-1", [1, -1]), (" 1,NaN", [1, -1])],
)
def test_label_cells(folder, eval_set, cells, expected):
    edit(
        folder / "labels.csv",
        lambda lines: [lines[0], f"{eval_set.names[0]},{cells}\n", *lines[2:]],
    )
    assert files.read_scores(folder).labels[0].tolist() == expected


def test_other_columns_are_noted(folder):
    for name in ("labels.csv", "scores.csv"):
        table = pd.read_csv(folder / name)
        table.insert(1, "AccessionNo", [f"A{row}" for row in range(len(table))])
        table.insert(2, "StudyDate", "1/2/2020" if name == "labels.csv" else "")
        table.to_csv(folder / name, index=False)
    found = files.read_scores(folder)
    assert found.label_names == ("Emphysema", "Cardiomegaly")
    assert found.notes == (
        "labels.csv: no label that has scores, and not used: 'AccessionNo', 'StudyDate'",
        "scores.csv: no label of labels.csv, and not used: 'AccessionNo', 'StudyDate'",
    )


@pytest.mark.parametrize("text", ["", "[1]", '{"a": '])
def test_broken_source(folder, text):
    (folder / "source.json").write_text(text)
    with pytest.raises(InputError, match="source.json: "):
        files.read_scores(folder)


def test_results_with_scores_or_latents(eval_set, folder):
    both = files.read_results(folder)
    assert both.scores is not None and both.image is not None
    (folder / "scores.csv").unlink()
    assert files.read_results(folder).scores is None
    files.write_eval_set(folder, eval_set)
    (folder / "latents.npz").unlink()
    assert files.read_results(folder).image is None


@pytest.mark.parametrize("cell", ["", "nan", "NaN"])
def test_missing_scores(eval_set, folder, cell):
    edit(folder / "scores.csv", lambda lines: [lines[0], f"{eval_set.names[0]},{cell},0.5\n"])
    assert np.isnan(files.read_scores(folder).scores[0, 0])


def first_score(cell):
    return lambda lines: [lines[0], f"{lines[1].partition(',')[0]},{cell},0\n"]


def repeated(lines):
    return [*lines, lines[1].rpartition(",")[0] + ",0.123\n"]


@pytest.mark.parametrize(
    ("name", "change", "message"),
    [
        ("scores.csv", repeated, "scores.csv: line 62: a second, different row .valid_0000_a_0"),
        ("labels.csv", lambda lines: [*lines, lines[1][:-4] + "9,9\n"], "a second, different row"),
        (
            "labels.csv",
            lambda lines: [lines[0], "valid_0000_a_0.nii.gz,0.7,0\n", *lines[2:]],
            "labels.csv: valid_0000_a_0.nii.gz: Emphysema: got '0.7'",
        ),
        (
            "labels.csv",
            lambda lines: ["VolumeName,Emphysema\n", f"{lines[1][:21]},x\n"],
            "of 0 and 1; Emphysema is 'x'",
        ),
        ("scores.csv", lambda lines: [lines[0]], "scores.csv: has no rows"),
        (
            "scores.csv",
            lambda lines: [lines[0], "valid_0000_a_0.nii.gz,7,0\n"],
            "gz: Emphysema: got 7, expected a probability",
        ),
        (
            "scores.csv",
            lambda lines: [lines[0], "valid_0000_a_0.nii.gz,x,0\n"],
            "gz: Emphysema: got x, expected a probability",
        ),
        (
            "scores.csv",
            lambda lines: ["VolumeName,B\n", "a,1\n"],
            "labels of volumes such as valid_0000_a_0.nii.gz",
        ),
        (
            "labels.csv",
            lambda lines: ["VolumeName,B\n", f"{lines[1][:21]},1\n"],
            "no column of a label that has scores",
        ),
        ("labels.csv", lambda lines: ["Name,B\n", "a,1\n"], "labels.csv: no column VolumeName"),
    ],
)
def test_unusable_tables(folder, name, change, message):
    edit(folder / name, change)
    with pytest.raises(InputError, match=message) as error:
        files.read_scores(folder)
    assert "\n" not in str(error.value)


def arrays_of(eval_set, **changes):
    return {"names": eval_set.names, "image": eval_set.image, "text": eval_set.text} | changes


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: arrays_of(s, names=np.repeat(s.names[:30], 2)), "two volumes of this name"),
        (lambda s: arrays_of(s, image=s.image[1:]), "59, 16. for 60 names"),
        (lambda s: arrays_of(s, text=s.text[:, 1:]), "different sizes, 16 and 15"),
        (lambda s: arrays_of(s, image=np.where(s.image == s.image[7, 0], np.nan, s.image)),
         "image: valid_0003_a_1.nii.gz: latent"),
        (lambda s: arrays_of(s, text=s.text * (np.arange(60) != 4)[:, None]),
         "text: valid_0002_a_0.nii.gz: latent"),
        (lambda s: arrays_of(s, names=np.array("x")), "names: got shape .., expected"),
        (lambda s: arrays_of(s, image=s.names), "image: got <U21 of shape .60,. for 60 names"),
        (lambda s: {"image": s.image}, "no array 'names'; it has image"),
        (lambda s: {"names": s.names[:0], "image": s.image[:0]}, "names: got shape .0,., expected"),
    ],
)  # fmt: skip
def test_unusable_latents(eval_set, folder, change, message):
    np.savez(folder / "latents.npz", **change(eval_set))
    with pytest.raises(InputError, match=message) as error:
        files.read_latents(folder)
    assert "\n" not in str(error.value)


def test_missing_or_broken_files(eval_set, folder):
    (folder / "latents.npz").write_bytes(b"PK\x03\x04 torn")
    with pytest.raises(InputError, match="latents.npz: not a file of arrays"):
        files.read_latents(folder)
    (folder / "latents.npz").unlink()
    with pytest.raises(InputError, match="latents.npz: no such file"):
        files.read_latents(folder)
    (folder / "labels.csv").unlink()
    with pytest.raises(InputError, match="labels.csv: no such table"):
        files.read_scores(folder)


def test_latents_are_normalized(eval_set, folder):
    np.savez(folder / "latents.npz", **arrays_of(eval_set, image=3 * eval_set.image))
    found, _ = files.read_latents(folder)
    np.testing.assert_allclose(found.image, eval_set.image, atol=1e-6)


def test_missing_reports_are_nan(eval_set, folder):
    text = eval_set.text.copy()
    text[3] = np.nan
    np.savez(folder / "latents.npz", **arrays_of(eval_set, text=text))
    assert np.isnan(files.read_latents(folder)[0].text).all(axis=1).nonzero()[0].tolist() == [3]
    np.savez(folder / "latents.npz", **arrays_of(eval_set, text=text * np.nan))
    assert files.read_latents(folder)[0].text is None


def test_table_of_estimates(tmp_path):
    estimate = {"value": 0.5, "low": 0.4, "high": 0.6}
    missing = {"value": None, "reason": "one class"}
    files.write_metrics(tmp_path, {"detection": {"macro": {"auroc": estimate, "f1": missing}}})
    table = pd.read_csv(tmp_path / "figures.csv", index_col="figure")
    assert table.loc["detection/macro/auroc", ["value", "low", "high"]].tolist() == [0.5, 0.4, 0.6]
    assert table.loc["detection/macro/f1", "reason"] == "one class"
    assert (
        json.loads((tmp_path / "metrics.json").read_text())["detection"]["macro"]["f1"] == missing
    )
