"""Adds cases to a store for search: latents, reports, labels, strata and thumbnails.

    python -m ctclip_jax.index --store=STORE --model=EXPORT --shards=SHARDS --split=valid
    python -m ctclip_jax.index --store=STORE --model=EXPORT --scans=scans.csv 'more/*.nii.gz'

Scans are read as by `ctclip_jax.predict`; a table may give reports, labels and strata beside their
paths (docs/data.md). Cases with a name that the store has are left alone, so an interrupted run
continues when it is started again. Unreadable scans are reported and skipped; the exit status is
then 1. --approximate also builds a FAISS index of the whole store, for millions of cases.
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("store", None, "Folder of the store.", required=True)
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.")
    flags.DEFINE_string("scans", None, "Table of scans.")
    flags.DEFINE_string("encoding", "", "Of a table that is not UTF-8, such as cp1254.")
    flags.DEFINE_string("split", "valid", "Split of the shards, or of a table with a column split.")
    flags.DEFINE_integer("batch_size", 8, "Volumes encoded at a time.", lower_bound=1)
    flags.DEFINE_integer("workers", 2, "Threads that read scans.", lower_bound=1)
    flags.DEFINE_bool("approximate", False, "Build an approximate index of the whole store.")


command_line.parse(__name__, define_flags)

import functools
import itertools
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float32, Int16
from tqdm import tqdm

from ctclip_jax import Model, load
from ctclip_jax.case_store import Entry, Store, build_approximate_index, open_for_append
from ctclip_jax.evaluation.encode import fingerprint
from ctclip_jax.inference.scans import list_scans, read_ahead
from data_pipelines import shards, slices
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN

SEGMENT_CASES, SEGMENT_SECONDS = 1024, 300  # the most work that a kill can cost

Case = tuple[Entry, Int16[np.ndarray, "f h w"]]  # the volume in steps of 1/16 HU


def cases_of_shards(folder: str, split: str, rows: Sequence[int]) -> Iterator[Case]:
    """Reads these rows of a prepared split."""
    label_names, records = shards.preparation(folder, split)["labels"], shards.read(folder, split)
    for record in (records[row] for row in rows):
        yield _entry(record, label_names), record["volume"]


def _entry(fields: Mapping[str, Any], label_names: Sequence[str]) -> Entry:
    # A source that knows no exams names them as their volumes.
    patient, scan = fields["patient"], fields["scan"]
    exam = "" if scan in ("", fields["volume_name"]) else f"{patient}/{scan}"
    # Scans from the command line have no labels, so the lengths differ.
    labels = zip(label_names, fields["labels"], strict=False)
    return Entry(
        name=fields["volume_name"],
        patient=patient,
        findings=fields["findings"],
        impressions=fields["impressions"],
        labels={name: int(v) for name, v in labels if v != UNKNOWN and name in LABELS},
        strata=dict(fields["strata"]),
        exam=exam,
    )


def encode_segments(
    model: Model, cases: Iterator[Case], *, num_cases: int, batch_size: int
) -> Iterator[tuple[list[Entry], Float32[np.ndarray, "n d"], list[bytes]]]:
    """Encodes cases in batches; yields entries, latents and thumbnails of a segment at a time."""
    entries, latents, thumbnails, started = [], [], [], time.monotonic()
    with tqdm(total=num_cases, unit="case") as progress:
        while batch := list(itertools.islice(cases, batch_size)):
            volumes = np.stack([volume for _, volume in batch])
            entries += [entry for entry, _ in batch]
            latents.append(model.encode_image(volumes, batch_size=batch_size))
            thumbnails += [slices.thumbnail(v, spacing=model.geometry.spacing) for v in volumes]
            progress.update(len(batch))
            if len(entries) >= SEGMENT_CASES or time.monotonic() - started > SEGMENT_SECONDS:
                yield entries, np.concatenate(latents), thumbnails
                entries, latents, thumbnails, started = [], [], [], time.monotonic()
    if entries:
        yield entries, np.concatenate(latents), thumbnails


def main(*patterns: str) -> None:
    values = flags.FLAGS
    has_scans = bool(values.scans or patterns)
    if values.shards and has_scans:
        raise InputError("--shards: cannot be combined with scans; index them in two runs")
    skipped = []
    if values.shards or has_scans or not values.approximate:
        skipped = index(values, patterns)
    if values.approximate:
        build_approximate_index(values.store)
    if skipped:
        print(f"{len(skipped)} scans skipped:", *skipped, sep="\n  ", file=sys.stderr)
        sys.exit(1)


def index(values: flags.FlagValues, patterns: Sequence[str]) -> list[str]:
    """Adds the cases that the store does not have, and prints their number; returns the reasons
    why scans were skipped."""
    skipped: list[str] = []
    if values.shards:
        reports = shards.read_reports(values.shards, values.split)
        names = [report["volume_name"] for report in reports]
        model = load(values.model)
        prepared = shards.preparation(values.shards, values.split)
        model.config.image.check(prepared, source=values.shards, name=values.model)
        read = functools.partial(cases_of_shards, values.shards, values.split)
    else:
        scans = list_scans(patterns, values.scans, split=values.split, encoding=values.encoding)
        names = [scan.volume_name for scan in scans]
        model = load(values.model)

        def read(rows: Sequence[int]) -> Iterator[Case]:
            new = [scans[row] for row in rows]
            options = {"num_workers": values.workers, "on_skip": skipped.append}
            for case, prepared in read_ahead(model, new, **options):
                yield _entry(vars(case), LABELS), prepared.volume

    sha256, dim = fingerprint(model), model.config.dim_latent
    with open_for_append(values.store, model_sha256=sha256, dim=dim) as writer:
        rows = [row for row, name in enumerate(names) if name not in writer.names]
        segments = encode_segments(
            model, read(rows), num_cases=len(rows), batch_size=values.batch_size
        )
        num_added = sum(writer.add(*segment) for segment in segments)
    present = f"; {len(names) - len(rows)} were there" if len(names) > len(rows) else ""
    print(f"{num_added} cases added: {len(Store(values.store))} in {values.store}{present}")
    return skipped


if __name__ == "__main__":
    command_line.run(main)
