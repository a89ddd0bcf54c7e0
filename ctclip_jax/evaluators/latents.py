"""The latents of a prepared split, written shard by shard, so that a rerun continues.

OUT/source.json         the model and the data, which must stay the same
OUT/encoding/*.npz      the latents of the shards that are done, until all are
OUT/latents.npz         then all of them, beside labels.csv and cases.csv
"""

import hashlib
import json
import os
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_jax.api import Model
from ctclip_jax.evaluators import encoding
from ctclip_jax.evaluators.files import write_json, write_study
from ctclip_jax.evaluators.study import from_rows
from ctclip_jax.trees import flatten
from data_pipelines import loader, shards
from data_pipelines.errors import InputError
from data_pipelines.reports import report_text
from data_pipelines.shards.writing import make_folder

PROGRESS_SECONDS = 5.0
PATHS = ("model", "shards")  # may change between two runs, when the rest is the same


def describe(model: Model, path: str, *, folder: str, split: str) -> dict[str, Any]:
    """What latents depend on, for source.json.

    Raises:
      InputError: no such split, or volumes of another window or shape than the model's.
    """
    prepared = shards.preparation(folder, split)
    image = model.config.image
    wanted = {"window": image.window, "shape": (image.frames, *image.image_size)}
    for name, value in wanted.items():
        if tuple(prepared[name]) != tuple(value):
            raise InputError(f"{folder}: {name} {prepared[name]}; {path} wants {list(value)}")
    return {
        "model": path,
        "model_sha256": fingerprint(model.variables),
        "dtype": model.config.dtype,
        "shards": folder,
        "split": split,
        "cases_sha256": prepared["cases_sha256"],
        "report": model.report,
        "pool_sentences": model.pool_sentences,
        "max_length": model.max_length,
    }


def fingerprint(variables: Mapping[str, Any]) -> str:
    """SHA-256 of all arrays and their names."""
    digest = hashlib.sha256()
    for name, array in sorted(flatten(variables).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def encode_split(
    model: Model, source: Mapping[str, Any], out: Path, *, batch_size: int, task: tuple[int, int]
) -> bool:
    """Encodes what is missing of a split and writes it into `out`; True when all of it is there.

    Args:
      source: as `describe` gives it.
      task: (i, n): do the i-th of n slices of the shards; whoever finishes last writes latents.npz.

    Raises:
      InputError: `out` holds latents of another model or of other data.
    """
    begin(out, source)
    if (out / "latents.npz").exists():
        return True
    rows = shards.read_reports(source["shards"], source["split"])
    parts = _parts(out, source)
    index, count = task
    missing = [part for part in parts[index::count] if not part[0].exists()]
    progress = Progress(sum(stop - start for _, start, stop in missing))
    for path, start, stop in missing:
        batches = loader.eval_loader(
            source["shards"],
            split=source["split"],
            batch_size=batch_size,
            rows=range(start, stop),
        )
        image = encoding.encode_volumes(
            progress(batches),
            rows=range(start, stop),
            encode_image=lambda image: model.encode_image(image, batch_size=len(image)),
        )
        reading = {name: source[name] for name in ("report", "pool_sentences")}
        texts = [encoding.texts_of(row, **reading) for row in rows[start:stop]]
        text = encoding.encode_reports(texts, encode_texts=model.encode_text)
        write_arrays(path, image=image, text=text)
    if not all(path.exists() for path, _, _ in parts):
        return False
    _gather(model, source, out, rows=rows, parts=[path for path, _, _ in parts])
    return True


def begin(out: Path, source: Mapping[str, Any]) -> None:
    """Writes source.json. Raises InputError if `out` has another."""
    path = out / "source.json"
    if path.exists():
        found = json.loads(path.read_text())
        changed = [n for n in source if n not in PATHS and source[n] != found.get(n)]
        if changed:
            raise InputError(
                f"{out}: holds latents of another {', '.join(changed)}; delete it or choose"
                " another --out"
            )
    make_folder(out)
    write_json(path, source)


def _parts(out: Path, source: Mapping[str, Any]) -> list[tuple[Path, int, int]]:
    """For every shard with volumes: the file of its latents, and its rows, start to stop."""
    parts, start = [], 0
    for shard in shards.plan(source["shards"], source["split"]):
        stop = start + shard.read_summary()["volumes"]
        if stop > start:
            parts.append((out / "encoding" / f"{shard.rows.stem}.npz", start, stop))
        start = stop
    return parts


def _gather(
    model: Model, source: Mapping[str, Any], out: Path, *, rows: Sequence[dict], parts: list[Path]
) -> None:
    try:
        arrays = [_read_part(path) for path in parts]
    except FileNotFoundError:  # another task was last too, and has gathered them
        return
    dim = max(part["text"].shape[1] for part in arrays)
    empty = [np.full((len(part["image"]), dim), np.nan, np.float32) for part in arrays]
    texts = [p["text"] if p["text"].shape[1] else e for p, e in zip(arrays, empty, strict=True)]
    latents = {
        "names": np.array([row["volume_name"] for row in rows]),
        "image": np.concatenate([part["image"] for part in arrays]),
        **({"text": np.concatenate(texts)} if dim else {}),
        **model_arrays(model),
    }
    study = from_rows(
        rows,
        texts=[report_text(row["findings"], row["impressions"]) for row in rows],
        labels=shards.preparation(source["shards"], source["split"])["labels"],
        source=source,
    )
    write_study(out, study)
    write_arrays(out / "latents.npz", **latents)
    shutil.rmtree(out / "encoding", ignore_errors=True)


def _read_part(path: Path) -> dict[str, np.ndarray]:
    with np.load(path, allow_pickle=False) as file:
        return dict(file)


def model_arrays(model: Model) -> dict[str, np.ndarray]:
    """What scores take of the model beside its latents: the temperature, and its classifier."""
    arrays = {"temperature": np.float32(model.temperature)}
    if "classifier" in model.variables["params"]:
        arrays |= {f"classifier_{name}": array for name, array in model.classifier.items()}
    return arrays


def prompt_latents(
    texts: Sequence[str], *, model: Model | None, folder: Path, out: Path
) -> dict[str, np.ndarray]:
    """The latents of prompts, by text: those in prompts.npz of `folder`, and with a model all of
    `texts`, which are then kept in `out`."""
    path = folder / "prompts.npz"
    known = {}
    if path.exists():
        with np.load(path, allow_pickle=False) as file:
            known = dict(zip(file["prompts"].tolist(), file["latents"], strict=True))
    missing = [text for text in texts if text not in known]
    if model and missing:
        known |= dict(zip(missing, model.encode_text(missing), strict=True))
        write_arrays(
            out / "prompts.npz", prompts=np.array(list(known)), latents=np.stack([*known.values()])
        )
    return known


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file, whole or not at all. Raises InputError if it can't be."""
    make_folder(path.parent)
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with scratch.open("wb") as file:
            np.savez(file, **arrays)
        os.replace(scratch, path)
    except OSError as error:
        scratch.unlink(missing_ok=True)
        raise InputError(f"{path}: cannot be written ({error.strerror or error})") from error


class Progress:
    """Passes batches on, with a line on stderr: volumes done, volumes per second, time left."""

    def __init__(self, total: int):
        self._total, self._done = total, 0
        self._started = self._shown = time.monotonic()

    def __call__(self, batches: Iterator[Mapping[str, Any]]) -> Iterator[Mapping[str, Any]]:
        for batch in batches:
            yield batch
            self._done += int(np.sum(batch["row"] >= 0))
            now = time.monotonic()
            if now - self._shown >= PROGRESS_SECONDS or self._done == self._total:
                self._shown, rate = now, self._done / (now - self._started)
                left = round((self._total - self._done) / rate)
                print(
                    f"evaluation: {self._done}/{self._total} volumes, {rate:.2f} volumes/s,"
                    f" {left // 60}:{left % 60:02d} left",
                    file=sys.stderr,
                    flush=True,
                )
