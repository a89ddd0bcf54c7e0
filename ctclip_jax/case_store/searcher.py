"""Nearest-neighbor search over a case store: exact on the device, or approximate with FAISS."""

import dataclasses
import functools
from pathlib import Path
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from etils import epath
from jaxtyping import Array, Bool, Float, Float32, Int

from ctclip_jax.case_store.store import Entry, Store
from ctclip_jax.inference.load import Model
from data_pipelines.errors import InputError, one_line
from data_pipelines.files import locked, publish, scratch_folder
from data_pipelines.reports import split_sentences

TOP_K_MULTIPLE = 16
MORE_PER_ROUND = 4  # of the cases looked at until k exams are among them

INDEX_FILE = "approximate.faiss"
# Inverted lists (IVF): 4 sqrt(n) of them, as FAISS recommends below a million vectors, but at
# least 40 cases per list, below which k-means has too few points per centroid.
LISTS_PER_SQRT_CASES, MIN_CASES_PER_LIST = 4, 40
NUM_PROBED_LISTS = 64  # more lists per query: higher recall, slower
KMEANS_POINTS_PER_LIST, KMEANS_ITERATIONS = 64, 10
SELF_SIMILARITY_TOLERANCE = 1e-3


@dataclasses.dataclass(frozen=True)
class Hit:
    """A search result: row in the store, cosine similarity to the query, the case, and how many
    volumes of its exam were searched."""

    row: int
    similarity: float
    entry: Entry
    num_volumes: int = 1


class Searcher:
    """A store with its latents on the device.

    Searches without a mask use the approximate index if there is one of all cases.
    """

    def __init__(self, store: Store):
        self.store = store
        latents = store.load_latents()
        self._index = _load_approximate_index(store.folder, latents)
        self._latents = jax.device_put(latents, jax.local_devices()[0])
        # By row the number of its exam, 0 to the number of exams - 1.
        self._exams = np.unique(store.exams, return_inverse=True)[1]
        # Compile now, so that the first query is as fast as the others.
        self._search_exact(np.zeros(store.dim, np.float32), np.ones(len(store), bool), k=1)

    @property
    def is_approximate(self) -> bool:
        """Whether searches without a mask are approximate."""
        return self._index is not None

    def search(
        self,
        query: Float[np.ndarray, " d"],
        *,
        k: int = 10,
        mask: Bool[np.ndarray, " n"] | None = None,
        per: Literal["exam", "volume"] = "exam",
    ) -> list[Hit]:
        """The k cases most similar to a latent, most similar first, ties in row order.

        per="exam": of the reconstructions of an exam only the most similar one; a volume whose exam
        the store does not know is one of its own. `mask` (`Store.mask`) is applied before the k are
        taken; fewer pass, fewer are returned.
        """
        query, num_cases = np.asarray(query, np.float32), len(self.store)
        count = min(k, num_cases)
        if query.shape != (self.store.dim,):
            raise InputError(f"query: got shape {query.shape}, expected ({self.store.dim},)")
        if not count:
            return []
        groups = self._exams if per == "exam" else np.arange(num_cases)
        while True:
            similarities, rows = self._nearest(query, mask, k=count)
            _, first = np.unique(groups[rows], return_index=True)
            if len(first) >= k or len(rows) < count or count == num_cases:
                break
            count = min(MORE_PER_ROUND * count, num_cases)
        searched = groups if mask is None else groups[mask]
        return [
            Hit(
                int(rows[n]),
                float(similarities[n]),
                self.store.load_entry(int(rows[n])),
                int(np.sum(searched == groups[rows[n]])),
            )
            for n in np.sort(first)[:k]
        ]

    def _nearest(
        self, query: Float32[np.ndarray, " d"], mask: Bool[np.ndarray, " n"] | None, *, k: int
    ) -> tuple[Float[np.ndarray, " m"], Int[np.ndarray, " m"]]:
        """Similarities and rows of the k nearest cases or a few more; fewer if fewer are found."""
        if self._index is not None and mask is None:
            (similarities,), (rows,) = self._index.search(query[None], k)
        else:
            mask = np.ones(len(self.store), bool) if mask is None else mask
            similarities, rows = self._search_exact(query, mask, k=k)
        # Fewer than k results are padded: by FAISS with row -1, by the mask with -inf.
        is_result = (rows >= 0) & (similarities > -np.inf)
        return similarities[is_result], rows[is_result]

    def _search_exact(
        self, query: Float32[np.ndarray, " d"], mask: Bool[np.ndarray, " n"], *, k: int
    ) -> tuple[Float32[np.ndarray, " k"], Int[np.ndarray, " k"]]:
        # Round k up, so that few programs are compiled.
        rounded_k = min(-(-k // TOP_K_MULTIPLE) * TOP_K_MULTIPLE, len(mask))
        return jax.device_get(_top_k(self._latents, query, mask, k=rounded_k))


@functools.partial(jax.jit, static_argnames="k")
def _top_k(
    latents: Float[Array, "n d"], query: Float[Array, " d"], mask: Bool[Array, " n"], *, k: int
) -> tuple[Float[Array, " k"], Int[Array, " k"]]:
    with jax.default_matmul_precision("float32"):
        similarities = latents @ query
    return jax.lax.top_k(jnp.where(mask, similarities, -jnp.inf), k)


def encode_query(model: Model, text: str) -> Float32[np.ndarray, " d"]:
    """The unit latent of a text query; the mean over sentences if reports are pooled."""
    sentences = split_sentences(text) if model.pool_sentences else []
    mean = model.encode_text(sentences or [text]).mean(axis=0)
    return mean / np.linalg.norm(mean)


def build_approximate_index(folder: str | Path) -> None:
    """Writes a FAISS index (arXiv 2401.08281) of all cases; locks the store meanwhile."""
    faiss = _import_faiss()
    Store(folder)  # raises InputError; a lock would create the folder
    with locked(folder, exclusive=True):
        store = Store(folder)
        latents = store.load_latents()
        if not len(latents):
            raise InputError(f"{folder}: no cases to index")
        largest = len(latents) // MIN_CASES_PER_LIST
        num_lists = max(1, min(int(LISTS_PER_SQRT_CASES * np.sqrt(len(latents))), largest))
        index = faiss.index_factory(store.dim, f"IVF{num_lists},Flat", faiss.METRIC_INNER_PRODUCT)
        index.cp.max_points_per_centroid = KMEANS_POINTS_PER_LIST
        index.cp.niter = KMEANS_ITERATIONS
        index.train(latents)
        index.add(latents)
        with scratch_folder(epath.Path(store.folder)) as scratch:
            faiss.write_index(index, str(scratch / INDEX_FILE))
            publish(scratch / INDEX_FILE, epath.Path(store.folder / INDEX_FILE))


def _load_approximate_index(folder: Path, latents: Float32[np.ndarray, "n d"]) -> Any | None:
    """The FAISS index of exactly these latents; None if the store has none, or a stale one."""
    path = folder / INDEX_FILE
    if not path.exists():
        return None
    try:
        index = _import_faiss().read_index(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: damaged ({one_line(error)})") from error
    index.nprobe = NUM_PROBED_LISTS
    if index.d != latents.shape[1] or not 0 < index.ntotal == len(latents):
        return None
    # The size alone does not tell: another store may have been created in the same folder.
    ((similarity,), _) = index.search(latents[-1:], 1)
    return index if similarity > 1 - SELF_SIMILARITY_TOLERANCE else None


def _import_faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("an approximate index needs FAISS: pip install faiss-cpu") from error
    return faiss
