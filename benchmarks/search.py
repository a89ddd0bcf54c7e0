"""Search among many cases: milliseconds a query, warm, and memory; exact on this device, and
through FAISS where it is installed.

    python -m benchmarks.search
"""

import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags

from benchmarks import measure
from ctclip_jax.case_search import Entry, Searcher, Store, adding, build_approximate
from data_pipelines.errors import InputError, run_main

CASES = flags.DEFINE_list("cases", ["100000", "1000000"], "Sizes of the store.")
DIM, CLUSTERS, K, QUERIES, SEGMENT = 512, 200, 10, 30, 50_000


def latents(count: int, *, seed: int) -> np.ndarray:
    """Unit vectors around some centers, as those of scans lie around those of what they show."""
    rng = np.random.default_rng(seed)
    centers = np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    drawn = centers[rng.integers(CLUSTERS, size=count)] + rng.normal(size=(count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def fill(folder: Path, count: int) -> None:
    Store.create(folder, model_sha256="", dim=DIM)
    with adding(folder) as addition:
        for start in range(0, count, SEGMENT):
            size = min(SEGMENT, count - start)
            entries = [Entry(f"case_{start + i}", findings="A report. " * 50) for i in range(size)]
            addition.add(entries, latents(size, seed=1 + start), [b"picture"] * size)


def searched(folder: Path) -> dict[str, Any]:
    """Opens a store and searches for one query after the other, exactly and approximately."""
    start = time.perf_counter()
    searcher = Searcher(Store.open(folder))
    opened = time.perf_counter() - start
    queries, found = latents(QUERIES, seed=99)[:, None], {}
    everything = np.ones(len(searcher.store), bool)
    for how, where in (("exact", everything), ("approximate", None)):
        if where is None and not searcher.approximate:
            continue
        milliseconds, rows = [], []
        for query in (queries[0], *queries):
            start = time.perf_counter()
            (hits,) = searcher.search(query, k=K, where=where)
            milliseconds.append(1e3 * (time.perf_counter() - start))
            rows.append([hit.row for hit in hits])
        found[how] = {
            "first_ms": round(milliseconds[0], 1),
            "median_ms": round(statistics.median(milliseconds[1:]), 2),
            "slowest_ms": round(max(milliseconds[1:]), 2),
        }
        if how == "exact":
            truth = rows
        else:
            shared = [len(set(a) & set(b)) / K for a, b in zip(truth, rows, strict=True)]
            found[how][f"recall@{K}"] = round(float(np.mean(shared)), 4)
    return {"open_seconds": round(opened, 2), **found, "peak_gib": round(measure.peak_gib(), 2)}


def main(argv: Sequence[str]) -> None:
    del argv
    results = {}
    for count in map(int, CASES.value):
        with tempfile.TemporaryDirectory() as scratch:
            folder = Path(scratch) / "store"
            measure.in_new_process(fill, folder, count)
            try:
                built = measure.in_new_process(build, folder).seconds
            except InputError as error:
                built = str(error)
            results[str(count)] = measure.in_new_process(searched, folder).value
            results[str(count)]["approximate_index"] = built
    measure.save("search", results)


def build(folder: Path) -> None:
    build_approximate(folder)


if __name__ == "__main__":
    run_main(main)
