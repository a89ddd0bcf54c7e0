"""label_reports: tables of labels, from a table of reports and from shards."""

import csv
import dataclasses
import subprocess
import sys

import jax
import numpy as np
import pandas as pd
import pytest

import ctclip_jax
from ctclip_jax import label_reports
from ctclip_jax.evaluation import files
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
    return ctclip_jax.Model(config, variables, tokenizer=tokenizer, report_format="joined")


def write(path, rows: list[dict]):
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_table_of_reports(model, tmp_path):
    table = write(
        tmp_path / "reports.csv",
        [
            {"VolumeName": "b_1", "Findings_EN": "Emphysema is seen.", "Impressions_EN": ""},
            {"VolumeName": "a_1", "Findings_EN": "", "Impressions_EN": "Normal chest."},
        ],
    )
    texts = label_reports.read_table_texts(table, form="joined")
    assert texts == {"b_1": "Emphysema is seen.", "a_1": "Normal chest."}
    label_reports.label(model, texts, tmp_path / "out")
    scores, predicted = (
        pd.read_csv(tmp_path / "out" / name, index_col="VolumeName")
        for name in ("scores.csv", "predicted.csv")
    )
    classifier = model.variables["params"]["report_classifier"]
    latents = model.encode_text(["Emphysema is seen.", "Normal chest."])
    logits = latents @ np.asarray(classifier["kernel"]) + np.asarray(classifier["bias"])
    assert tuple(scores.columns) == LABELS and list(scores.index) == ["b_1", "a_1"]
    np.testing.assert_allclose(scores, 1 / (1 + np.exp(-logits)), atol=1e-6)
    assert ((scores > 0.5).astype(int) == predicted).all(axis=None)
    assert 0 < predicted.to_numpy().sum() < 36


def test_a_volume_without_a_report_gets_no_labels(tmp_path):
    volume, names = np.zeros((24, 48, 48), np.int16), ("a.nii.gz", "b.nii.gz")
    plan = settings((24, 48, 48)) | {"labels": []}
    (shard,) = shards.begin(tmp_path / "shards", "valid", settings=plan)
    texts = (("Emphysema.", ""), ("Not given.", ""))
    records = [
        make_record(name, volume, labels=np.zeros(0, np.int8), findings=f, impressions=i)
        for name, (f, i) in zip(names, texts, strict=True)
    ]
    shards.write_shard(shard, records)
    shards.finish(tmp_path / "shards")
    split = label_reports.read_split(str(tmp_path / "shards"), "valid", form="joined")
    assert split.names.tolist() == ["a.nii.gz"] and split.reports.tolist() == ["Emphysema."]
    assert split.label_names == ()
    files.write_eval_set(tmp_path / "out", split)


def test_program(folder, tmp_path):
    """Of shards; the scores can be evaluated against the known labels beside them."""
    export = write_tiny_export(tmp_path, num_report_labels=len(LABELS))
    command = [sys.executable, "-m", "ctclip_jax.label_reports", f"--model={export}"]
    command += [f"--shards={folder}", "--split=train", f"--out={tmp_path / 'out'}"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert f"24 reports: {tmp_path / 'out' / 'predicted.csv'}" in done.stdout
    evaluation = files.read_scores(tmp_path / "out")
    rows = {row["volume_name"]: row for row in shards.read_reports(folder, "train")}
    texts = [report_text(rows[n]["findings"], rows[n]["impressions"]) for n in evaluation.names]
    expected = ctclip_jax.load(export).label_reports(texts)
    np.testing.assert_allclose(evaluation.scores, expected, atol=1e-5)
    labels = [rows[n]["labels"] for n in evaluation.names]
    np.testing.assert_array_equal(evaluation.labels, labels)
    done = subprocess.run([*command, "--reports=x.csv"], capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (2, "error: pass --reports or --shards\n")


def test_invalid_input_is_an_error(model, tmp_path):
    path = tmp_path / "reports.csv"
    write(path, [{"VolumeName": "a", "text": "x"}])
    with pytest.raises(InputError, match="reports.csv: no column of reports"):
        label_reports.read_table_texts(path, form="joined")
    write(path, [{"volume_name": "a", "report": "Normal."}, {"volume_name": "b", "report": ""}])
    with pytest.raises(InputError, match=r"reports.csv: b: no report"):
        label_reports.read_table_texts(path, form="joined")
    write(path, [{"volume_name": "b", "findings": "Not given.", "impressions": ""}])
    with pytest.raises(InputError, match=r"reports.csv: b: no report"):
        label_reports.read_table_texts(path, form="joined")
    path = tmp_path / "renamed.jsonl"
    path.write_text('{"path": "a", "report": "Normal."}\n{"path": "b", "text": "Normal."}\n')
    with pytest.raises(InputError, match=r"renamed.jsonl: b: no report"):
        label_reports.read_table_texts(path, form="joined")
    other = {
        name: array for name, array in model.variables["params"].items() if "classifier" not in name
    }
    config = dataclasses.replace(model.config, num_report_labels=0)
    bare = ctclip_jax.Model(config, model.variables | {"params": other}, tokenizer=model.tokenizer)
    with pytest.raises(InputError, match="report_classifier"):
        bare.label_reports(["Normal."])
