"""Scores of a study from its latents, by prompts or by the trained classifier of its model."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float

from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.inference import load, zero_shot
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS

NO_CLASSIFIER = "config.scores: this model has no trained classifier"
SAYS = ("scores", "prompts", "ensemble")


def scores(
    study: EvalSet,
    arrays: Mapping[str, np.ndarray],
    *,
    prompts: Mapping[str, np.ndarray],
    protocol: ProtocolConfig,
) -> Float[np.ndarray, "n labels"] | None:
    """The probability of each label; None if `arrays`, of latents.npz, have no temperature.

    `prompts` are latents by text.

    Raises:
      InputError: a prompt without a latent, a model without a classifier, or one that knows other
        labels.
    """
    if protocol.scores == "classifier":
        return _classified(study, arrays, protocol=protocol)
    if "temperature" not in arrays:
        return None
    if arrays["temperature"].size != 1:
        raise InputError(f"latents.npz: temperature of shape {arrays['temperature'].shape}")
    dim = study.image.shape[1]
    if wrong := next((text for text, each in prompts.items() if each.shape != (dim,)), None):
        raise InputError(f"the latent of the prompt {wrong!r} is not of the size {dim}")
    return zero_shot.scores(
        study.image,
        labels=study.label_names,
        prompts=prompts,
        temperature=arrays["temperature"].item(),
        protocol=protocol,
    )


def check(labels: Sequence[str], model: load.Model, *, protocol: ProtocolConfig) -> None:
    """What `scores` would raise of prompts and classifier, before anything is encoded."""
    if protocol.scores == "zero_shot":
        zero_shot.prompt_texts(labels, protocol)
    elif "classifier" not in model.variables["params"]:
        raise InputError(NO_CLASSIFIER)


def told(protocol: ProtocolConfig) -> dict[str, Any]:
    """How scores are made, for source.json."""
    if protocol.scores == "classifier":
        return {"scores": "classifier"}
    prompts = [list(pair) for pair in protocol.prompts]
    ensemble = {"ensemble": protocol.ensemble} if len(prompts) > 1 else {}
    return {"scores": "zero_shot", "prompts": prompts, **ensemble}


def _classified(
    study: EvalSet, arrays: Mapping[str, np.ndarray], *, protocol: ProtocolConfig
) -> Float[np.ndarray, "n labels"]:
    if "classifier_kernel" not in arrays:
        raise InputError(NO_CLASSIFIER)
    kernel, bias = arrays["classifier_kernel"], arrays["classifier_bias"]
    if len(bias) != len(LABELS):
        raise InputError(f"config.scores: a classifier of {len(bias)} labels, wanted {len(LABELS)}")
    found = dict(zip(LABELS, load.classify(study.image, kernel=kernel, bias=bias).T, strict=True))
    unknown = [p for n in study.label_names for p in protocol.parts_of(n) if p not in found]
    if unknown:
        raise InputError(f"config.scores: the classifier knows no {unknown[0]!r}")
    return protocol.combine(study.label_names, found.__getitem__)
