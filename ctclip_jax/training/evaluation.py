"""In-training evaluation: detection and retrieval of the current weights, on the training mesh."""

import dataclasses
import functools
import math

import jax
import numpy as np
from jax.sharding import Mesh

from ctclip_jax.common.shapes import Variables
from ctclip_jax.evaluation import suite
from ctclip_jax.evaluation.dataset import EvalSet, from_rows
from ctclip_jax.evaluation.encoder import Encoder, report_texts
from ctclip_jax.evaluation.estimates import named_estimates
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference.classifiers import trained_classifier, zero_shot_classifier
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.metric_writer import MetricWriter
from data_pipelines import shards
from data_pipelines.tokenizers import Tokenizer


class Evaluation:
    """Evaluates weights on some volumes of a split."""

    def __init__(
        self,
        config: TrainConfig,
        *,
        model: CTCLIP,
        mesh: Mesh,
        tokenizer: Tokenizer,
        label_informed: bool,
    ):
        self._config, self._folder = config.evaluation, config.evaluation_shards
        self._encoder = Encoder(
            model,
            mesh,
            batch_size=self._config.batch_size,
            tokenizer=tokenizer,
            max_length=self._config.max_length,
        )
        rows = shards.read_reports(self._folder, self._config.split)
        self._indices = spread(len(rows), self._config.volumes)
        self._rows = [rows[i] for i in self._indices]
        self._labels = shards.preparation(self._folder, self._config.split)["labels"]
        self._protocol = ProtocolConfig(
            prompts=self._config.prompts, classifier=self._config.classifier, resamples=0
        )
        self._source = {"trained_with": "labels"} if label_informed else {}

    def __call__(self, variables: Variables, *, step: int, writer: MetricWriter) -> float | None:
        """Writes detection and retrieval metrics, and prints a line.

        Returns the mean AUROC; None if no label has both classes.
        """
        metrics, _ = suite.evaluate(self._encode(variables), protocol=self._protocol)
        scalars = {
            f"evaluation/{name}": estimate["value"]
            for part in ("detection", "retrieval")
            for name, estimate in named_estimates(metrics[part], part)
            if estimate["value"] is not None
        }
        writer.write_scalars(step, scalars)
        if jax.process_index() == 0:
            print(f"step {step}: {suite.headline(metrics)}", flush=True)
        return metrics["detection"]["macro"]["auroc"]["value"]

    def _encode(self, variables: Variables) -> EvalSet:
        """The volumes with latents and scores, and with report latents if there are reports."""
        params, text = variables["params"], None
        image = self._encoder.encode_volumes(
            variables, self._folder, split=self._config.split, rows=self._indices
        )
        if self._protocol.classifier == "trained":
            # The text tower may be untrained, so reports are not encoded.
            classifier = trained_classifier(**jax.device_get(params["classifier"]))
        else:
            text = self._encoder.encode_reports(variables, self._report_texts())
            classifier = zero_shot_classifier(
                self._protocol.findings(self._labels),
                functools.partial(self._encoder.encode_texts, variables),
                temperature=math.exp(params["temperature"]),
            )
        eval_set = from_rows(
            self._rows,
            labels=self._labels,
            source=self._source,
            image=image,
            text=text if text is not None and text.shape[1] else None,
        )
        scores = self._protocol.scores(self._labels, classifier, eval_set.image)
        return dataclasses.replace(eval_set, scores=scores)

    def _report_texts(self) -> list[list[str]]:
        return [
            report_texts(
                row,
                report_format=self._config.report_format,
                pool_sentences=self._config.pool_sentences,
            )
            for row in self._rows
        ]


def spread(size: int, count: int) -> list[int]:
    """`count` of `size` indices, evenly spaced; all of them for 0."""
    if not 0 < count < size:
        return list(range(size))
    return np.linspace(0, size - 1, count).round().astype(int).tolist()
