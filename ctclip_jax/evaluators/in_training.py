"""The evaluators inside a run, on the devices and with the sharded weights of the training."""

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from ctclip_jax.config import TrainConfig
from ctclip_jax.evaluators import encoding, suite, zero_shot
from ctclip_jax.evaluators.figures import named_figures
from ctclip_jax.evaluators.protocol import ProtocolConfig
from ctclip_jax.evaluators.study import Study, from_rows
from ctclip_jax.metric_writer import MetricWriter
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.shapes import Variables
from ctclip_jax.sharding import local_batch_size, put_batch
from data_pipelines import loader, shards
from data_pipelines.tokenizers import Tokenizer


class Evaluation:
    """Zero-shot detection and retrieval of the weights as they are, on some volumes of a split.

    Every process makes the same calls; each encodes its share and all get all latents.
    """

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: CTCLIP,
        mesh: Mesh,
        tokenizer: Tokenizer,
    ):
        """Raises InputError if there is no such split."""
        self._config, self._folder = config.evaluation, config.evaluation_shards
        self._mesh, self._tokenizer = mesh, tokenizer
        rows = shards.read_reports(self._folder, self._config.split)
        self._chosen = spread(len(rows), self._config.volumes)
        self._rows = [rows[i] for i in self._chosen]
        self._labels = shards.preparation(self._folder, self._config.split)["labels"]
        self._protocol = ProtocolConfig(prompts=self._config.prompts, resamples=0)
        self._batch_size = local_batch_size(self._config.batch_size, mesh)
        self._process = {
            "process_index": jax.process_index(),
            "process_count": jax.process_count(),
        }
        everywhere = NamedSharding(mesh, P())
        self._image = jax.jit(functools.partial(_image, model), out_shardings=everywhere)
        self._text = jax.jit(functools.partial(_text, model), out_shardings=everywhere)

    def __call__(self, variables: Variables, *, step: int, writer: MetricWriter) -> float | None:
        """Writes the figures of detection and retrieval, and a line on the terminal.

        Returns the mean AUROC; None if no label has volumes with and without it.
        """
        metrics, _ = suite.evaluate(self._study(variables), protocol=self._protocol)
        figures = {
            f"evaluation/{name}": figure["value"]
            for part in ("detection", "retrieval")
            for name, figure in named_figures(metrics[part], part)
            if figure["value"] is not None
        }
        writer.write_scalars(step, figures)
        if jax.process_index() == 0:
            print(f"step {step}: {suite.headline(metrics)}", flush=True)
        return metrics["detection"]["macro"]["auroc"]["value"]

    def _study(self, variables: Variables) -> Study:
        config = self._config
        encode_texts = functools.partial(self._encode_texts, variables)
        reading = {"report": config.report, "pool_sentences": config.pool_sentences}
        texts = [encoding.texts_of(row, **reading) for row in self._rows]
        order = np.argsort([row["volume_name"] for row in self._rows], kind="stable")
        text = encoding.encode_reports(texts, encode_texts=encode_texts)[order]
        image = self._encode_volumes(variables)[order]
        prompts = zero_shot.prompt_texts(self._labels, self._protocol)
        scores = zero_shot.scores(
            image,
            labels=self._labels,
            prompts=dict(zip(prompts, encode_texts(prompts), strict=True)),
            temperature=math.exp(variables["params"]["temperature"]),
            protocol=self._protocol,
        )
        study = from_rows(self._rows, texts=[""] * len(texts), labels=self._labels, source={})
        return dataclasses.replace(
            study, scores=scores, image=image, text=text if text.shape[1] else None
        )

    def _encode_volumes(self, variables: Variables) -> np.ndarray:
        batches = loader.eval_loader(
            self._folder,
            split=self._config.split,
            batch_size=self._batch_size,
            rows=self._chosen,
            **self._process,
        )
        return encoding.by_row(self._encode(self._image, variables, batches), rows=self._chosen)

    def _encode_texts(self, variables: Variables, texts: Sequence[str]) -> np.ndarray:
        ids, mask = self._tokenizer(list(texts), self._config.max_length)
        rows = range(len(texts))
        mine = loader.share(rows, batch_size=self._batch_size, **self._process)
        parts = mine.reshape(-1, self._batch_size)
        batches = ({"input_ids": ids[p], "attention_mask": mask[p], "row": p} for p in parts)
        return encoding.by_row(self._encode(self._text, variables, batches), rows=rows)

    def _encode(
        self, encode: Callable, variables: Variables, batches: Iterable[Mapping[str, Any]]
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and latents of the batches of all processes."""
        for batch in batches:
            yield jax.device_get(encode(variables, put_batch(batch, self._mesh)))


def spread(size: int, count: int) -> list[int]:
    """`count` of `size` rows, spread evenly; all of them for 0."""
    if not 0 < count < size:
        return list(range(size))
    return np.linspace(0, size - 1, count).round().astype(int).tolist()


def _image(model: CTCLIP, variables: Variables, batch: dict) -> tuple[jax.Array, jax.Array]:
    return batch["row"], model.encode_image(variables, batch["image"])


def _text(model: CTCLIP, variables: Variables, batch: dict) -> tuple[jax.Array, jax.Array]:
    return batch["row"], model.encode_text(variables, batch["input_ids"], batch["attention_mask"])
