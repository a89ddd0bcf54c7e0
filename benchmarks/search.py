"""Search among many cases: milliseconds a query, first and warm, and memory; exact on this device,
with filters, and through FAISS where it is installed. Fails if a warm exact query, a filtered one
too, of the smallest store takes 100 ms.

    python -m benchmarks.search
"""

import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from absl import flags
from jaxtyping import Float32

from benchmarks import measure
from ctclip_jax import index
from ctclip_jax.case_store import (
    CaseFilter,
    Entry,
    Searcher,
    Store,
    build_approximate_index,
    open_for_append,
)
from data_pipelines.errors import InputError, run_main

CASES = flags.DEFINE_list("cases", ["100000", "1000000"], "Sizes of the store.")
DIM, CLUSTERS, K, QUERIES, SEGMENT = 512, 200, 10, 30, index.SEGMENT_CASES
BOUND_MS = 100
SPREAD = {"clustered": 1.0, "random": 0.0}  # length of the centers, that of the rest being 1


def latents(count: int, *, seed: int, kind: str) -> Float32[np.ndarray, "n d"]:
    """Unit vectors around some centers, as those of scans lie around those of what they show; or
    random directions, of which no index can leave any out."""
    rng = np.random.default_rng(seed)
    centers = SPREAD[kind] * np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    drawn = centers[rng.integers(CLUSTERS, size=count)] + rng.normal(size=(count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def fill(folder: Path, count: int, kind: str) -> None:
    """Writes a store in segments as large as those of ctclip_jax.index."""
    with open_for_append(folder, model_sha256="", dim=DIM) as writer:
        for start in range(0, count, SEGMENT):
            rows = range(start, min(start + SEGMENT, count))
            entries = [
                Entry(
                    f"case_{row}",
                    findings="A report. " * 50,
                    labels={"Emphysema": row % 5 == 0},
                    strata={"sex": "FM"[row % 2]},
                )
                for row in rows
            ]
            drawn = latents(len(rows), seed=1 + start, kind=kind)
            writer.add(entries, drawn, [b"picture"] * len(rows))


def searched(folder: Path, kind: str) -> dict[str, Any]:
    """Opens a store and searches for one query after the other: exactly, among those that a filter
    lets pass, approximately."""
    start = time.perf_counter()
    searcher = Searcher(Store(folder))
    found: dict[str, Any] = {"open_seconds": round(time.perf_counter() - start, 2)}
    filters = {
        "exact": CaseFilter(),
        "exact, of a label": CaseFilter({"Emphysema": 1}),
        "exact, of a stratum": CaseFilter(strata={"sex": "F"}),
        **({"approximate": None} if searcher.is_approximate else {}),
    }
    queries, rows = latents(QUERIES, seed=99, kind=kind), {}
    for how, where in filters.items():
        milliseconds, rows[how] = [], []
        for query in (queries[0], *queries):
            start = time.perf_counter()
            mask = None if where is None else searcher.store.mask(where)
            hits = searcher.search(query, k=K, mask=mask)
            milliseconds.append(1e3 * (time.perf_counter() - start))
            rows[how].append([hit.row for hit in hits])
        found[how] = {
            "first_ms": round(milliseconds[0], 1),
            "median_ms": round(statistics.median(milliseconds[1:]), 2),
            "slowest_ms": round(max(milliseconds[1:]), 2),
        }
    if searcher.is_approximate:
        pairs = zip(rows["exact"], rows["approximate"], strict=True)
        shared = [len(set(exact) & set(other)) / K for exact, other in pairs]
        found["approximate"][f"recall@{K}"] = round(float(np.mean(shared)), 4)
    return found | {"peak_gib": round(measure.peak_gib(), 2)}


def measured(count: int, kind: str) -> dict[str, Any]:
    """A store of so many cases, made, indexed and searched, each in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "store"
        measure.in_new_process(fill, folder, count, kind)
        try:
            stage = measure.in_new_process(build_approximate_index, folder)
            built = {"seconds": round(stage.seconds, 1), "peak_gib": round(stage.peak_gib, 2)}
        except InputError as error:
            built = {"reason": str(error)}
        results = measure.in_new_process(searched, folder, kind).value
    return results | {"approximate_index": built}


def main() -> None:
    sizes = sorted(map(int, CASES.value))
    results = {str(size): measured(size, "clustered") for size in sizes}
    results[f"{sizes[0]}, random directions"] = measured(sizes[0], "random")
    measure.save("search", results)
    exact = [each for how, each in results[str(sizes[0])].items() if how.startswith("exact")]
    assert all(each["slowest_ms"] < BOUND_MS for each in exact), "too slow"


if __name__ == "__main__":
    run_main(main)
