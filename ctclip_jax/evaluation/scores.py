"""Scores of an EvalSet from its latents, by the classifier of the protocol."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float

from ctclip_jax.evaluation import files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference.classifiers import (
    prompt_texts,
    trained_classifier,
    zero_shot_classifier,
)
from ctclip_jax.inference.load import Model
from data_pipelines.errors import InputError

NO_TRAINED_CLASSIFIER = "config.classifier: this model has no trained classifier"


def check_classifier(labels: Sequence[str], model: Model, *, protocol: ProtocolConfig) -> None:
    """Raises the errors of `add_scores` that need no latents, before anything is encoded."""
    if protocol.classifier == "zero_shot":
        prompt_texts(protocol.findings(labels))
    elif "classifier" not in model.variables["params"]:
        raise InputError(NO_TRAINED_CLASSIFIER)


def add_scores(
    eval_set: EvalSet,
    arrays: Mapping[str, np.ndarray],
    *,
    model: Model | None,
    prompts_dir: Path | None,
    out: Path,
    protocol: ProtocolConfig,
) -> EvalSet | None:
    """Adds the scores and how they are computed; None if there is no temperature.

    Args:
      arrays: `encode.head_arrays` of the model of the latents.
      model: to encode prompts whose latents are not in `prompts_dir`/prompts.npz; they are then
        saved in `out`.
    """
    if protocol.classifier == "trained":
        if "classifier_kernel" not in arrays:
            raise InputError(NO_TRAINED_CLASSIFIER)
        classifier = trained_classifier(arrays["classifier_kernel"], arrays["classifier_bias"])
    elif "temperature" not in arrays:
        return None
    elif arrays["temperature"].size != 1:
        raise InputError(f"latents.npz: temperature: got shape {arrays['temperature'].shape}")
    else:

        def encode_prompts(texts: list[str]) -> Float[np.ndarray, "m d"]:
            latents = prompt_latents(texts, model=model, folder=prompts_dir, out=out)
            return _stack(latents, texts, dim=eval_set.image.shape[1])

        classifier = zero_shot_classifier(
            protocol.findings(eval_set.label_names),
            encode_prompts,
            temperature=arrays["temperature"].item(),
            ensemble=protocol.ensemble,
        )
    scores = protocol.scores(eval_set.label_names, classifier, eval_set.image)
    source = {**eval_set.source, **protocol.score_metadata()}
    return dataclasses.replace(eval_set, scores=scores, source=source)


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
        prompts = np.array(list(latents))
        files.write_arrays(
            out / "prompts.npz", prompts=prompts, latents=np.stack([*latents.values()])
        )
    return latents


def _stack(
    latents: Mapping[str, np.ndarray], texts: Sequence[str], *, dim: int
) -> Float[np.ndarray, "m d"]:
    for text in texts:
        if text not in latents:
            raise InputError(f"prompt {text!r}: has no latent; pass the model too (--model)")
        if latents[text].shape != (dim,):
            raise InputError(f"prompt {text!r}: latent does not have the size {dim} of the others")
    return np.stack([latents[text] for text in texts])
