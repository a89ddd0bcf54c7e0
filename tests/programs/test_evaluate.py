"""The evaluation program on a tiny model and tiny shards: its files, and one line for bad input."""

import dataclasses
import io
import json
import shutil
import subprocess
import sys
from pathlib import Path
from unittest import mock

import jax
import numpy as np
import pandas as pd
import pytest

import ctclip_jax
from configs import evaluation
from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.common.configs import from_dict
from ctclip_jax.evaluate import Inputs, evaluate
from ctclip_jax.evaluation import encode
from ctclip_jax.evaluation.encoder import Encoder
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, split_sentences
from data_pipelines.tokenizers import train_sentencepiece
from tests.records import make_record, settings

SHAPE, VOLUMES, SHARDS = (8, 16, 16), 14, 3


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
    described = settings(SHAPE, count=SHARDS, data_source="phantoms")
    planned = shards.begin(folder, "valid", settings=described)
    for shard in planned:
        shards.write_shard(shard, records[shard.index :: SHARDS])
    shards.finish(folder)
    texts = [row["findings"] for row in records] + [f"{label} is present." for label in LABELS]
    train_sentencepiece(texts, folder / "tokenizer.model", 100)
    return folder


@pytest.fixture(scope="module")
def export(prepared, tmp_path_factory):
    """The export of a tiny model of random weights."""
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
    folder = tmp_path_factory.mktemp("export")
    save_export(
        folder,
        CTCLIP(config).init(jax.random.key(0)),
        config={
            "model": dataclasses.asdict(config),
            "max_length": 24,
            "report": "joined",
            "pool_sentences": True,
        },
        tokenizer=prepared / "tokenizer.model",
    )
    return folder


def protocol(variant: str = "", **changes) -> ProtocolConfig:
    """That of configs/evaluation.py, with few resamples."""
    config = evaluation.get_config(variant).to_dict() | {"resamples": 20, "batch_size": 4}
    return from_dict(ProtocolConfig, config | changes)


@pytest.fixture(scope="module")
def inputs(export, prepared):
    return Inputs(model=str(export), shards=str(prepared))


@pytest.fixture(scope="module")
def out(inputs, tmp_path_factory):
    """The folder of a finished evaluation."""
    folder = tmp_path_factory.mktemp("out")
    evaluate(inputs, folder, protocol=protocol())
    return folder


def measure(inputs, out, **options):
    """An evaluation without its report, which takes most of the time."""
    with mock.patch("ctclip_jax.evaluate.write_report"):
        return evaluate(inputs, out, **options)


def zipped(**arrays) -> bytes:
    file = io.BytesIO()
    np.savez(file, **arrays)
    return file.getvalue()


def read(folder, name="metrics.json"):
    return json.loads((folder / name).read_text())


def test_documented_keys_of_metrics(out, export, prepared):
    metrics = read(out)
    assert metrics["schema"] == 1 and metrics["protocol"] == "sound"
    assert metrics["volumes"] == VOLUMES
    assert metrics["scans"] == metrics["patients"] == VOLUMES // 2
    assert metrics["source"]["model"] == str(export)
    assert metrics["source"]["shards"] == str(prepared)
    assert metrics["source"]["scores"] == "zero_shot"
    assert metrics["source"]["prompts"] == [["{} is present.", "{} is not present."]]
    assert metrics["intervals"]["resamples"] == 20
    detection = metrics["detection"]
    assert detection["macro"]["labels"] == 3 and detection["macro"]["of"] == 18
    without = detection["macro_without_left_out"]
    assert without["of"] == 16 and without["left_out"] == ["Medical material", "Lymphadenopathy"]
    assert list(detection["per_label"]) == list(LABELS)
    known = detection["per_label"]["Medical material"]
    assert known["positive"] == 6 and known["negative"] == 8
    assert known["auroc"]["low"] <= known["auroc"]["value"] <= known["auroc"]["high"]
    absent = detection["per_label"]["Emphysema"]["auroc"]
    assert absent == {"value": None, "reason": "one class: all 14 volumes are negative"}
    search = metrics["retrieval"]["report_to_volume"]
    assert search["pool"] == search["queries"] == VOLUMES
    assert search["recall"]["10"]["chance"] == pytest.approx(10 / VOLUMES)
    assert 0 <= metrics["retrieval"]["volume_to_volume"]["label_overlap"]["5"]["value"] <= 1


def test_tables_and_latents(out):
    scores = pd.read_csv(out / "scores.csv", index_col="VolumeName")
    labels = pd.read_csv(out / "labels.csv", index_col="VolumeName")
    cases = pd.read_csv(out / "cases.csv", index_col="VolumeName")
    saved = np.load(out / "latents.npz")
    expected = sorted((record(index) for index in range(VOLUMES)), key=lambda r: r["volume_name"])
    names = [row["volume_name"] for row in expected]
    assert list(scores.columns) == list(labels.columns) == list(LABELS)
    assert list(scores.index) == list(labels.index) == list(cases.index) == names
    assert sorted(saved["names"]) == names
    np.testing.assert_array_equal(labels, [row["labels"] for row in expected])
    assert cases.report.iloc[3].startswith("Scan 1.")
    assert saved["image"].shape == saved["text"].shape == (VOLUMES, 8)
    np.testing.assert_allclose(np.linalg.norm(saved["image"], axis=1), 1, atol=1e-5)


def test_scores_equal_detect(out, export):
    volumes = [shards.decode_volume(record(index)) for index in (0, 5)]
    expected = ctclip_jax.load(export).detect(np.stack(volumes))
    names = [record(index)["volume_name"] for index in (0, 5)]
    scores = pd.read_csv(out / "scores.csv", index_col="VolumeName").loc[names]
    np.testing.assert_allclose(scores, expected, atol=1e-5)


def test_report_format_of_export_and_protocol(inputs, out, export, tmp_path):
    measure(inputs, tmp_path, protocol=protocol(pool_sentences=False))
    saved = [np.load(folder / "latents.npz") for folder in (tmp_path, out)]
    row = saved[0]["names"].tolist().index(record(5)["volume_name"])
    whole, pooled = (arrays["text"][row] for arrays in saved)
    model = ctclip_jax.load(export)
    report = record(5)["findings"]
    np.testing.assert_allclose(whole, model.encode_text([report])[0], atol=1e-5)
    mean = model.encode_text(split_sentences(report)).mean(axis=0)
    np.testing.assert_allclose(pooled, mean / np.linalg.norm(mean), atol=1e-5)


def test_max_length(inputs, tmp_path):
    measure(inputs, tmp_path, protocol=protocol(max_length=3))
    short = np.load(tmp_path / "latents.npz")["text"]
    assert len(np.unique(short.round(5), axis=0)) < VOLUMES // 2


def test_report_page(out, tmp_path):
    html = (out / "report.html").read_text(encoding="utf-8")
    assert html.count("data:image/jpeg") >= 4
    assert "Scan 6. Arterial wall calcification is seen. Cardiomegaly is seen." in html
    assert "\\toprule" in (out / "table.tex").read_text()
    evaluate(Inputs(from_scores=str(out)), tmp_path, protocol=protocol())
    assert "data:image/jpeg" in (tmp_path / "report.html").read_text(), "source.json knows them"
    (out / "source.json").rename(tmp_path / "source.json")
    evaluate(Inputs(from_scores=str(out)), tmp_path / "b", protocol=protocol())
    (tmp_path / "source.json").rename(out / "source.json")
    assert "data:image/jpeg" not in (tmp_path / "b" / "report.html").read_text()


def without_source(folder):
    metrics = read(folder)
    return {name: value for name, value in metrics.items() if name not in ("source", "notes")}


def test_saved_latents_and_scores_give_the_same_metrics(out, tmp_path):
    measure(Inputs(from_latents=str(out)), tmp_path / "a", protocol=protocol())
    assert without_source(tmp_path / "a") == without_source(out)
    measure(Inputs(from_scores=str(out)), tmp_path / "b", protocol=protocol())
    again = without_source(tmp_path / "b")
    assert again["retrieval"] == {"reason": "no latents"}
    assert again["detection"] == without_source(out)["detection"]


def test_other_prompts_need_the_model(inputs, out, export, tmp_path):
    again = Inputs(from_latents=str(out))
    with pytest.raises(InputError, match="'There is Medical material.': has no latent"):
        measure(again, tmp_path, protocol=protocol("training"))
    with_model = dataclasses.replace(again, model=str(export))
    measure(with_model, tmp_path / "a", protocol=protocol("ensemble"))
    assert without_source(tmp_path / "a")["detection"] != without_source(out)["detection"]


def test_resume(inputs, out, tmp_path, monkeypatch):
    encoded = []
    encode_volumes = Encoder.encode_volumes

    def encode_two_parts(self, *args, rows, **kwargs):
        if len(encoded) == 2:
            raise KeyboardInterrupt
        encoded.append(list(rows))
        return encode_volumes(self, *args, rows=rows, **kwargs)

    monkeypatch.setattr(Encoder, "encode_volumes", encode_two_parts)
    with pytest.raises(KeyboardInterrupt):
        measure(inputs, tmp_path, protocol=protocol())
    assert len(list((tmp_path / "encoding").iterdir())) == 2
    done = encoded.copy()
    encoded.clear()
    measure(inputs, tmp_path, protocol=protocol())
    assert len(encoded) == 1 and sorted(sum(done + encoded, [])) == list(range(VOLUMES))
    assert not (tmp_path / "encoding").exists()
    assert without_source(tmp_path) == without_source(out)
    encoded.clear()
    measure(inputs, tmp_path, protocol=protocol())
    assert not encoded, "nothing is encoded twice"


def test_tasks(inputs, out, tmp_path, capsys):
    for index in (2, 0, 1):
        sliced = dataclasses.replace(inputs, task=(index, 3))
        found = measure(sliced, tmp_path, protocol=protocol())
        assert (found is None) == (index != 1), "the last slice makes the figures"
        total = len(range(index, VOLUMES, SHARDS))
        assert f"{total}/{total}" in capsys.readouterr().err, "progress in volumes"
    assert without_source(tmp_path) == without_source(out)


def assert_same_figures(folder, out):
    pairs = [pd.read_csv(each / "figures.csv", index_col="figure") for each in (folder, out)]
    pd.testing.assert_frame_equal(*pairs, rtol=0, atol=1e-6)


def test_devices_and_batch_size_do_not_matter(inputs, out, tmp_path, monkeypatch):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices()[:1])
    measure(inputs, tmp_path, protocol=protocol(batch_size=3))
    assert_same_figures(tmp_path, out)


def test_order_of_volumes_does_not_matter(inputs, out, tmp_path):
    (shard,) = shards.begin(tmp_path / "shards", "valid", settings=settings(SHAPE))
    order = np.random.default_rng(0).permutation(VOLUMES)
    shards.write_shard(shard, [record(index) for index in order])
    shards.finish(tmp_path / "shards")
    mixed = dataclasses.replace(inputs, shards=str(tmp_path / "shards"))
    measure(mixed, tmp_path / "out", protocol=protocol())
    assert_same_figures(tmp_path / "out", out)


def test_latents_of_another_model(inputs, out, export, tmp_path):
    with pytest.raises(InputError, match="results of another report.*another --out"):
        measure(inputs, out, protocol=protocol(report_format="impressions"))
    other = ctclip_jax.load(export)
    other.variables["params"]["temperature"] = np.float32(0.5)
    save_export(
        tmp_path / "other",
        jax.device_get(other.variables),
        config=read(export, "config.json"),
        tokenizer=export / "tokenizer.model",
    )
    changed = dataclasses.replace(inputs, model=str(tmp_path / "other"))
    with pytest.raises(InputError, match="results of another model_sha256"):
        measure(changed, out, protocol=protocol())
    with pytest.raises(InputError, match="latents are from another model"):
        measure(
            Inputs(model=str(tmp_path / "other"), from_latents=str(out)),
            tmp_path,
            protocol=protocol(),
        )


def test_bfloat16(inputs, out, tmp_path):
    measure(inputs, tmp_path, protocol=protocol(dtype="bfloat16"))
    assert read(tmp_path, "source.json")["dtype"] == "bfloat16"
    exact, rounded = (np.load(folder / "latents.npz")["image"] for folder in (out, tmp_path))
    assert 0 < np.median(np.abs(exact - rounded)) < 0.02


def test_published_protocol_with_validation(out, tmp_path):
    inputs = Inputs(from_scores=str(out), validation=str(out))
    with pytest.raises(InputError, match="--validation: published thresholds"):
        measure(inputs, tmp_path, protocol=protocol(), published=True)


def test_published_protocol(out, tmp_path):
    measure(Inputs(from_latents=str(out)), tmp_path, protocol=protocol(), published=True)
    metrics = read(tmp_path)
    assert metrics["protocol"] == "published" and metrics["intervals"] is None
    assert metrics["detection"]["thresholds"] == "fitted on the same volumes, as published"
    assert "low" not in metrics["detection"]["macro"]["auroc"]
    assert set(metrics["retrieval"]["volume_to_volume"]) == {"queries", "pool", "published_map"}


def test_latents_of_other_programs(out, export, tmp_path, capsys):
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    (theirs / "labels.csv").write_bytes((out / "labels.csv").read_bytes())
    saved = np.load(out / "latents.npz")
    np.savez(theirs / "latents.npz", names=saved["names"], image=saved["image"])
    np.savez(theirs / "prompts.npz", prompts=np.array(["x"]), latents=np.zeros((1, 3)))
    alone = measure(Inputs(from_latents=str(theirs)), tmp_path / "a", protocol=protocol())
    assert alone["detection"] == {"reason": "no scores"}
    assert alone["notes"][-1].startswith("no scores: latents.npz has no temperature")
    inputs = Inputs(from_latents=str(theirs), model=str(export))
    scored = measure(inputs, tmp_path / "b", protocol=protocol())
    assert "taken to be from --model" in scored["notes"][-1]
    expected = read(out)["detection"]["per_label"]["Medical material"]["auroc"]["value"]
    assert scored["detection"]["per_label"]["Medical material"]["auroc"]["value"] == expected


def test_validation(out, tmp_path):
    inputs = Inputs(from_scores=str(out), validation=str(out))
    metrics = measure(inputs, tmp_path, protocol=protocol())
    assert metrics["detection"]["thresholds"] == "fitted on the validation volumes"
    assert metrics["validation"] == str(out)
    assert metrics["notes"][-1].startswith("7 patients are among the validation volumes too")
    assert "temperature" in metrics["calibration"]["Medical material"]


def test_input_folder_is_not_written(out, tmp_path):
    for reading in ({"from_scores": str(out)}, {"from_latents": str(out)}):
        with pytest.raises(InputError, match="--out=.*is also the input"):
            measure(Inputs(**reading), out, protocol=protocol())


def test_results_of_two_sources_are_not_mixed(inputs, out, tmp_path):
    (tmp_path / "latents.npz").write_bytes((out / "latents.npz").read_bytes())
    for each in (inputs, Inputs(from_scores=str(out))):
        with pytest.raises(InputError, match="holds results without a source.json"):
            measure(each, tmp_path, protocol=protocol())
    theirs = tmp_path / "theirs"
    theirs.mkdir()
    for name in ("labels.csv", "scores.csv"):
        (theirs / name).write_bytes((out / name).read_bytes())
    measure(Inputs(from_scores=str(out)), tmp_path / "o", protocol=protocol())
    with pytest.raises(InputError, match="holds results of another folder"):
        measure(Inputs(from_scores=str(theirs)), tmp_path / "o", protocol=protocol())
    measure(Inputs(from_scores=str(theirs)), tmp_path / "p", protocol=protocol())


def test_provenance(inputs, out, export, prepared, tmp_path):
    model = ctclip_jax.load(export)
    expected = encode.provenance(model, str(export), folder=str(prepared), split="valid")
    texts = ctclip_jax.load(export, max_length=5)
    other = encode.provenance(texts, str(export), folder=str(prepared), split="valid")
    assert {name for name in expected if expected[name] != other[name]} == {"tokens_sha256"}
    heads = dataclasses.replace(model.config.text, num_heads=1)
    model.config = dataclasses.replace(model.config, text=heads, dtype="bfloat16")
    other = encode.provenance(model, str(export), folder=str(prepared), split="valid")
    assert {name for name in expected if expected[name] != other[name]} == {"model_sha256", "dtype"}


def test_report_page_without_shards(out, tmp_path):
    evaluate(Inputs(from_scores=str(out)), tmp_path / "a", protocol=protocol())
    source = read(tmp_path / "a", "source.json") | {"shards": str(tmp_path)}
    (tmp_path / "a" / "source.json").write_text(json.dumps(source))
    evaluate(Inputs(from_scores=str(tmp_path / "a")), tmp_path / "b", protocol=protocol())
    assert "data:image/jpeg" not in (tmp_path / "b" / "report.html").read_text()


def test_options_are_checked_before_encoding(inputs, tmp_path, monkeypatch):
    monkeypatch.setattr(encode, "encode_split", None)
    for changes in ({"classifier": "trained"}, {"prompts": (("Seen.", "Not {}."),)}):
        with pytest.raises(InputError):
            measure(inputs, tmp_path, protocol=protocol(**changes))
    with pytest.raises(InputError, match="absent/scores.csv: no such table"):
        measure(dataclasses.replace(inputs, validation="absent"), tmp_path, protocol=protocol())


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("prompts.npz", b"PK torn", "prompts.npz: not a file of arrays"),
        ("prompts.npz", zipped(prompts=["x"]), "expected prompts and latents"),
        ("source.json", b"[1]", "source.json: "),
    ],
)
def test_broken_files(out, tmp_path, name, content, message):
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=message):
        measure(Inputs(from_latents=str(tmp_path)), tmp_path / "o", protocol=protocol())


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"temperature": np.ones(2)}, "latents.npz: temperature: got shape"),
        (
            {"image": np.eye(14, 9, dtype=np.float32) + 1, "text": None},
            "and .n, 9",
        ),
    ],
)
def test_prompts_that_do_not_fit(out, tmp_path, change, message):
    for path in out.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    arrays = dict(np.load(out / "latents.npz")) | change
    kept = {name: array for name, array in arrays.items() if array is not None}
    np.savez(tmp_path / "latents.npz", **kept)
    with pytest.raises(InputError, match=message):
        measure(Inputs(from_latents=str(tmp_path)), tmp_path / "o", protocol=protocol())


def test_corrupt_part(inputs, tmp_path):
    measure(dataclasses.replace(inputs, task=(0, 3)), tmp_path, protocol=protocol())
    (part,) = (tmp_path / "encoding").iterdir()
    part.write_bytes(b"PK torn")
    measure(dataclasses.replace(inputs, task=(1, 3)), tmp_path, protocol=protocol())
    with pytest.raises(InputError, match=f"{part.name}: not a file of arrays"):
        measure(inputs, tmp_path, protocol=protocol())
    assert len(list((tmp_path / "encoding").iterdir())) == 3
    part.unlink()
    assert measure(inputs, tmp_path, protocol=protocol())


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"split": "test"}, "no split 'test'"),
        ({"model": None}, "pass --model and --shards, or --from_latents, or --from_scores"),
        ({"model": "absent"}, "absent"),
        ({"from_scores": "x"}, "--from_scores: cannot be combined with --model"),
        ({"from_latents": "x", "task": (1, 2)}, "--task: there is nothing to encode"),
        ({"shards": "absent"}, "absent: no split 'valid' was prepared here"),
    ],
)
def test_wrong_inputs(inputs, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        measure(dataclasses.replace(inputs, **changes), tmp_path, protocol=protocol())
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"report_format": "published_inference"}, "'published_inference' has no sentences"),
        ({"prompts": (("Seen.", "Not {}."),)}, "prompt 'Seen.': has no {}"),
        ({"classifier": "trained"}, "this model has no trained classifier"),
    ],
)
def test_wrong_protocols(inputs, tmp_path, changes, message):
    with pytest.raises(InputError, match=message) as error:
        measure(inputs, tmp_path, protocol=protocol(**changes))
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"window": [-1350.0, 150.0]},
            r"window \(-1350.0, 150.0\); .* expects \(-1000.0, 1000.0\)",
        ),
        ({"shape": [4, 16, 16]}, r"shape \(4, 16, 16\); .* expects \(8, 16, 16\)"),
    ],
)
def test_shards_of_another_geometry(inputs, tmp_path, changes, message):
    planned = settings(SHAPE) | changes
    (shard,) = shards.begin(tmp_path, "valid", settings=planned)
    shards.write_shard(shard, [record(0)])
    shards.finish(tmp_path)
    other = dataclasses.replace(inputs, shards=str(tmp_path))
    with pytest.raises(InputError, match=message):
        measure(other, tmp_path / "out", protocol=protocol())


def test_labels_of_rad_chestct(inputs, tmp_path):
    labels = ["Medical material", "Calcification", "Emphysema"]
    records = [
        record(index)
        | {"labels": np.array([1, index % 2, -1], np.int8), "findings": ""}
        | {"impressions": ""}
        for index in range(4)
    ]
    (shard,) = shards.begin(tmp_path, "valid", settings=settings(SHAPE, labels=labels))
    shards.write_shard(shard, records)
    shards.finish(tmp_path)
    other = dataclasses.replace(inputs, shards=str(tmp_path))
    metrics = measure(other, tmp_path / "out", protocol=protocol())
    assert list(metrics["detection"]["per_label"]) == labels
    assert metrics["detection"]["macro"]["labels"] == 1
    unknown = metrics["detection"]["per_label"]["Emphysema"]["auroc"]
    assert unknown["reason"] == "no volume has this label known"
    assert set(metrics["retrieval"]) == {"volume_to_volume"}, "there are no reports"
    scores = pd.read_csv(tmp_path / "out" / "scores.csv", index_col="VolumeName")
    volumes = np.stack([shards.decode_volume(each) for each in records])
    parts = ["Arterial wall calcification", "Coronary artery wall calcification"]
    expected = ctclip_jax.load(inputs.model).detect(volumes, labels=parts).max(axis=1)
    names = [each["volume_name"] for each in records]
    np.testing.assert_allclose(scores.Calcification[names], expected, atol=1e-6)


def test_the_source_of_the_shards_reaches_the_report(out):
    """With 18 labels and the split valid, as CT-RATE's: only the source tells them apart."""
    assert read(out, "source.json")["data_source"] == "phantoms"
    report = (out / "report.html").read_text()
    assert "Synthetic chest CTs: these figures say nothing about patients." in report
    assert "VocabFine" not in report + (out / "table.tex").read_text()


def test_an_evaluation_of_an_earlier_version_is_resumed(inputs, out, tmp_path):
    """Its source.json does not say where the shards are from."""
    shutil.copytree(out, tmp_path / "earlier")
    source = read(tmp_path / "earlier", "source.json")
    del source["data_source"]
    (tmp_path / "earlier/source.json").write_text(json.dumps(source))
    metrics = measure(inputs, tmp_path / "earlier", protocol=protocol())
    assert metrics["source"]["data_source"] == "phantoms"


FORK_EACH = """
import json, os, sys
from ctclip_jax import evaluate
from data_pipelines import command_line
for arguments, log in json.loads(sys.argv[1]):
    if os.fork() == 0:
        output = os.open(log, os.O_CREAT | os.O_WRONLY)
        os.dup2(output, 1), os.dup2(output, 2)
        sys.argv = ["evaluate", *arguments]
        command_line.parse("__main__", evaluate.define_flags)
        command_line.run(evaluate.main)
        os._exit(0)
    os.wait()
"""


def test_command_lines(out, tmp_path):
    """All of them in one process that forks, as most of a run is imports."""
    cases = [
        ([f"--from_scores={out}", "--config.resamples=10"], "mean AUROC 0."),
        (["--from_scores=absent"], "error: absent/scores.csv: no such table"),
        (["--config=configs/absent.py"], "error: --config=configs/absent.py: no such file"),
        (["--config=configs/evaluation.py:loud"], "error: unknown variant 'loud'; choose from"),
        (["--config.resample=1"], "error: --config: unknown key 'resample'"),
    ]
    lines = [
        ([f"--out={tmp_path / 'out'}", *arguments], str(tmp_path / f"{number}.log"))
        for number, (arguments, _) in enumerate(cases)
    ]
    command = [sys.executable, "-c", FORK_EACH, json.dumps(lines)]
    subprocess.run(command, check=True, cwd=Path(__file__).parents[2])
    for (_, log), (_, message) in zip(lines, cases, strict=True):
        output = Path(log).read_text()
        assert "Traceback" not in output
        assert "recall@5" not in output, "scores have no retrieval to measure"
        assert output.splitlines()[-1].startswith(message)
    assert read(tmp_path / "out")["intervals"]["resamples"] == 10
