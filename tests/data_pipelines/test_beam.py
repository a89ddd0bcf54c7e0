"""Preparation on Apache Beam, in the environment of requirements-beam.txt: `make test-beam`."""

import subprocess
import sys
from pathlib import Path

import pytest

from tests.scan_tree import scan_path, write_tree

pytest.importorskip("apache_beam", reason="Apache Beam is not here; make test-beam")

ROOT = Path(__file__).parents[2]
GRID = ("--shape=8,14,12", "--spacing=12,7.5,7.5")


def prepare(tree, out, *arguments):
    command = [sys.executable, "-m", "data_pipelines.prepare", f"--data={tree}", f"--out={out}"]
    result = subprocess.run([*command, *GRID, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return result.stderr


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_beam_makes_the_same_shards_as_the_pool(tmp_path):
    tree = tmp_path / "tree"
    names = write_tree(tree, "train", 20)
    write_tree(tree, "valid", 2)
    scan_path(tree, names[3], folder="train").unlink()
    options = ("--runner=DirectRunner", "--", "--direct_num_workers=2")
    told = prepare(tree, tmp_path / "beam", *options, "--direct_running_mode=multi_processing")
    assert "train: 19 prepared, 1 skipped" in told
    prepare(tree, tmp_path / "pool")
    assert content(tmp_path / "beam") == content(tmp_path / "pool")
    next((tmp_path / "beam").glob("train-00002-*.jsonl")).unlink()
    prepare(tree, tmp_path / "beam", *options)
    assert content(tmp_path / "beam") == content(tmp_path / "pool")
