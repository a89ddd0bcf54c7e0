"""A tokenizer of prepared reports, by the command."""

import subprocess
import sys

import numpy as np
import pytest

from data_pipelines import shards
from data_pipelines.tokenizers import load_tokenizer
from tests import records

REPORTS = (
    ("Sağ akciğerde nodül izlendi.", "Akciğer nodülü."),
    ("Plevral efüzyon saptanmadı.", "Not given."),
    ("Kalp boyutu normaldir.", "Normal sınırlarda inceleme."),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    out = tmp_path_factory.mktemp("shards")
    (plan,) = shards.begin(out, "train", settings=records.settings((2, 3, 4)))
    volume = np.zeros((2, 3, 4), np.int16)
    content = [
        records.make_record(
            f"train_{n}_a_1.nii.gz", volume, findings=parts[0], impressions=parts[1]
        )
        for n, parts in enumerate(REPORTS)
    ]
    shards.write_shard(plan, content)
    shards.finish(out)
    return out


def command(*flags) -> subprocess.CompletedProcess:
    line = [sys.executable, "-m", "data_pipelines.train_tokenizer", *map(str, flags)]
    return subprocess.run(line, capture_output=True, text=True)


def test_tokenizer_is_trained_and_reproducible(folder, tmp_path):
    out = tmp_path / "tokenizer.model"
    flags = (f"--shards={folder}", "--vocab_size=70")
    done = command(*flags, f"--out={out}")
    assert done.returncode == 0, done.stderr
    tokenizer = load_tokenizer(out)
    assert f"{out}: {tokenizer.vocab_size} pieces" in done.stdout
    ids, mask = tokenizer(["akciğer nodülü", "nodül"], 32)
    assert tokenizer.vocab_size <= 70
    assert not (ids == 1).any(), "every letter of the reports is known"
    again = tmp_path / "again.model"
    command(*flags, f"--out={again}")
    assert again.read_bytes() == out.read_bytes()


def test_bad_arguments_are_one_line(folder, tmp_path):
    for flags, message in (
        ((f"--shards={folder}", "--out=t.txt"), "--out: got t.txt"),
        ((f"--shards={folder}", "--split=test", "--out=t.model"), "no split 'test'"),
        ((f"--shards={folder}", f"--out={tmp_path}/none/t.model"), "t.model: cannot be written"),
    ):
        done = command(*flags)
        assert done.returncode == 2
        assert done.stderr.count("\n") == 1 and message in done.stderr


def test_failed_training_leaves_the_old_file(folder, tmp_path):
    out = tmp_path / "t.model"
    out.write_bytes(b"the old one")
    done = command(f"--shards={folder}", f"--out={out}", "--vocab_size=5")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "SentencePiece model of 5 pieces" in done.stderr
    assert out.read_bytes() == b"the old one"
