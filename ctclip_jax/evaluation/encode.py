"""Resumable encoding of a prepared split into an evaluation folder, shard by shard.

OUT/source.json         provenance of model and data, which must stay the same
OUT/encoding/*.npz      latents of finished shards, until all are finished
OUT/latents.npz         then the latents of all volumes, and the heads of the model
"""

import dataclasses
import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_jax.common.trees import flatten
from ctclip_jax.evaluation.dataset import EvalSet, from_rows
from ctclip_jax.evaluation.encoder import TEXTS_PER_CHUNK, Encoder, report_texts
from ctclip_jax.evaluation.files import read_arrays, write_arrays
from ctclip_jax.inference.batching import ProgressBar
from ctclip_jax.inference.load import Model
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines import shards
from data_pipelines.errors import InputError


def fingerprint(model: Model) -> str:
    """SHA-256 of the configuration and of all arrays with their names, regardless of dtype."""
    config = dataclasses.asdict(dataclasses.replace(model.config, dtype=""))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, array in sorted(flatten(model.variables).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def provenance(model: Model, path: str, *, folder: str, split: str) -> dict[str, Any]:
    """Everything that latents depend on, for source.json.

    Checks that the model reads volumes of this shape and window, and these reports.
    """
    prepared = shards.preparation(folder, split)
    model.config.image.check(prepared, source=folder, name=path)
    digests = [shard.read()[0]["sha256"] for shard in shards.plan(folder, split)]
    return {
        "model": path,
        "model_sha256": fingerprint(model),
        "dtype": model.config.dtype,
        "shards": folder,
        "split": split,
        **({"data_source": prepared["data_source"]} if "data_source" in prepared else {}),
        "volumes_sha256": hashlib.sha256("".join(digests).encode()).hexdigest(),
        "report": model.report_format,
        "pool_sentences": model.pool_sentences,
        **({"trained_with": "labels"} if model.label_informed else {}),
        "tokens_sha256": _tokens_sha256(model, shards.read_reports(folder, split)),
    }


def _tokens_sha256(model: Model, rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the tokens of all reports."""
    digest = hashlib.sha256()
    texts = [text for report in read_texts(model, rows) for text in report]
    if texts and model.tokenizer is None:
        raise InputError("the model has no tokenizer to read reports with: pass --tokenizer")
    for start in range(0, len(texts), TEXTS_PER_CHUNK):
        for array in model.tokenizer(texts[start : start + TEXTS_PER_CHUNK], model.max_length):
            digest.update(array.data)
    return digest.hexdigest()


def read_texts(model: Model, rows: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    """The texts that the model reads of each report."""
    options = {"report_format": model.report_format, "pool_sentences": model.pool_sentences}
    return [report_texts(row, **options) for row in rows]


def encode_split(
    model: Model, source: Mapping[str, Any], out: Path, *, batch_size: int, task: tuple[int, int]
) -> EvalSet | None:
    """Encodes the missing shards of a split into `out`; None while those of other tasks are.

    Args:
      source: `provenance` of model and split, for which `out` has been claimed.
      task: (i, n): the i-th of n slices of the shards. The last task to finish writes latents.npz.
    """
    folder, split = source["shards"], source["split"]
    rows = shards.read_reports(folder, split)
    if not (out / "latents.npz").exists():
        parts = _parts(out, folder, split)
        encode_parts(model, source, parts[task[0] :: task[1]], rows=rows, batch_size=batch_size)
        if all(path.exists() for path, _ in parts):
            _gather(model, out, rows=rows, paths=[path for path, _ in parts])
        # Or the last of the other tasks has gathered and removed them.
        elif not (out / "latents.npz").exists():
            return None
    shutil.rmtree(out / "encoding", ignore_errors=True)
    arrays = read_arrays(out / "latents.npz")
    if arrays["names"].tolist() != [row["volume_name"] for row in rows]:
        raise InputError(f"{out / 'latents.npz'}: not of the volumes that {folder} holds now")
    labels = shards.preparation(folder, split)["labels"]
    latents = {"image": arrays["image"], "text": arrays.get("text")}
    return from_rows(rows, labels=labels, source=source, **latents)


def _parts(out: Path, folder: str, split: str) -> list[tuple[Path, range]]:
    """The file of latents and the rows of every shard that has volumes."""
    parts, start = [], 0
    for shard in shards.plan(folder, split):
        stop = start + shard.read()[0]["volumes"]
        if stop > start:
            parts.append((out / "encoding" / f"{shard.rows.stem}.npz", range(start, stop)))
        start = stop
    return parts


def encode_parts(
    model: Model,
    source: Mapping[str, Any],
    parts: Sequence[tuple[Path, range]],
    *,
    rows: Sequence[Mapping[str, Any]],
    batch_size: int,
) -> None:
    """Writes the files of `parts` that do not exist yet: image (n, d), text (n, d)."""
    encoder = Encoder(
        CTCLIP(model.config),
        model.mesh,
        batch_size=batch_size,
        tokenizer=model.tokenizer,
        max_length=model.max_length,
    )
    num_encoded = sum(len(part) for path, part in parts if path.exists())
    num_volumes = sum(len(part) for _, part in parts)
    with ProgressBar(num_volumes, unit="volume", initial=num_encoded) as bar:
        for path, part in parts:
            if path.exists():
                continue
            image = encoder.encode_volumes(
                model.variables,
                source["shards"],
                split=source["split"],
                rows=part,
                on_progress=bar.update,
            )
            reports = read_texts(model, [rows[row] for row in part])
            text = encoder.encode_reports(model.variables, reports)
            write_arrays(path, image=image, text=text)


def _gather(
    model: Model, out: Path, *, rows: Sequence[Mapping[str, Any]], paths: Sequence[Path]
) -> None:
    try:
        parts = [read_arrays(path) for path in paths]
    except InputError:
        if (out / "latents.npz").exists():  # another task finished last too, and gathered them
            return
        raise
    dim = max(part["text"].shape[1] for part in parts)
    # A part without any report has no text latents.
    texts = [
        part["text"] if part["text"].shape[1] else np.full((len(part["image"]), dim), np.nan)
        for part in parts
    ]
    write_arrays(
        out / "latents.npz",
        names=np.array([row["volume_name"] for row in rows]),
        image=np.concatenate([part["image"] for part in parts]),
        **({"text": np.concatenate(texts, dtype=np.float32)} if dim else {}),
        **head_arrays(model.variables["params"]),
    )


def head_arrays(params: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """What turns latents into probabilities, as far as the model has it: the temperature, which is
    the factor of the cosine, and the trained classifier."""
    arrays = {f"classifier_{name}": a for name, a in params.get("classifier", {}).items()}
    if "temperature" in params:  # its logarithm
        arrays["temperature"] = np.exp(params["temperature"])
    return {name: np.asarray(array) for name, array in arrays.items()}
