"""The evaluators inside a run, on the devices and with the sharded weights of the training."""

import dataclasses
import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from ctclip_jax.common.shapes import Variables
from ctclip_jax.evaluation import encode, suite
from ctclip_jax.evaluation.dataset import EvalSet, from_rows
from ctclip_jax.evaluation.encoder import ShardedEncoder
from ctclip_jax.evaluation.estimates import named_figures
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference.classifiers import trained_classifier, zero_shot_classifier
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.metric_writer import MetricWriter
from data_pipelines import shards
from data_pipelines.tokenizers import Tokenizer


class Evaluation:
    """Detection and retrieval of the weights as they are, on some volumes of a split."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: CTCLIP,
        mesh: Mesh,
        tokenizer: Tokenizer,
        label_informed: bool,
    ):
        """Raises InputError if there is no such split."""
        self._config, self._folder = config.evaluation, config.evaluation_shards
        self._encoder = ShardedEncoder(model, mesh, batch_size=self._config.batch_size)
        self._tokenizer = tokenizer
        rows = shards.read_reports(self._folder, self._config.split)
        self._chosen = spread(len(rows), self._config.volumes)
        self._rows = [rows[i] for i in self._chosen]
        self._labels = shards.preparation(self._folder, self._config.split)["labels"]
        self._protocol = ProtocolConfig(
            prompts=self._config.prompts,
            classifier=self._config.classifier,
            resamples=0,
        )
        self._source = {"trained_with": "labels"} if label_informed else {}

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

    def _study(self, variables: Variables) -> EvalSet:
        order = np.argsort([row["volume_name"] for row in self._rows], kind="stable")
        image = self._encoder.volumes(
            variables, self._folder, split=self._config.split, rows=self._chosen
        )[order]
        study = dataclasses.replace(
            from_rows(
                self._rows, texts=[""] * len(order), labels=self._labels, source=self._source
            ),
            image=image,
        )
        if self._protocol.classifier == "trained":
            # A model that is trained on labels alone knows no texts.
            classifier = trained_classifier(**jax.device_get(variables["params"]["classifier"]))
            scores = self._protocol.scores(self._labels, classifier, image)
            return dataclasses.replace(study, scores=scores)
        text = self._encode_reports(variables)[order]
        return dataclasses.replace(
            study,
            scores=self._zero_shot(variables, image),
            text=text if text.shape[1] else None,
        )

    def _encode_reports(self, variables: Variables) -> Float[np.ndarray, "n d"]:
        config = self._config
        reading = {"report": config.report_format, "pool_sentences": config.pool_sentences}
        texts = [encode.texts_of(row, **reading) for row in self._rows]
        return encode.encode_reports(texts, encode_texts=self._text_encoder(variables))

    def _zero_shot(
        self, variables: Variables, image: Float[np.ndarray, "n d"]
    ) -> Float[np.ndarray, "n labels"]:
        classifier = zero_shot_classifier(
            self._protocol.findings(self._labels),
            self._text_encoder(variables),
            temperature=math.exp(variables["params"]["temperature"]),
        )
        return self._protocol.scores(self._labels, classifier, image)

    def _text_encoder(self, variables: Variables) -> encode.EncodeTexts:
        return functools.partial(
            self._encoder.texts,
            variables,
            tokenizer=self._tokenizer,
            max_length=self._config.max_length,
        )


def spread(size: int, count: int) -> list[int]:
    """`count` of `size` rows, spread evenly; all of them for 0."""
    if not 0 < count < size:
        return list(range(size))
    return np.linspace(0, size - 1, count).round().astype(int).tolist()
