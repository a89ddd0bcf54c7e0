"""The towers of a run at work on whole splits, on its mesh, over all of its processes."""

import functools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P
from jaxtyping import Float

from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import local_batch_size, put_batch
from ctclip_jax.evaluation import encode
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines import loader
from data_pipelines.tokenizers import Tokenizer


class ShardedEncoder:
    """Latents of volumes and texts; every process makes the same calls, encodes its share and gets
    all latents."""

    def __init__(self, model: CTCLIP, mesh: Mesh, *, batch_size: int):
        """`batch_size` volumes and texts at a time, over all devices."""
        self._mesh, self._batch_size = mesh, local_batch_size(batch_size, mesh)
        self._process = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        everywhere = NamedSharding(mesh, P())
        self._image = jax.jit(functools.partial(_image, model), out_shardings=everywhere)
        self._text = jax.jit(functools.partial(_text, model), out_shardings=everywhere)

    def volumes(
        self, variables: Variables, folder: str, *, split: str, rows: Sequence[int]
    ) -> Float[np.ndarray, "n d"]:
        """The latents of `rows` of a prepared split, in their order."""
        batches = loader.eval_loader(
            folder, split=split, batch_size=self._batch_size, rows=rows, **self._process
        )
        return encode.by_row(self._encode(self._image, variables, batches), rows=rows)

    def texts(
        self, variables: Variables, texts: Sequence[str], *, tokenizer: Tokenizer, max_length: int
    ) -> Float[np.ndarray, "n d"]:
        """The latents of `texts`, in their order."""
        ids, mask = tokenizer(list(texts), max_length)
        rows = range(len(texts))
        mine = loader.rows_of_process(rows, batch_size=self._batch_size, **self._process)
        parts = mine.reshape(-1, self._batch_size)
        batches = ({"input_ids": ids[p], "attention_mask": mask[p], "row": p} for p in parts)
        return encode.by_row(self._encode(self._text, variables, batches), rows=rows)

    def _encode(
        self, encode: Callable, variables: Variables, batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and latents of the batches of all processes."""
        for batch in batches:
            yield jax.device_get(encode(variables, put_batch(batch, self._mesh)))


def _image(model: CTCLIP, variables: Variables, batch: dict) -> tuple[jax.Array, jax.Array]:
    return batch["row"], model.encode_image(variables, batch["image"])


def _text(model: CTCLIP, variables: Variables, batch: dict) -> tuple[jax.Array, jax.Array]:
    return batch["row"], model.encode_text(variables, batch["input_ids"], batch["attention_mask"])
