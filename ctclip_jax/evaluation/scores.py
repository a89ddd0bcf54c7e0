"""Scores of an EvalSet from its latents, by the classifier that the protocol names."""

import dataclasses
from collections.abc import Mapping, Sequence
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
    arrays: Mapping[str, np.ndarray],
    *,
    dim: int,
    model: Model | None,
    prompts_dir: Path | None,
    out: Path,
    protocol: ProtocolConfig,
) -> Classifier | None:
    """The classifier of the model that the latents are from; None without its temperature.

    Args:
      arrays: its `encode.head_arrays`.
      dim: numbers in a latent.
      model: to encode prompts whose latents are not in `prompts_dir`/prompts.npz; they are then
        saved in `out`.
    """
    if protocol.classifier == "trained":
        if "classifier_kernel" not in arrays:
            raise InputError("config.classifier: this model has no trained classifier")
        return trained_classifier(arrays["classifier_kernel"], arrays["classifier_bias"])
    if "temperature" not in arrays:
        return None
    if arrays["temperature"].size != 1:
        raise InputError(f"latents.npz: temperature: got shape {arrays['temperature'].shape}")

    def encode_prompts(texts: list[str]) -> Float[np.ndarray, "m d"]:
        latents = prompt_latents(texts, model=model, folder=prompts_dir, out=out)
        for text in texts:
            if text not in latents:
                raise InputError(f"prompt {text!r}: has no latent; pass the model too (--model)")
            if latents[text].shape != (dim,):
                raise InputError(f"prompt {text!r}: its latent does not have the size {dim}")
        return np.stack([latents[text] for text in texts])

    return zero_shot_classifier(
        protocol.findings(labels),
        encode_prompts,
        temperature=arrays["temperature"].item(),
        ensemble=protocol.ensemble,
    )


def prompt_latents(
    texts: Sequence[str], *, model: Model | None, folder: Path | None, out: Path
) -> dict[str, np.ndarray]:
    """Latents by text: those in FOLDER/prompts.npz and, with a model, all of `texts`, which are
    then saved in OUT/prompts.npz."""
    latents = {}
    if folder and (folder / "prompts.npz").exists():
        path = folder / "prompts.npz"
        arrays = files.read_arrays(path)
        sizes = [len(np.atleast_1d(arrays.get(name, 0))) for name in ("prompts", "latents")]
        if not {"prompts", "latents"} <= arrays.keys() or sizes[0] != sizes[1]:
            raise InputError(f"{path}: expected prompts and latents, one row per text")
        latents = dict(zip(arrays["prompts"].tolist(), arrays["latents"], strict=True))
    missing = [text for text in texts if text not in latents]
    if model and missing:
        latents |= dict(zip(missing, model.encode_text(missing), strict=True))
        prompts, stacked = np.array(list(latents)), np.stack(list(latents.values()))
        files.write_arrays(out / "prompts.npz", prompts=prompts, latents=stacked)
    return latents


def add_scores(eval_set: EvalSet, classifier: Classifier, *, protocol: ProtocolConfig) -> EvalSet:
    """The same with scores, and how they are computed."""
    scores = protocol.scores(eval_set.label_names, classifier, eval_set.image)
    source = {**eval_set.source, **protocol.score_metadata()}
    return dataclasses.replace(eval_set, scores=scores, source=source)
