"""Drills: preparation that is killed, or runs out of disk, and is started again."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.scan_tree import write_tree

pytestmark = pytest.mark.drill

ROOT = Path(__file__).parents[2]
KILLED_TEN_TIMES = """
import os, random, signal, sys, time
from data_pipelines import files, shard_tasks, shards
from data_pipelines.sources.ct_rate import read_collection
from data_pipelines.resample import Geometry

tree, undisturbed, disturbed = sys.argv[1:]
geometry = Geometry((8, 14, 12), (12.0, 7.5, 7.5))

def prepare(out):
    with files.locked(out, exclusive=True):
        tasks = shard_tasks.plan(
            read_collection(tree, "train"), out, "train", geometry=geometry, mode="sound"
        )
        for task in tasks:
            if not task.shard.complete:
                shard_tasks.run(task)
        shards.finish(out)

def finished():
    return sum(name.endswith(".jsonl") for name in os.listdir(disturbed))

prepare(undisturbed)
os.mkdir(disturbed)
rng = random.Random(0)
for _ in range(10):
    enough = finished() + rng.randint(0, 1)
    child = os.fork()
    if not child:
        prepare(disturbed)
        os._exit(0)
    ended = 0
    while finished() < enough and not ended:
        time.sleep(0.001)
        ended, _ = os.waitpid(child, os.WNOHANG)
    time.sleep(rng.uniform(0, 0.005))
    if not ended:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    print(finished())
prepare(disturbed)
"""


@pytest.fixture(scope="module")
def tree(tmp_path_factory):
    """40 volumes, and the shards of an undisturbed run over them."""
    folder = tmp_path_factory.mktemp("interruptions")
    write_tree(folder, "train", 40)
    subprocess.run(program(folder, folder / "whole"), cwd=ROOT, check=True)
    return folder


def content(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def program(tree, out):
    command = [sys.executable, "-m", "data_pipelines.prepare", f"--data={tree}", f"--out={out}"]
    return [*command, "--splits=train", "--shape=8,14,12", "--spacing=12,7.5,7.5", "--processes=2"]


def test_killed_ten_times_ends_bit_identical(tree, tmp_path):
    folders = [str(tree), str(tmp_path / "undisturbed"), str(tmp_path / "disturbed")]
    result = subprocess.run(
        [sys.executable, "-c", KILLED_TEN_TIMES, *folders],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert result.returncode == 0, result.stderr
    num_shards = list(map(int, result.stdout.split()))
    assert num_shards == sorted(num_shards), "finished shards are kept"
    assert len(set(num_shards)) > 4, "kills came in the middle"
    assert content(tmp_path / "disturbed") == content(tmp_path / "undisturbed")


def test_killed_program_leaves_no_workers_and_continues(tree, tmp_path):
    out = tmp_path / "killed"
    process = subprocess.Popen(program(tree, out), cwd=ROOT, stderr=subprocess.DEVNULL)
    while not list(out.glob("*.jsonl")) and process.poll() is None:
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    subprocess.run(program(tree, out), cwd=ROOT, check=True)
    assert content(out) == content(tree / "whole")


def test_full_disk_is_one_line_and_the_run_continues(tree, full_disk, tmp_path):
    out = tmp_path / "full"
    command = program(tree, out)
    full = subprocess.run([*full_disk(50), *command], cwd=ROOT, capture_output=True, text=True)
    assert full.returncode == 2
    last = full.stderr.splitlines()[-1]
    assert last.startswith(f"error: {out}: cannot be written") and "too large" in last
    assert not list(out.glob(".writing-*"))
    subprocess.run(command, cwd=ROOT, check=True)
    assert content(out) == content(tree / "whole")
