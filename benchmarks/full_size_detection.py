"""Zero-shot detection at full size: from .nii.gz to 18 probabilities and heatmaps, time by stage.

    python -m benchmarks.full_size_detection
    python -m benchmarks.full_size_detection --scan=CT.nii.gz

The weights are random, in the published layout. The published inference, here a plain PyTorch model
of the same weights, encodes the volume again for each of the 18 labels with its two prompts; a few
of those passes are timed in turns with ours.
"""

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from absl import flags

import ctclip_jax
from benchmarks import measure, random_weights, synthetic_ct
from benchmarks.torch_ct_vit import CTCLIP, copy_weights
from data_pipelines import command_line
from data_pipelines.reports import LABELS, PROMPTS

SCAN = flags.DEFINE_string("scan", "", "Chest CT; by default a synthetic one.")
PASSES = flags.DEFINE_integer("passes", 3, "Number of timings.")


class Published:
    """One pass of the published inference: a volume and the two prompts of a label."""

    def __init__(self, model: ctclip_jax.Model):
        self._model = CTCLIP(model.config, best=False).eval()
        copy_weights(self._model, model.variables)
        ids, mask = model.tokenizer([prompt.format(LABELS[0]) for prompt in PROMPTS], 512)
        self._texts = torch.from_numpy(ids), torch.from_numpy(mask)

    @torch.no_grad()
    def __call__(self, volume: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        image = self._model.encode_image(torch.from_numpy(volume[None]))
        first = self._model.text(*self._texts)[:, 0]
        text = torch.nn.functional.normalize(self._model.text_projection(first), dim=-1)
        return image.numpy(), text.numpy()


def detect(scan: Path, weights: Path, vocabulary: Path, passes: int) -> dict[str, Any]:
    """Times of all stages: first those that run once per process, then `passes` warm scans."""
    once: dict[str, float] = {}
    warm: dict[str, list[float]] = {}

    def timed(name: str, function: Callable, *arguments: Any, into: dict | None = None) -> Any:
        start = time.perf_counter()
        value = function(*arguments)
        if into is None:
            warm.setdefault(name, []).append(time.perf_counter() - start)
        else:
            into[name] = round(time.perf_counter() - start, 2)
        return value

    model = timed(
        "open the weights", lambda: ctclip_jax.load(weights, tokenizer=vocabulary), into=once
    )
    classifier = timed("encode 36 prompts", model.zero_shot_classifier, into=once)

    def attribute(features):
        return model.attribute(features, classifier.kernel)

    published = Published(model)
    volume = model.prepare(scan).volume
    timed("first volume", model.encode_image, volume[None], into=once)
    timed("first heatmaps", lambda: attribute(model.patch_features(volume[None])), into=once)
    latent, _ = published(volume)
    for _ in range(passes):
        volume = timed("read and prepare", lambda: model.prepare(scan).volume)
        latents = timed("encode", model.encode_image, volume[None])
        probabilities = timed("18 probabilities", classifier.probabilities, latents)
        features = timed("tokens, for heatmaps", model.patch_features, volume[None])
        _, contributions = timed("18 heatmaps of them", attribute, features)
        timed("published, one label", published, volume)
    seconds = {name: round(statistics.median(times), 3) for name, times in warm.items()}
    ours = sum(seconds[name] for name in ("read and prepare", "encode", "18 probabilities"))
    theirs = seconds["read and prepare"] + len(LABELS) * seconds["published, one label"]
    logits = (latents.astype(np.float64) @ classifier.kernel)[0]
    return {
        "seconds_once": once,
        "seconds": seconds,
        "seconds_for_18_labels": round(ours, 2),
        "published_seconds_for_18_labels": round(theirs, 1),
        "times_faster": round(theirs / ours, 1),
        "largest_latent_difference": float(np.abs(latent - latents).max()),
        "largest_heatmap_error": float(np.abs(contributions[0].sum((1, 2, 3)) - logits).max()),
        "largest_logit": float(np.abs(logits).max()),
        "peak_gib": round(measure.peak_gib(), 2),
        "probabilities": dict(
            zip(LABELS, (round(float(p), 4) for p in probabilities[0]), strict=True)
        ),
    }


def main() -> None:
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        weights, vocabulary = folder / "random.safetensors", folder / "vocab.txt"
        scan = Path(SCAN.value or folder / "scan.nii.gz")
        if not SCAN.value:
            synthetic_ct.write(scan)
        random_weights.write_vocabulary(vocabulary)
        measure.in_new_process(random_weights.write, [weights])
        stage = measure.in_new_process(detect, scan, weights, vocabulary, PASSES.value)
    measure.save("full_size_detection", stage.value)


if __name__ == "__main__":
    command_line.run(main)
