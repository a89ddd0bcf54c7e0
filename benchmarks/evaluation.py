"""Evaluation at the size of CT-RATE's valid split: 3,039 volumes, 18 labels, random scores.

    python -m benchmarks.evaluation

Time of a whole evaluation with its page, and of 1,000 resamples of patients on one core, compared
to scikit-learn's AUROC on the same resamples one by one.
"""

import os
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from sklearn.metrics import roc_auc_score

from benchmarks import measure
from ctclip_jax.evaluate import Inputs, evaluate
from ctclip_jax.evaluation import detection, files
from ctclip_jax.evaluation.dataset import EvalSet
from ctclip_jax.evaluation.protocol import ProtocolConfig
from data_pipelines import command_line
from data_pipelines.reports import LABELS, PROMPTS

VOLUMES, SCANS, PATIENTS, DIM = 3039, 1564, 1304, 512
PROTOCOL = ProtocolConfig(prompts=(PROMPTS,))
REPEATS = 5  # the median counts
ONE_BY_ONE = 10  # resamples for scikit-learn, extrapolated to all


def draw_eval_set(seed: int) -> EvalSet:
    """Volumes with correlated labels, scores and latents."""
    rng = np.random.default_rng(seed)
    scan = np.sort(np.concatenate([np.arange(SCANS), rng.integers(0, SCANS, VOLUMES - SCANS)]))
    patient = scan * PATIENTS // SCANS
    hidden = rng.normal(size=(SCANS, 24))
    logits = hidden @ rng.normal(size=(24, len(LABELS))) / 4 + np.linspace(-2.2, 0.2, len(LABELS))
    projected = hidden @ rng.normal(size=(24, DIM))
    labels = (logits + 0.6 * rng.normal(size=logits.shape) > 0).astype(np.int8)[scan]

    def unit(latents: np.ndarray) -> np.ndarray:
        return (latents / np.linalg.norm(latents, axis=1, keepdims=True)).astype(np.float32)

    return EvalSet(
        names=np.array([f"valid_{s:04d}_a_{i:04d}" for i, s in enumerate(scan)]),
        patients=np.array([f"valid_{p}" for p in patient]),
        scans=np.array([f"valid_{p}/{s}" for p, s in zip(patient, scan, strict=True)]),
        reports=np.array([f"Report of scan {s}. " * 30 for s in scan]),
        label_names=LABELS,
        labels=labels,
        scores=1 / (1 + np.exp(-logits[scan] - 1.4 * rng.normal(size=labels.shape))),
        image=unit(projected[scan] + 14 * rng.normal(size=(VOLUMES, DIM))),
        text=unit(projected + 22 * rng.normal(size=(SCANS, DIM)))[scan],
        subgroups={
            "sex": rng.choice(["F", "M"], VOLUMES),
            "age": np.array([f"{age:03d}Y" for age in rng.integers(20, 95, VOLUMES)]),
            "manufacturer": rng.choice(["A", "B", "C"], VOLUMES),
            "kernel": rng.choice(["Br40d", "Br60f", "Bl57d", "B", "C"], VOLUMES),
            "slice_spacing": rng.choice(["0.75", "1", "1.5", "2.5", "5"], VOLUMES),
        },
    )


def whole_run() -> None:
    """From saved latents and scores to the page, with validation and subgroups, without slices."""
    eval_set = draw_eval_set(0)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        files.write_eval_set(folder, eval_set)
        files.write_eval_set(folder / "validation", draw_eval_set(1))
        latents = {"names": eval_set.names, "image": eval_set.image, "text": eval_set.text}
        np.savez(folder / "latents.npz", **latents)
        inputs = Inputs(from_latents=name, validation=str(folder / "validation"))
        evaluate(inputs, folder / "out", protocol=PROTOCOL)


def resamples() -> tuple[float, float]:
    """Seconds of AUROC and average precision of 18 labels on 1,000 resamples, and of scikit-learn's
    AUROC alone, extrapolated. Fails if the two differ."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    eval_set = draw_eval_set(0)
    seconds, sklearn_seconds = [], []
    for _ in range(REPEATS):
        start = time.perf_counter()
        weights = detection.resample_weights(
            eval_set, resamples=PROTOCOL.resamples, seed=PROTOCOL.seed
        )
        samples = detection.sample_metrics(eval_set, weights)
        seconds.append(time.perf_counter() - start)
        start = time.perf_counter()
        expected = [
            [roc_auc_score(labels, scores, sample_weight=row) for row in weights.T[:ONE_BY_ONE]]
            for labels, scores in zip(eval_set.labels.T, eval_set.scores.T, strict=True)
        ]
        sklearn_seconds.append((time.perf_counter() - start) * PROTOCOL.resamples / ONE_BY_ONE)
        assert np.allclose(samples["auroc"][:, :ONE_BY_ONE], expected, atol=1e-12)
    return statistics.median(seconds), statistics.median(sklearn_seconds)


def main() -> None:
    ours, sklearn = measure.in_new_process(resamples).value
    whole = measure.in_new_process(whole_run)
    measure.save(
        "evaluation",
        {
            "volumes": VOLUMES,
            "labels": len(LABELS),
            "resamples": PROTOCOL.resamples,
            "resamples_seconds_one_core": round(ours, 2),
            "scikit_learn_seconds_one_core": round(sklearn, 1),
            "times_faster": round(sklearn / ours, 1),
            "whole_run_seconds": round(whole.seconds, 1),
            "whole_run_peak_gib": round(whole.peak_gib, 2),
        },
    )


if __name__ == "__main__":
    command_line.run(main)
