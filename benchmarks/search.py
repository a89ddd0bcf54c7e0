"""Case search: query latency and memory, exact, filtered, and approximate (FAISS if installed).

    python -m benchmarks.search

Fails if a warm exact query of the smallest store takes 100 ms, filtered ones included.
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
from data_pipelines import command_line
from data_pipelines.errors import InputError

CASES = flags.DEFINE_list("cases", ["100000", "1000000"], "Store sizes.")
DIM, CLUSTERS, K, QUERIES, SEGMENT = 512, 200, 10, 30, index.SEGMENT_CASES
BOUND_MS = 100
# Length of the cluster centers relative to the spread around them.
SPREAD = {"clustered": 1.0, "random": 0.0}


def latents(count: int, *, seed: int, kind: str) -> Float32[np.ndarray, "n d"]:
    """Unit vectors around cluster centers, as the latents of scans cluster by their findings; or
    random directions, the worst case of an approximate index."""
    rng = np.random.default_rng(seed)
    centers = SPREAD[kind] * np.random.default_rng(0).normal(size=(CLUSTERS, DIM))
    drawn = centers[rng.integers(CLUSTERS, size=count)] + rng.normal(size=(count, DIM))
    return (drawn / np.linalg.norm(drawn, axis=1, keepdims=True)).astype(np.float32)


def fill(folder: Path, count: int, kind: str) -> None:
    """Writes a store in segments of the size that ctclip_jax.index writes."""
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
    """Opens a store and times single queries: exact, filtered, approximate."""
    start = time.perf_counter()
    searcher = Searcher(Store(folder))
    results: dict[str, Any] = {"open_seconds": round(time.perf_counter() - start, 2)}
    filters = {
        "exact": CaseFilter(),
        "exact, of a label": CaseFilter({"Emphysema": 1}),
        "exact, of a stratum": CaseFilter(strata={"sex": "F"}),
        **({"approximate": None} if searcher.is_approximate else {}),
    }
    queries, rows = latents(QUERIES, seed=99, kind=kind), {}
    for kind_of_query, where in filters.items():
        milliseconds, rows[kind_of_query] = [], []
        for query in (queries[0], *queries):
            start = time.perf_counter()
            mask = None if where is None else searcher.store.mask(where)
            hits = searcher.search(query, k=K, mask=mask)
            milliseconds.append(1e3 * (time.perf_counter() - start))
            rows[kind_of_query].append([hit.row for hit in hits])
        results[kind_of_query] = {
            "first_ms": round(milliseconds[0], 1),
            "median_ms": round(statistics.median(milliseconds[1:]), 2),
            "slowest_ms": round(max(milliseconds[1:]), 2),
        }
    if searcher.is_approximate:
        pairs = zip(rows["exact"], rows["approximate"], strict=True)
        shared = [len(set(exact) & set(other)) / K for exact, other in pairs]
        results["approximate"][f"recall@{K}"] = round(float(np.mean(shared)), 4)
    return results | {"peak_gib": round(measure.peak_gib(), 2)}


def measured(count: int, kind: str) -> dict[str, Any]:
    """Results of a store of `count` cases; filled, indexed and searched in separate processes."""
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
    smallest = results[str(sizes[0])]
    exact = [row["slowest_ms"] for name, row in smallest.items() if name.startswith("exact")]
    assert max(exact) < BOUND_MS, f"an exact query took {max(exact)} ms"


if __name__ == "__main__":
    command_line.run(main)
