"""Similarities of latents, block by block, so that 50,000 x 50,000 fit in 2 GiB."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Integer

TIE = 1e-9  # similarities nearer than this are equal: what BLAS makes of the order of its sums
BLOCK = 1 << 23  # similarities held at a time


def similarities(
    queries: Float[np.ndarray, "q d"], gallery: Float[np.ndarray, "n d"]
) -> Iterator[tuple[slice, Float[np.ndarray, "block n"]]]:
    """Rows of queries and their dot products with the gallery, about `BLOCK` at a time."""
    columns = gallery.astype(np.float64).T
    step = max(BLOCK // max(len(gallery), 1), 1)
    for start in range(0, len(queries), step):
        rows = slice(start, start + step)
        yield rows, queries[rows].astype(np.float64) @ columns


def match(
    query_names: np.ndarray, gallery_names: np.ndarray
) -> tuple[Integer[np.ndarray, " q"], Integer[np.ndarray, " n"], Integer[np.ndarray, " q"]]:
    """A number per name, of queries and of items, and how many items bear each query's name."""
    names, ids = np.unique(np.concatenate([query_names, gallery_names]), return_inverse=True)
    query_ids, gallery_ids = np.split(ids, [len(query_names)])
    return query_ids, gallery_ids, np.bincount(gallery_ids, minlength=len(names))[query_ids]


def check_k(k: int, limit: int) -> None:
    if not 1 <= k <= limit:
        raise ValueError(f"K is {k}, but only 1 to {limit} items are ranked")
