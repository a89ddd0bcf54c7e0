"""Search: exact on the device, or through an approximate index of a very large store."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Float32

from ctclip_jax.case_store.approximate import read_approximate
from ctclip_jax.case_store.segment import Entry
from ctclip_jax.case_store.store import Store
from data_pipelines.errors import InputError

QUERIES = 256  # at a time
FOUND_STEP = 16  # cases found are a multiple of this, so that few programs are compiled


@dataclasses.dataclass(frozen=True)
class Hit:
    """A case that was found: its row in the store, and the cosine of its latent and the query's."""

    row: int
    similarity: float
    entry: Entry


class Searcher:
    """A store with its latents on the device.

    The approximate index is used where it covers the store and there is no filter.
    """

    def __init__(self, store: Store):
        self.store = store
        latents = store.latents
        self._index = read_approximate(store.folder, latents)
        self._latents = jax.device_put(latents, jax.local_devices()[0])
        # Compiled now, so that the first query is answered as soon as the others.
        self._exact(np.zeros((1, store.dim), np.float32), np.ones(len(store), bool), k=1)

    @property
    def approximate(self) -> bool:
        """Whether a search without a filter is approximate."""
        return self._index is not None

    def search(
        self,
        latents: Float[np.ndarray, "q d"],
        *,
        k: int = 10,
        where: Bool[np.ndarray, " n"] | None = None,
    ) -> list[list[Hit]]:
        """The k cases most like each query, the most similar first, equals in the order of rows;
        of those that `where` lets pass, so there may be fewer."""
        rows, similarities = self.nearest(latents, k=k, where=where)
        return [
            [
                Hit(int(row), float(similarity), self.store.entry(int(row)))
                for row, similarity in zip(*each, strict=True)
                if np.isfinite(similarity)
            ]
            for each in zip(rows, similarities, strict=True)
        ]

    def nearest(
        self,
        latents: Float[np.ndarray, "q d"],
        *,
        k: int = 10,
        where: Bool[np.ndarray, " n"] | None = None,
    ) -> tuple[np.ndarray, Float32[np.ndarray, "q k"]]:
        """Rows (q, k) and their similarities; -inf where there are fewer than k.

        Raises:
          InputError: queries of another size than the latents of the store.
        """
        queries = np.asarray(latents, np.float32)
        if queries.ndim != 2 or queries.shape[1] != self.store.dim:
            raise InputError(f"queries of shape {queries.shape}; the store has {self.store.dim}")
        k = min(k, len(self.store))
        if not k or not len(queries):
            return np.zeros((len(queries), 0), int), np.zeros((len(queries), 0), np.float32)
        if self._index is not None and where is None:
            similarities, rows = self._index.search(queries, k)
            return rows, np.where(rows < 0, -np.inf, similarities)
        return self._exact(queries, np.ones(len(self.store), bool) if where is None else where, k=k)

    def _exact(
        self, queries: Float32[np.ndarray, "q d"], passes: Bool[np.ndarray, " n"], *, k: int
    ) -> tuple[np.ndarray, Float32[np.ndarray, "q k"]]:
        size = min(-(-k // FOUND_STEP) * FOUND_STEP, len(passes))
        found = [
            _nearest(self._latents, queries[start : start + QUERIES], passes, k=size)
            for start in range(0, len(queries), QUERIES)
        ]
        similarities, rows = (np.concatenate(each)[:, :k] for each in zip(*found, strict=True))
        return rows, similarities


@functools.partial(jax.jit, static_argnames="k")
def _nearest(
    latents: Float[Array, "n d"],
    queries: Float[Array, "q d"],
    passes: Bool[Array, " n"],
    *,
    k: int,
) -> tuple[Float[Array, "q k"], Array]:
    with jax.default_matmul_precision("float32"):
        similarities = queries @ latents.T
    return jax.lax.top_k(jnp.where(passes[None], similarities, -jnp.inf), k)
