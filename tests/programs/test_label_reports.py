"""The labeler of reports: its tables, from a table and from shards, and what it refuses."""

import csv
import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

import ctclip_jax
from ctclip_jax.evaluation import files
from ctclip_jax.label_reports import label_split, label_table, read_table_of_reports
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, report_text
from data_pipelines.tokenizers import load_tokenizer
from tests.records import make_record, settings
from tests.tiny_run import tiny_config, write_tiny_export, write_tiny_shards


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48))


@pytest.fixture(scope="module")
def model(folder):
    config = dataclasses.replace(tiny_config(folder).model, num_report_labels=len(LABELS))
    variables = jax.jit(CTCLIP(config).init)(jax.random.key(0))
    variables["params"]["report_classifier"]["bias"] = np.linspace(-1, 1, 18, dtype=np.float32)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    return ctclip_jax.Model(config, variables, tokenizer=tokenizer, report="joined")


def write(path, rows: list[dict]):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_a_table_gets_probabilities_and_labels(model, tmp_path):
    table = write(
        tmp_path / "reports.csv",
        [
            {"VolumeName": "b_1", "Findings_EN": "Emphysema is seen.", "Impressions_EN": ""},
            {"VolumeName": "a_1", "Findings_EN": "", "Impressions_EN": "Normal chest."},
        ],
    )
    assert label_table(model, table, tmp_path / "out") == 2
    scores, predicted = (
        pd.read_csv(tmp_path / "out" / name, index_col="VolumeName")
        for name in ("scores.csv", "predicted.csv")
    )
    classifier = model.variables["params"]["report_classifier"]
    latents = model.encode_text(["Emphysema is seen.", "Normal chest."])
    logits = latents @ np.asarray(classifier["kernel"]) + np.asarray(classifier["bias"])
    assert tuple(scores.columns) == LABELS
    np.testing.assert_allclose(scores.loc[["b_1", "a_1"]], 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert ((scores > 0.5).astype(int) == predicted).all(axis=None)
    assert 0 < predicted.to_numpy().sum() < 36


def test_a_split_can_be_judged(model, folder, tmp_path):
    count = label_split(model, str(folder), "train", tmp_path)
    study = files.read_scores(tmp_path)
    rows = {row["volume_name"]: row for row in shards.read_reports(folder, "train")}
    assert count == len(study.names) == len(rows)
    for name, labels, scores in zip(study.names, study.labels, study.scores, strict=True):
        row = rows[name]
        np.testing.assert_array_equal(labels, row["labels"])
        text = report_text(row["findings"], row["impressions"])
        np.testing.assert_allclose(scores, model.label_reports([text])[0], atol=1e-5)


def test_a_volume_without_a_report_gets_no_labels(model, tmp_path):
    """And of shards without labels, scores.csv has those of all 18."""
    volume, names = np.zeros((24, 48, 48), np.int16), ("a.nii.gz", "b.nii.gz")
    plan = settings((24, 48, 48)) | {"labels": []}
    (shard,) = shards.begin(tmp_path / "shards", "valid", settings=plan)
    texts = (("Emphysema.", ""), ("Not given.", ""))
    made = [
        make_record(name, volume, labels=np.zeros(0, np.int8), findings=f, impressions=i)
        for name, (f, i) in zip(names, texts, strict=True)
    ]
    shards.write_shard(shard, made)
    shards.finish(tmp_path / "shards")
    assert label_split(model, str(tmp_path / "shards"), "valid", tmp_path / "out") == 1
    for name in ("scores.csv", "predicted.csv"):
        table = pd.read_csv(tmp_path / "out" / name, index_col="VolumeName")
        assert tuple(table.columns) == LABELS and list(table.index) == ["a.nii.gz"]


def test_the_program(folder, tmp_path):
    export = write_tiny_export(tmp_path, num_report_labels=len(LABELS))
    command = [sys.executable, "-m", "ctclip_jax.label_reports", f"--model={export}"]
    command += [f"--shards={folder}", "--split=train", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"24 reports: {tmp_path / 'out' / 'predicted.csv'}" in done.stdout
    table = pd.read_csv(tmp_path / "out" / "scores.csv", index_col="VolumeName")
    rows = {row["volume_name"]: row for row in shards.read_reports(folder, "train")}
    texts = [report_text(rows[n]["findings"], rows[n]["impressions"]) for n in table.index]
    np.testing.assert_allclose(table, ctclip_jax.load(export).label_reports(texts), atol=1e-5)
    done = subprocess.run([*command, "--reports=x.csv"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: give --reports or --shards\n")


def test_what_cannot_be_labeled_is_one_line(model, tmp_path):
    path = tmp_path / "reports.csv"
    write(path, [{"VolumeName": "a", "text": "x"}])
    with pytest.raises(InputError, match="no column of reports, Findings_EN and Impressions_EN or"):
        read_table_of_reports(path)
    write(path, [{"volume_name": "a", "report": "Normal."}, {"volume_name": "b", "report": ""}])
    with pytest.raises(InputError, match=r"reports.csv: b: no report"):
        read_table_of_reports(path)
    write(path, [{"volume_name": "b", "findings": "Not given.", "impressions": ""}])
    with pytest.raises(InputError, match=r"reports.csv: b: no report"):
        read_table_of_reports(path)
    other = {
        name: each for name, each in model.variables["params"].items() if "classifier" not in name
    }
    config = dataclasses.replace(model.config, num_report_labels=0)
    bare = ctclip_jax.Model(config, model.variables | {"params": other}, tokenizer=model.tokenizer)
    with pytest.raises(InputError, match="this model has no report_classifier"):
        bare.label_reports(["Normal."])
