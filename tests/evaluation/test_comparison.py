"""Two models on the same volumes: paired by name, resampled together, tested by DeLong and Holm."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from ctclip_jax.compare import text_lines
from ctclip_jax.evaluation import comparison, files, suite
from ctclip_jax.evaluation.metrics import delong
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.reporting.report import render_comparison
from data_pipelines.errors import InputError
from tests.eval_sets import make_eval_set

PROTOCOL = ProtocolConfig(prompts=(("{}", "no {}"),), resamples=200)


def noisier(eval_set, seed=0):
    """The same volumes by a model that knows less of the first label, and finds less."""
    rng = np.random.default_rng(seed)
    scores = eval_set.scores.copy()
    scores[:, 0] = rng.random(len(scores))
    return dataclasses.replace(eval_set, scores=scores, text=eval_set.text[rng.permutation(60)])


@pytest.fixture
def pair():
    eval_set = make_eval_set()
    return noisier(eval_set), eval_set


def test_differences_of_metrics(pair):
    found = comparison.compare(*pair, protocol=PROTOCOL)
    alone = [suite.evaluate(eval_set, protocol=PROTOCOL)[0] for eval_set in pair]
    for name in ("auroc", "f1", "accuracy"):
        row = found["detection"]["macro"][name]
        sides = [metrics["detection"]["macro"][name]["value"] for metrics in alone]
        assert [row["a"], row["b"]] == pytest.approx(sides)
        assert row["value"] == pytest.approx(sides[1] - sides[0])
        assert row["low"] <= row["value"] <= row["high"]
    recall = found["retrieval"]["report_to_volume"]["recall"]["5"]
    sides = [m["retrieval"]["report_to_volume"]["recall"]["5"]["value"] for m in alone]
    assert [recall["a"], recall["b"]] == pytest.approx(sides)


def test_significance(pair):
    found = comparison.compare(*pair, protocol=PROTOCOL)
    changed = found["detection"]["per_label"]["Emphysema"]["auroc"]
    same = found["detection"]["per_label"]["Cardiomegaly"]["auroc"]
    assert changed["p_holm"] < 0.05 and changed["p_bootstrap"] < 0.05 and changed["low"] > 0
    assert same["value"] == same["low"] == same["high"] == 0
    assert same["p_delong"] == same["p_holm"] == same["p_bootstrap"] == 1
    scores = np.stack([eval_set.scores[:, 0] for eval_set in pair], axis=1)
    tested = delong.delong(pair[0].labels[:, 0], scores, patients=pair[0].patients)
    expected = delong.difference_test(tested)[1]
    assert changed["p_delong"] == pytest.approx(expected)
    assert changed["p_holm"] == pytest.approx(2 * expected), "two labels"


def test_paired_intervals_are_narrower(pair):
    _, eval_set = pair
    rng = np.random.default_rng(0)
    close = dataclasses.replace(eval_set, scores=eval_set.scores + 0.01 * rng.normal(size=(60, 2)))
    row = comparison.compare(close, eval_set, protocol=PROTOCOL)["detection"]["macro"]["auroc"]
    alone = suite.evaluate(eval_set, protocol=PROTOCOL)[0]["detection"]["macro"]["auroc"]
    assert row["high"] - row["low"] < 0.3 * (alone["high"] - alone["low"])


def test_known_patients_group_the_volumes_of_both(pair):
    a, b = pair
    alone = dataclasses.replace(b, patients=b.names, scans=b.names)
    both, known, unknown = (
        comparison.compare(*each, protocol=PROTOCOL)["detection"]["macro"]["auroc"]
        for each in ((a, b), (a, alone), (alone, a))
    )
    assert known == both
    assert (unknown["low"], unknown["high"]) == pytest.approx((-both["high"], -both["low"]))


def test_scores_against_latents(pair):
    a, b = pair
    scored = dataclasses.replace(a, image=None, text=None)
    with pytest.raises(InputError, match="neither scores nor latents in common"):
        comparison.compare(scored, dataclasses.replace(b, scores=None), protocol=PROTOCOL)


def test_only_common_volumes_and_labels_are_compared(pair):
    a, b = pair
    fewer = a.take(np.arange(10, 60))
    only = dataclasses.replace(
        b, labels=b.labels[:, :1], scores=b.scores[:, :1], label_names=("Emphysema",)
    )
    found = comparison.compare(fewer, only, protocol=PROTOCOL)
    assert found["volumes"] == 50 and found["labels"] == ["Emphysema"]
    assert found["notes"] == [
        "A: Cardiomegaly left out, the other lacks them",
        "B: 10 volumes that the other lacks are left out",
    ]


def test_contradicting_labels(pair):
    a, b = pair
    labels = b.labels.copy()
    labels[3, 1] = 1 - labels[3, 1]
    with pytest.raises(InputError, match="valid_0001_a_1.nii.gz: 'Cardiomegaly' is"):
        comparison.compare(a, dataclasses.replace(b, labels=labels), protocol=PROTOCOL)


def test_nothing_in_common(pair):
    a, b = pair
    others = dataclasses.replace(b, names=np.array([f"x{name}" for name in b.names]))
    with pytest.raises(InputError, match="no volume in common"):
        comparison.compare(a, others, protocol=PROTOCOL)
    with pytest.raises(InputError, match="no label in common"):
        comparison.compare(a, dataclasses.replace(b, label_names=("x", "y")), protocol=PROTOCOL)


def test_label_of_one_class_does_not_count_for_holm(pair):
    labels = pair[0].labels.copy()
    labels[:, 1] = 0
    pair = [dataclasses.replace(eval_set, labels=labels) for eval_set in pair]
    found = comparison.compare(*pair, protocol=PROTOCOL)["detection"]
    row = found["per_label"]["Cardiomegaly"]["auroc"]
    assert row["value"] is None and row["p_delong"] is row["p_holm"] is None
    changed = found["per_label"]["Emphysema"]["auroc"]
    assert changed["p_holm"] == changed["p_delong"]
    assert found["macro"]["labels"] == 1


def test_lines_and_page_tell_every_difference(pair):
    source = {"model": "<b>model</b>"}
    pair = [dataclasses.replace(eval_set, source=source) for eval_set in pair]
    found = comparison.compare(*pair, protocol=PROTOCOL)
    told = "\n".join(text_lines(found))
    assert "Emphysema" in told and "Recall@5" in told and "MRR" in told and "overlap@5" in told
    html = render_comparison(found)
    assert html.count("<tr>") == len(told.splitlines()) - 2, "each group has a head"
    assert "&lt;b&gt;model" in html and "<b>model" not in html


def test_command_line(pair, tmp_path):
    for name, eval_set in zip("ab", pair, strict=True):
        files.write_eval_set(tmp_path / name, eval_set)
    command = [sys.executable, "-m", "ctclip_jax.compare", tmp_path / "a", tmp_path / "b"]
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [*command, f"--out={tmp_path / 'out'}"], capture_output=True, text=True, cwd=root
    )
    assert ended.returncode == 0, ended.stderr
    assert "Cardiomegaly" in ended.stdout
    found = json.loads((tmp_path / "out" / "comparison.json").read_text())
    assert found["intervals"]["resamples"] == 1000 and "retrieval" not in found
    assert (tmp_path / "out" / "comparison.html").exists()
