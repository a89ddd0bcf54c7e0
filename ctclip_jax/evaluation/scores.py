"""Scores of an EvalSet from its latents, by the classifier that the protocol names."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ctclip_jax.evaluation import files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference.classifiers import Classifier, trained_classifier, zero_shot_classifier
from ctclip_jax.inference.load import Model
from data_pipelines.errors import InputError


def make_classifier(
    labels: Sequence[str],
    heads: Mapping[str, np.ndarray],
    *,
    encode_prompts: Callable[[list[str]], Float[np.ndarray, "m d"]],
    protocol: ProtocolConfig,
) -> Classifier:
    """The classifier of the model whose `encode.head_arrays` these are."""
    if protocol.classifier == "zero_shot":
        if "temperature" not in heads:
            raise InputError("config.classifier: this model has no temperature")
        return zero_shot_classifier(
            protocol.findings(labels),
            encode_prompts,
            temperature=heads["temperature"].item(),
            ensemble=protocol.ensemble,
        )
    if "classifier_kernel" not in heads:
        raise InputError("config.classifier: this model has no trained classifier")
    return trained_classifier(heads["classifier_kernel"], heads["classifier_bias"])


def encode_prompts(
    texts: Sequence[str], *, dim: int, model: Model | None, folder: Path | None, out: Path
) -> Float[np.ndarray, "m d"]:
    """Latents of texts: those in FOLDER/prompts.npz, others by the model.

    With a model, all of them are then saved in OUT/prompts.npz, for evaluations without it.
    """
    latents = {}
    if folder and (folder / "prompts.npz").exists():
        path = folder / "prompts.npz"
        arrays = files.read_arrays(path)
        prompts, stacked = (arrays.get(name, np.zeros(())) for name in ("prompts", "latents"))
        if prompts.ndim != 1 or stacked.shape != (len(prompts), dim):
            raise InputError(f"{path}: expected prompts and latents of shape (n,) and (n, {dim})")
        latents = dict(zip(prompts.tolist(), stacked, strict=True))
    missing = [text for text in texts if text not in latents]
    if missing and model is None:
        raise InputError(f"prompt {missing[0]!r}: has no latent; pass the model too (--model)")
    if missing:
        latents |= dict(zip(missing, model.encode_text(missing), strict=True))
        prompts, stacked = np.array(list(latents)), np.stack(list(latents.values()))
        files.write_arrays(out / "prompts.npz", prompts=prompts, latents=stacked)
    return np.stack([latents[text] for text in texts])


def add_scores(eval_set: EvalSet, classifier: Classifier, *, protocol: ProtocolConfig) -> EvalSet:
    """The same with the probability of each label, of a merged label the greatest of its parts, and
    with how they are computed in `source`."""
    by_name = dict(zip(classifier.names, classifier.probabilities(eval_set.image).T, strict=True))
    parts = [protocol.parts_of(label) for label in eval_set.label_names]
    if unknown := [part for group in parts for part in group if part not in by_name]:
        raise InputError(f"config.classifier: it does not know the label {unknown[0]!r}")
    scores = np.stack([np.max([by_name[part] for part in group], axis=0) for group in parts], 1)
    source = {**eval_set.source, "scores": protocol.classifier}
    if protocol.classifier == "zero_shot":
        source["prompts"] = [list(pair) for pair in protocol.prompts]
        if len(protocol.prompts) > 1:
            source["ensemble"] = protocol.ensemble
    return dataclasses.replace(eval_set, scores=scores, source=source)
