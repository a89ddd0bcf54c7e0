"""End-to-end check of the data path: 2,000 synthetic scans prepared, verified, read for two epochs.

    python -m benchmarks.two_epochs

Two processes read. Fails unless each scan occurs once an epoch, in the same order the second time,
and after resuming in the middle.
"""

import hashlib
import multiprocessing
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import measure
from data_pipelines import command_line, loader, shards
from data_pipelines.patches import patchify
from data_pipelines.reports import TextSampler
from data_pipelines.shards.verify import verify
from data_pipelines.sources.phantoms.layout import write_tree
from data_pipelines.tokenizers import load_tokenizer

SCANS, PROCESSES, BATCH_SIZE, EPOCHS = 2000, 2, 8, 2
PATCH = (6, 12, 12)
GRID = ("--shape=24,48,48", "--spacing=12,7.5,7.5")
Fingerprints = list[tuple[bytes, bytes]]  # of the volume and of the tokens of every row


def prepare(tree: Path, out: Path) -> None:
    """Runs data_pipelines.prepare."""
    command = [sys.executable, "-m", "data_pipelines.prepare", "--source=phantoms"]
    arguments = [f"--data={tree}", f"--out={out}", "--splits=train", "--sentencepiece_vocab=1000"]
    subprocess.run([*command, *arguments, *GRID], check=True)


def read(folder: Path, index: int, interrupted: bool) -> Fingerprints:
    """Rows that process `index` reads; `interrupted` restores the loader in the middle."""

    def start():
        return loader.train_loader(
            [folder],
            split="train",
            text_sampler=TextSampler(shuffle=True),
            tokenizer=load_tokenizer(folder / "tokenizer.model"),
            max_length=64,
            patch=PATCH,
            batch_size=BATCH_SIZE,
            seed=0,
            one_reconstruction_per_scan=True,
            process_index=index,
            process_count=PROCESSES,
        )

    steps = EPOCHS * SCANS // (PROCESSES * BATCH_SIZE)
    seen: Fingerprints = []
    batches = start()
    for step in range(steps):
        if interrupted and step == steps // 2 + 3:
            state = batches.get_state()
            batches.close()
            batches = start()
            batches.set_state(state)
        batch = next(batches)
        rows = zip(batch["image"], batch["input_ids"], strict=True)
        seen += [(fingerprint(image), fingerprint(ids)) for image, ids in rows]
    batches.close()
    return seen


def fingerprint(array: np.ndarray) -> bytes:
    """A digest of the values."""
    return hashlib.blake2b(np.ascontiguousarray(array), digest_size=12).digest()


def read_by_all(folder: Path, *, interrupted: bool) -> list[Fingerprints]:
    """The rows of all processes."""
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        work = [(folder, index, interrupted) for index in range(PROCESSES)]
        return pool.starmap(read, work)


def check_epochs(folder: Path, parts: list[Fingerprints]) -> None:
    """Asserts that, in the order of steps over all processes, an epoch has every scan once."""
    source = shards.read(folder, "train")
    records = (source[index] for index in range(len(source)))
    scan_of = {
        fingerprint(patchify(record["volume"][None], PATCH)[0]): record["scan"]
        for record in records
    }
    steps = [
        [row for part in parts for row in part[start : start + BATCH_SIZE]]
        for start in range(0, len(parts[0]), BATCH_SIZE)
    ]
    seen = [scan_of[volume] for step in steps for volume, _ in step]
    for epoch in range(EPOCHS):
        scans = seen[epoch * SCANS : (epoch + 1) * SCANS]
        assert len(scans) == len(set(scans)) == SCANS, f"epoch {epoch}: a scan is missing or twice"


def main() -> None:
    seconds: dict[str, float] = {}

    def timed(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        value = work()
        seconds[name] = round(time.perf_counter() - start, 1)
        return value

    with tempfile.TemporaryDirectory() as scratch:
        tree, out = Path(scratch) / "tree", Path(scratch) / "shards"
        sizes = {"train_scans": SCANS, "valid_scans": 0, "seed": 0, "processes": os.cpu_count()}
        volumes = timed("drawing", lambda: write_tree(tree, **sizes))
        timed("preparation", lambda: prepare(tree, out))
        assert timed("verification", lambda: list(verify(out))) == []
        first = timed("two epochs", lambda: read_by_all(out, interrupted=False))
        again, resumed = (read_by_all(out, interrupted=flag) for flag in (False, True))
        check_epochs(out, first)
        assert first == again, "another order the second time"
        assert first == resumed, "resumed in the middle, other batches"
    measure.save(
        "two_epochs",
        {
            "scans": SCANS,
            "volumes": volumes,
            "processes": PROCESSES,
            "every scan once an epoch, same order again, resumed exactly": True,
            "seconds": seconds,
        },
    )


if __name__ == "__main__":
    command_line.run(main)
