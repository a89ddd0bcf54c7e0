"""Small eval sets for tests: volumes of scans of patients, with labels, scores and latents."""

import dataclasses

import numpy as np

from ctclip_jax.evaluation.dataset import SUBGROUPS, EvalSet


def unit(values: np.ndarray) -> np.ndarray:
    return (values / np.linalg.norm(values, axis=-1, keepdims=True)).astype(np.float32)


def make_eval_set(patients: int = 30, *, labels=("Emphysema", "Cardiomegaly"), seed=0, **changes):
    """Two volumes of one scan a patient; scores and latents know something of the labels."""
    rng = np.random.default_rng(seed)
    patient = np.repeat(np.arange(patients), 2)
    truth = rng.integers(0, 2, (patients, len(labels))).astype(np.int8)[patient]
    image = unit(rng.normal(size=(len(patient), 16)) + 3 * rng.normal(size=(patients, 16))[patient])
    fields = {
        "names": np.array([f"valid_{p:04d}_a_{i % 2}.nii.gz" for i, p in enumerate(patient)]),
        "patients": np.array([f"valid_{p:04d}" for p in patient]),
        "scans": np.array([f"valid_{p:04d}/valid_{p:04d}_a" for p in patient]),
        "reports": np.array([f"Report {p}." for p in patient]),
        "label_names": tuple(labels),
        "labels": truth,
        "scores": 1 / (1 + np.exp(-(truth - 0.5 + rng.normal(size=truth.shape)))),
        "image": image,
        "text": unit(image[::2][patient] + 0.5 * rng.normal(size=(patients, 16))[patient]),
        "subgroups": {name: np.full(len(patient), "") for name in SUBGROUPS},
        "source": {"model": "a model"},
    }
    return EvalSet(**fields | changes)


def shuffled(eval_set: EvalSet, seed: int = 0) -> EvalSet:
    """The same volumes under other names, so that the scans come in another order."""
    _, scan = np.unique(eval_set.scans, return_inverse=True)
    order = np.argsort(np.random.default_rng(seed).permutation(scan.max() + 1)[scan], kind="stable")
    fields = ("patients", "scans", "reports", "labels", "scores", "image", "text")
    mixed = {name: getattr(eval_set, name)[order] for name in fields}
    subgroups = {name: values[order] for name, values in eval_set.subgroups.items()}
    return dataclasses.replace(eval_set, subgroups=subgroups, **mixed)
