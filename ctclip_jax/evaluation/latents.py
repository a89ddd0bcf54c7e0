"""The latents of a prepared split, written shard by shard, so that a rerun continues.

OUT/source.json         the model and the data, which must stay the same
OUT/encoding/*.npz      the latents of the shards that are done, until all are
OUT/latents.npz         then all of them, beside labels.csv and cases.csv
"""

import dataclasses
import hashlib
import json
import shutil
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_jax.common.trees import flatten
from ctclip_jax.evaluation import encode
from ctclip_jax.evaluation.dataset import from_rows
from ctclip_jax.evaluation.files import read_arrays, read_source, write_json, write_study
from ctclip_jax.inference.load import Model
from data_pipelines import loader, shards
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, publish, scratch_folder
from data_pipelines.reports import report_text

PROGRESS_SECONDS = 5.0
# Between two runs into one folder.
CHANGEABLE = ("model", "shards", "scores", "prompts", "ensemble")


def describe(model: Model, path: str, *, folder: str, split: str) -> dict[str, Any]:
    """What latents depend on, for source.json.

    Raises:
      InputError: no such split, volumes of another window or shape than the model's, or reports
        that it cannot read.
    """
    prepared = shards.preparation(folder, split)
    model.config.image.check(prepared, source=folder, name=path)
    written = [shard.read()[0]["sha256"] for shard in shards.plan(folder, split)]
    return {
        "model": path,
        "model_sha256": fingerprint(model),
        "dtype": model.config.dtype,
        "shards": folder,
        "split": split,
        "volumes_sha256": hashlib.sha256("".join(written).encode()).hexdigest(),
        "report": model.report,
        "pool_sentences": model.pool_sentences,
        **({"trained_with": "labels"} if model.label_informed else {}),
        "tokens_sha256": _tokens_fingerprint(model, shards.read_reports(folder, split)),
    }


def fingerprint(model: Model) -> str:
    """SHA-256 of the configuration and of all arrays with their names, whatever the dtype."""
    config = dataclasses.asdict(dataclasses.replace(model.config, dtype=""))
    digest = hashlib.sha256(json.dumps(config, sort_keys=True).encode())
    for name, array in sorted(flatten(model.variables).items()):
        digest.update(name.encode())
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _tokens_fingerprint(model: Model, rows: Sequence[dict]) -> str:
    """SHA-256 of all reports as the text tower sees them."""
    digest = hashlib.sha256()
    texts = [text for row in rows for text in texts_of_row(model, row)]
    if texts and model.tokenizer is None:
        raise InputError("the model has no tokenizer to read reports with: give --tokenizer")
    for start in range(0, len(texts), encode.TEXTS_AT_A_TIME):
        chunk = texts[start : start + encode.TEXTS_AT_A_TIME]
        for array in model.tokenizer(chunk, model.max_length):
            digest.update(array.data)
    return digest.hexdigest()


def texts_of_row(model: Model, row: Mapping[str, Any]) -> list[str]:
    """What the model reads of a report; raises InputError for a form that is not known."""
    return encode.texts_of(row, report=model.report, pool_sentences=model.pool_sentences)


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
        shutil.rmtree(out / "encoding", ignore_errors=True)
        return True
    rows = shards.read_reports(source["shards"], source["split"])
    parts = _parts(out, source)
    index, count = task
    missing = [part for part in parts[index::count] if not part[0].exists()]
    done = sum(stop - start for path, start, stop in parts[index::count] if path.exists())
    if done:
        print(f"evaluation: {done} volumes are kept from before", file=sys.stderr)
    progress = Progress(sum(stop - start for _, start, stop in missing))
    for path, start, stop in missing:
        batches = loader.eval_loader(
            source["shards"],
            split=source["split"],
            batch_size=batch_size,
            rows=range(start, stop),
        )
        image = encode.encode_volumes(
            progress(batches),
            rows=range(start, stop),
            encode_image=lambda image: model.encode_image(image, batch_size=len(image)),
        )
        texts = [texts_of_row(model, row) for row in rows[start:stop]]
        text = encode.encode_reports(texts, encode_texts=model.encode_text)
        write_arrays(path, image=image, text=text)
    if not all(path.exists() for path, _, _ in parts):
        return (out / "latents.npz").exists()  # whoever was last may have gathered them
    _gather(model, source, out, rows=rows, parts=[path for path, _, _ in parts])
    return True


def begin(out: Path, source: Mapping[str, Any]) -> None:
    """Claims the folder for what `source` describes, in source.json.

    Raises:
      InputError: it holds results of something else, or latents of nobody knows what.
    """
    found = read_source(out)
    if not found and any((out / name).exists() for name in ("latents.npz", "scores.csv")):
        raise InputError(f"{out}: holds results without a source.json; choose another --out")
    changed = [n for n in source if n not in CHANGEABLE and source[n] != found.get(n)]
    if found and changed:
        raise InputError(
            f"{out}: holds results of another {', '.join(changed)}; delete it or choose another"
            " --out"
        )
    make_folder(out)
    write_json(out / "source.json", source)


def _parts(out: Path, source: Mapping[str, Any]) -> list[tuple[Path, int, int]]:
    """For every shard with volumes: the file of its latents, and its rows, start to stop."""
    parts, start = [], 0
    for shard in shards.plan(source["shards"], source["split"]):
        stop = start + shard.read()[0]["volumes"]
        if stop > start:
            parts.append((out / "encoding" / f"{shard.rows.stem}.npz", start, stop))
        start = stop
    return parts


def _gather(
    model: Model, source: Mapping[str, Any], out: Path, *, rows: Sequence[dict], parts: list[Path]
) -> None:
    try:
        arrays = [read_arrays(path) for path in parts]
    except InputError:
        if (out / "latents.npz").exists():  # another task was last too, and has gathered them
            return
        raise
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


def model_arrays(model: Model) -> dict[str, np.ndarray]:
    """What scores take of the model beside its latents: the temperature, and its classifier."""
    arrays = {"temperature": np.float32(model.temperature)}
    if "classifier" in model.variables["params"]:
        arrays |= {f"classifier_{name}": array for name, array in model.classifier.items()}
    return arrays


def prompt_latents(
    texts: Sequence[str], *, model: Model | None, folder: Path | None, out: Path
) -> dict[str, np.ndarray]:
    """The latents of prompts, by text: those in prompts.npz of `folder`, and with a model all of
    `texts`, which are then kept in `out`."""
    known = {}
    if folder and (folder / "prompts.npz").exists():
        path = folder / "prompts.npz"
        arrays = read_arrays(path)
        sizes = [len(np.atleast_1d(arrays.get(name, 0))) for name in ("prompts", "latents")]
        if not {"prompts", "latents"} <= arrays.keys() or sizes[0] != sizes[1]:
            raise InputError(f"{path}: wanted prompts and latents, a row each for every text")
        known = dict(zip(arrays["prompts"].tolist(), arrays["latents"], strict=True))
    missing = [text for text in texts if text not in known]
    if model and missing:
        known |= dict(zip(missing, model.encode_text(missing), strict=True))
        write_arrays(
            out / "prompts.npz", prompts=np.array(list(known)), latents=np.stack([*known.values()])
        )
    return known


def write_arrays(path: Path, **arrays: np.ndarray) -> None:
    """Writes an .npz file, whole or not at all. Raises InputError if it can't be."""
    folder = make_folder(path.parent)
    with scratch_folder(folder) as scratch:
        np.savez(scratch / path.name, **arrays)
        publish(scratch / path.name, folder / path.name)


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
