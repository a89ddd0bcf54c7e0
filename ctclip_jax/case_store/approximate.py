"""An approximate index beside a very large store: inverted lists of FAISS (arXiv 2401.08281)."""

from pathlib import Path
from typing import Any

import numpy as np
from etils import epath
from jaxtyping import Float32

from ctclip_jax.case_store.store import Store
from data_pipelines.errors import InputError
from data_pipelines.files import publish, scratch_folder
from data_pipelines.shards import locked

FILE = "approximate.faiss"
PROBED = 64  # lists that a query looks into
LISTS = 4  # times the root of the number of cases
FEWEST = 40  # cases a list, so that its center is of more than a few
SAMPLES, ROUNDS = 64, 10  # of k-means: cases a list, and iterations
SAME = 1e-3  # how far the cosine of a latent and itself may be from 1


def build_approximate(folder: str | Path) -> None:
    """Writes the index of a whole store, for which nobody may be adding to it.

    An index that is there is added to, and made anew when the store has grown to four times of what
    it was made for.

    Raises:
      InputError: FAISS is not installed, an empty store, one that another process writes to, or
        the index cannot be written.
    """
    faiss = _faiss()
    store = Store.open(folder)
    with locked(store.folder, exclusive=True):
        latents = Store.open(folder).latents
        if not len(latents):
            raise InputError(f"{folder}: no case in it to index")
        index = _beginning(store.folder, latents) or _trained(latents)
        index.add(latents[index.ntotal :])
        with scratch_folder(epath.Path(store.folder)) as scratch:
            faiss.write_index(index, str(scratch / FILE))
            publish(scratch / FILE, epath.Path(store.folder / FILE))


def read_approximate(folder: Path, latents: Float32[np.ndarray, "n d"]) -> Any | None:
    """The index of a store whose latents these are; None if it has none, or of less than all.

    Raises:
      InputError: it is damaged, or FAISS is not installed.
    """
    if not (folder / FILE).exists():
        return None
    index = _read(folder)
    return index if index.ntotal == len(latents) and _is_of(index, latents) else None


def _trained(latents: Float32[np.ndarray, "n d"]) -> Any:
    """An index without cases, its lists made for these."""
    faiss = _faiss()
    kind = f"IVF{_lists(len(latents))},Flat"
    index = faiss.index_factory(latents.shape[1], kind, faiss.METRIC_INNER_PRODUCT)
    index.cp.max_points_per_centroid, index.cp.niter = SAMPLES, ROUNDS
    index.train(latents)
    return index


def _beginning(folder: Path, latents: Float32[np.ndarray, "n d"]) -> Any | None:
    """The index that is there, if it is of the first of these latents and has lists enough."""
    try:
        index = _read(folder)
    except InputError:
        return None
    enough = 2 * index.nlist >= _lists(len(latents))
    return index if enough and _is_of(index, latents) else None


def _lists(count: int) -> int:
    return max(1, min(int(LISTS * np.sqrt(count)), count // FEWEST))


def _is_of(index: Any, latents: Float32[np.ndarray, "n d"]) -> bool:
    """Whether the last case of the index is the one that has its row among the latents: it is not
    after the store was deleted and another one made in its place."""
    if index.d != latents.shape[1] or not 0 < index.ntotal <= len(latents):
        return False
    last = latents[index.ntotal - 1]
    ((similarity,), _) = index.search(last[None], 1)
    return bool(similarity[0] > 1 - SAME)


def _read(folder: Path) -> Any:
    path = folder / FILE
    try:
        index = _faiss().read_index(str(path))
    except RuntimeError as error:
        raise InputError(f"{path}: damaged ({str(error).splitlines()[0]})") from error
    index.nprobe = PROBED
    return index


def _faiss() -> Any:
    try:
        import faiss
    except ImportError as error:
        raise InputError("an approximate index takes FAISS: pip install faiss-cpu") from error
    return faiss
