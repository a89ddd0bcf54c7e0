"""The evaluation binary on a tiny model and tiny shards: its files, and one line for bad input."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pandas as pd
import pytest
from records import make_record, settings

from configs import phantoms
from ctclip_jax import evaluate
from ctclip_jax.checkpoints import save_export
from ctclip_jax.config import TrainConfig, from_dict
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, split_sentences
from data_pipelines.tokenizers import train_sentencepiece

SHAPE, VOLUMES = (8, 16, 16), 14


def record(index: int) -> shards.Record:
    """Volume `index`: two reconstructions a scan; the labels are the bits of the scan's number."""
    rng = np.random.default_rng(index)
    scan = index // 2
    labels = np.array([(scan >> i) & 1 if i < 3 else 0 for i in range(18)], np.int8)
    named = [label for label, present in zip(LABELS, labels, strict=True) if present]
    return make_record(
        f"valid_{scan}_a_{index % 2 + 1}.nii.gz",
        rng.integers(-16000, 16000, SHAPE).astype(np.int16),
        labels=labels,
        findings=f"Scan {scan}. " + " ".join(f"{name} is seen." for name in named),
        impressions="Not given.",
    )


@pytest.fixture(scope="module")
def prepared(tmp_path_factory):
    """A folder of shards with a tokenizer."""
    folder = tmp_path_factory.mktemp("shards")
    records = [record(index) for index in range(VOLUMES)]
    (shard,) = shards.begin(folder, "valid", settings=settings(SHAPE))
    shards.write_shard(shard, records)
    shards.finish(folder)
    texts = [row["findings"] for row in records] + [f"{label} is present." for label in LABELS]
    train_sentencepiece(texts, folder / "tokenizer.model", 100)
    return folder


@pytest.fixture(scope="module")
def workdir(prepared, tmp_path_factory):
    """A folder with the export of a tiny model of random weights."""
    config = CTCLIPConfig(
        image=CTViTConfig(
            dim=16,
            image_size=SHAPE[1:],
            patch_size=(8, 8),
            frames=SHAPE[0],
            temporal_patch_size=4,
            spatial_depth=1,
            temporal_depth=1,
            heads=1,
            dim_head=16,
            codebook_size=8,
        ),
        text=BertConfig(
            vocab_size=100,
            hidden_size=16,
            num_layers=1,
            num_heads=2,
            intermediate_size=16,
            max_positions=32,
        ),
        dim_latent=8,
    )
    folder = tmp_path_factory.mktemp("workdir")
    save_export(
        folder / "export",
        CTCLIP(config).init(jax.random.key(0)),
        config={"model": dataclasses.asdict(config), "max_length": 32},
        tokenizer=prepared / "tokenizer.model",
    )
    return folder


def experiment(prepared, **evaluation) -> TrainConfig:
    """The demo's configuration with other shards."""
    config = phantoms.get_config("smoke").to_dict()
    config["data"]["shards"] = str(prepared)
    config["evaluation"] |= {"batch_size": 4, "max_length": 24, **evaluation}
    return from_dict(TrainConfig, config)


@pytest.fixture(scope="module")
def out(prepared, workdir):
    """The folder of a finished evaluation."""
    evaluate.evaluate(
        experiment(prepared), model_path=workdir / "export", out=workdir / "evaluation"
    )
    return workdir / "evaluation"


def test_metrics_file_has_the_documented_keys(out):
    metrics = json.loads((out / "metrics.json").read_text())
    assert metrics["volumes"] == VOLUMES and metrics["scans"] == VOLUMES // 2
    assert metrics["prompts"] == "inference"
    assert 0 <= metrics["zero_shot"]["macro"]["auroc"] <= 1
    assert metrics["zero_shot"]["macro"]["labels"] == 3
    assert list(metrics["zero_shot"]["per_label"]) == list(LABELS)
    for name in ("auroc", "f1_weighted", "accuracy", "precision", "threshold"):
        assert isinstance(metrics["zero_shot"]["per_label"]["Medical material"][name], float)
        assert metrics["zero_shot"]["per_label"]["Emphysema"][name] is None
    retrieval = metrics["retrieval"]
    assert retrieval["report_to_volume"]["chance@10"] == pytest.approx(10 / VOLUMES)
    assert retrieval["report_to_volume"]["pool"] == VOLUMES
    assert 0 <= retrieval["report_to_volume"]["recall@5"] <= 1
    assert 0 <= retrieval["volume_to_volume"]["label_overlap@5"] <= 1


def test_tables_and_latents_have_every_volume_once(out):
    scores = pd.read_csv(out / "scores.csv", index_col="VolumeName")
    labels = pd.read_csv(out / "labels.csv", index_col="VolumeName")
    latents = np.load(out / "latents.npz")
    expected = [record(index) for index in range(VOLUMES)]
    assert list(scores.columns) == list(labels.columns) == list(LABELS)
    assert list(scores.index) == list(labels.index) == [row["volume_name"] for row in expected]
    assert latents["names"].tolist() == list(scores.index)
    np.testing.assert_array_equal(labels, [row["labels"] for row in expected])
    assert latents["image"].shape == latents["text"].shape == (VOLUMES, 8)
    np.testing.assert_allclose(np.linalg.norm(latents["image"], axis=1), 1, atol=1e-5)


def test_scores_are_those_of_the_public_api(out, workdir):
    volumes = [shards.decompress(record(index)["volume"], SHAPE) for index in (0, 5)]
    expected = evaluate.load(workdir / "export", max_length=24).detect(np.stack(volumes))
    scores = pd.read_csv(out / "scores.csv", index_col="VolumeName").to_numpy()[[0, 5]]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_report_shows_volumes_and_their_reports(out):
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count('<img class="slices"') == evaluate.EXAMPLES
    assert "Scan 6. Arterial wall calcification is seen. Cardiomegaly is seen." in html


def test_progress_says_volumes_speed_and_time_left(capsys):
    batches = [{"valid": np.array([True, True])}, {"valid": np.array([True, False])}]
    assert len(list(evaluate.with_progress(batches, total=3))) == 2
    line = capsys.readouterr().err
    assert "3/3 volumes" in line and "volumes/s" in line and "0:00 left" in line


def test_a_missing_export_says_what_to_do(tmp_path):
    with pytest.raises(InputError, match="train first or pass --model"):
        evaluate.find_model(tmp_path, None)


def test_a_report_is_read_whole_or_by_sentences(prepared, workdir, out, tmp_path):
    config = experiment(prepared, pool_sentences=False)
    evaluate.evaluate(config, model_path=workdir / "export", out=tmp_path)
    whole, pooled = (np.load(folder / "latents.npz")["text"] for folder in (tmp_path, out))
    model = evaluate.load(workdir / "export", max_length=24)
    report = record(5)["findings"]
    np.testing.assert_allclose(whole[5], model.encode_text([report])[0], atol=1e-5)
    mean = model.encode_text(split_sentences(report)).mean(axis=0)
    np.testing.assert_allclose(pooled[5], mean / np.linalg.norm(mean), atol=1e-5)


def test_texts_are_cut_where_the_config_says(prepared, workdir, tmp_path):
    config = experiment(prepared, max_length=3)
    evaluate.evaluate(config, model_path=workdir / "export", out=tmp_path)
    short = np.load(tmp_path / "latents.npz")["text"]
    assert len(np.unique(short.round(5), axis=0)) < VOLUMES // 2


@pytest.mark.parametrize(
    ("evaluation", "message"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"prompts": "chatty"}, "inference, validation"),
        ({"report": "published_inference"}, "'published_inference' has no sentences"),
        ({"report": "all", "pool_sentences": False}, "report form 'all' is none of"),
    ],
)
def test_wrong_names_are_one_clear_line(prepared, workdir, tmp_path, evaluation, message):
    config = experiment(prepared, **evaluation)
    with pytest.raises(InputError, match=message) as error:
        evaluate.evaluate(config, model_path=workdir / "export", out=tmp_path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"window": [-1350.0, 150.0]}, "a window of .-1350.0, 150.0. HU; .*export wants .-1000.0"),
        ({"labels": ["Calcification"]}, "labels Calcification; the 18 of CT-RATE are evaluated"),
    ],
)
def test_shards_of_another_kind_are_an_input_error(workdir, tmp_path, changes, message):
    (shard,) = shards.begin(tmp_path, "valid", settings=settings(SHAPE, **changes))
    shards.write_shard(shard, [record(0)])
    shards.finish(tmp_path)
    config = experiment(tmp_path)
    with pytest.raises(InputError, match=message):
        evaluate.evaluate(config, model_path=workdir / "export", out=tmp_path / "out")


@pytest.mark.parametrize(
    ("config", "shards", "message"),
    [("phantoms.py", "none", "error: none: "), ("absent.py", "", "error: --config: ")],
)
def test_the_binary_ends_with_one_line_where_a_file_is_missing(workdir, config, shards, message):
    command = [sys.executable, "-m", "ctclip_jax.evaluate", f"--config=configs/{config}"]
    flags = [f"--workdir={workdir}", *([f"--config.data.shards={shards}"] if shards else [])]
    root = Path(__file__).parents[1]
    ended = subprocess.run([*command, *flags], capture_output=True, text=True, cwd=root)
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].startswith(message)
    assert "Traceback" not in ended.stderr
