"""Encoder: latents of the volumes and texts of prepared splits, on a mesh, over all processes."""

import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import put_batch
from ctclip_jax.inference.batching import group_by_length, one_ahead
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.kernels.placement import use_mesh
from data_pipelines import loader
from data_pipelines.reports import report_sentences, report_text
from data_pipelines.tokenizers import Tokenizer

TEXTS_PER_BATCH = 32
# Reports tokenized at a time, which bounds memory.
TEXTS_PER_CHUNK = 512


class Encoder:
    """Every process makes the same calls, encodes its rows of each batch and gets all latents.

    The weights are arguments, because those of a training run change between calls.
    """

    def __init__(
        self,
        model: CTCLIP,
        mesh: Mesh,
        *,
        batch_size: int,
        tokenizer: Tokenizer | None = None,
        max_length: int = 0,
    ):
        """`batch_size` volumes at a time over all devices, rounded up to their number."""
        self._mesh, self._batch_size = mesh, batch_size
        self._tokenizer, self._max_length = tokenizer, max_length
        self._process = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        self._patch = model.config.image.patch
        self._image, self._text = _jitted(model, mesh)

    def encode_volumes(
        self,
        variables: Variables,
        folder: str,
        *,
        split: str,
        rows: Sequence[int],
        on_progress: Callable[[int], object] = lambda num_volumes: None,
    ) -> Float[np.ndarray, "n d"]:
        """Unit latents of `rows` of a prepared split, in their order."""
        batches = loader.eval_loader(
            folder,
            split=split,
            patch=self._patch,
            batch_size=self._rows_per_process(self._batch_size),
            rows=rows,
            **self._process,
        )
        by_row = self._encode(self._image, variables, batches, on_progress=on_progress)
        return np.stack([by_row[row] for row in rows])

    def encode_texts(self, variables: Variables, texts: Sequence[str]) -> Float[np.ndarray, "n d"]:
        """Unit latents of `texts`, in their order."""
        ids, mask = self._tokenizer(list(texts), self._max_length)
        batch_size = self._rows_per_process(TEXTS_PER_BATCH)
        by_row = {}
        # Padding changes no latent, so texts of similar length share batches without most of it.
        for rows, length in group_by_length(mask):
            mine = loader.rows_of_process(rows, batch_size=batch_size, **self._process)
            batches = (
                {"input_ids": ids[p, :length], "attention_mask": mask[p, :length], "row": p}
                for p in mine.reshape(-1, batch_size)
            )
            by_row |= self._encode(self._text, variables, batches)
        return np.stack([by_row[row] for row in range(len(texts))])

    def encode_reports(
        self, variables: Variables, reports: Sequence[Sequence[str]]
    ) -> Float[np.ndarray, "n d"]:
        """The unit latent of each report: the normalized mean over its `report_texts`.

        Distinct texts are encoded once. A report without texts is NaN; (n, 0) if none has any.
        """
        # Sorted by length, so that a chunk has few lengths.
        distinct = sorted({text for texts in reports for text in texts}, key=lambda t: (len(t), t))
        if not distinct:
            return np.zeros((len(reports), 0), np.float32)
        index = {text: row for row, text in enumerate(distinct)}
        starts = range(0, len(distinct), TEXTS_PER_CHUNK)
        chunks = [distinct[start : start + TEXTS_PER_CHUNK] for start in starts]
        latents = np.concatenate([self.encode_texts(variables, chunk) for chunk in chunks])
        means = np.full((len(reports), latents.shape[1]), np.nan, latents.dtype)
        for row, texts in enumerate(reports):
            if texts:
                means[row] = latents[[index[text] for text in texts]].mean(axis=0)
        return means / np.linalg.norm(means, axis=1, keepdims=True)

    def _rows_per_process(self, batch_size: int) -> int:
        devices = self._mesh.size
        return -(-batch_size // devices) * devices // jax.process_count()

    def _encode(
        self,
        encode: Callable,
        variables: Variables,
        batches: Iterable[Mapping[str, Any]],
        *,
        on_progress: Callable[[int], object] = lambda num_rows: None,
    ) -> dict[int, Float[np.ndarray, " d"]]:
        """Latents by the rows of the batches. Reading, transfer and computation overlap: the loader
        is a batch ahead, and the next batch is sent before the latents of this one are read."""
        encoded = (encode(variables, put_batch(batch, self._mesh)) for batch in batches)
        by_row = {}
        for rows, latents in map(jax.device_get, one_ahead(encoded)):
            by_row.update(zip(rows.tolist(), latents, strict=True))
            on_progress(int((rows >= 0).sum()))  # -1 fills up the last batch
        return by_row


@functools.cache
def _jitted(model: CTCLIP, mesh: Mesh) -> list[Callable]:
    """Both encoders, whose results every process gets; cached, since a new jit compiles again."""

    def image(variables: Variables, batch: dict) -> tuple[jax.Array, jax.Array]:
        with use_mesh(mesh):
            return batch["row"], model.encode_image(variables, batch["image"])

    def text(variables: Variables, batch: dict) -> tuple[jax.Array, jax.Array]:
        ids, mask = batch["input_ids"], batch["attention_mask"]
        with use_mesh(mesh):
            return batch["row"], model.encode_text(variables, ids, mask)

    return [jax.jit(encode, out_shardings=NamedSharding(mesh, P())) for encode in (image, text)]


def report_texts(row: Mapping[str, Any], *, report_format: str, pool_sentences: bool) -> list[str]:
    """The texts that are encoded of a report: one, or its sentences; none without a report."""
    if pool_sentences:
        texts = report_sentences(row["findings"], row["impressions"], form=report_format)
    else:
        texts = [report_text(row["findings"], row["impressions"], form=report_format)]
    return texts or [""] if row["findings"] or row["impressions"] else []
