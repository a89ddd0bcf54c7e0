"""Cases into a store that `ctclip_jax.search` and the page search.

    python -m ctclip_jax.index --store=STORE --model=EXPORT --shards=SHARDS --split=valid
    python -m ctclip_jax.index --store=STORE --model=EXPORT --scans=scans.csv 'more/*.nii.gz'

Scans are read as `ctclip_jax.predict` reads them; a table may have reports, labels and strata of
them beside their paths (docs/data.md). Cases whose names are in the store already are left alone,
so that an addition that was stopped goes on when it is started again. A scan that cannot be used
is told in one line, and the status is 1 at the end. --approximate also makes an index (FAISS) of
the whole store, for searches among millions.
"""

import sys
import time
from collections.abc import Iterator, Sequence

import numpy as np
from absl import flags
from tqdm import tqdm

from ctclip_jax import Model, load
from ctclip_jax.case_store import Entry, Store, adding, build_approximate
from ctclip_jax.case_store.store import Addition
from ctclip_jax.evaluation.latents import fingerprint
from ctclip_jax.inference.scans import SkippedCase, list_scans, read_ahead
from data_pipelines import shards
from data_pipelines.errors import InputError, run_main
from data_pipelines.reports import LABELS
from data_pipelines.resample import STEPS_PER_HU
from data_pipelines.sources.case import CaseRecord

SEGMENT_CASES, SEGMENT_SECONDS = 1024, 300  # what a kill can cost

Item = tuple[Entry, np.ndarray]  # a case and its volume, (f, h, w) in steps of 1/16 HU


def of_shards(folder: str, split: str, *, rows: Sequence[tuple[int, dict]]) -> Iterator[Item]:
    """The cases of these rows of a prepared split, each with its place in it."""
    names, records = shards.preparation(folder, split)["labels"], shards.read(folder, split)
    for place, told in rows:
        labels = dict(zip(names, told["labels"], strict=True))
        yield _entry(told, labels), records[place]["volume"]


def of_scans(
    model: Model, cases: Sequence[CaseRecord], *, workers: int, bad: list[SkippedCase]
) -> Iterator[Item]:
    """Scans as they are read; those that cannot be used go into `bad`."""
    for item in read_ahead(model, cases, num_workers=workers):
        if isinstance(item, SkippedCase):
            bad.append(item)
            continue
        case, prepared = item
        told = {name: getattr(case, name) for name in _TOLD}
        labels = dict(zip(LABELS, case.labels, strict=False))
        yield _entry(told, labels), prepared.volume


_TOLD = ("volume_name", "patient", "findings", "impressions", "strata")


def _entry(told: dict, labels: dict[str, int]) -> Entry:
    known = {name: int(value) for name, value in labels.items() if value >= 0 and name in LABELS}
    name, patient, findings, impressions, strata = (told[each] for each in _TOLD)
    return Entry(name, patient, findings, impressions, known, dict(strata))


def add_all(
    addition: Addition, model: Model, items: Iterator[Item], *, total: int, batch_size: int
) -> int:
    """Encodes and adds cases, a segment at a time; returns their number."""
    added, entries, latents, thumbnails = 0, [], [], []
    spacing, written = model.geometry.spacing, time.monotonic()

    def flush() -> int:
        if not entries:
            return 0
        count = addition.add(entries, np.concatenate(latents), thumbnails)
        for each in (entries, latents, thumbnails):
            each.clear()
        return count

    with tqdm(total=total, unit="case") as bar:
        for batch in _batches(items, batch_size):
            volumes = np.stack([volume for _, volume in batch])
            latents.append(model.encode_image(volumes, batch_size=batch_size))
            entries += [entry for entry, _ in batch]
            thumbnails += [
                thumbnails.slices(volume, spacing=spacing, steps_per_hu=STEPS_PER_HU)
                for volume in volumes
            ]
            bar.update(len(batch))
            late = time.monotonic() - written > SEGMENT_SECONDS
            if late or len(entries) >= SEGMENT_CASES:
                added += flush()
                written = time.monotonic()
        return added + flush()


def _batches(items: Iterator[Item], size: int) -> Iterator[list[Item]]:
    batch: list[Item] = []
    for item in items:
        batch.append(item)
        if len(batch) == size:
            yield batch
            batch = []
    if batch:
        yield batch


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("store", None, "Folder of the store.", required=True)
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.", required=True)
    flags.DEFINE_string("shards", None, "Folder that data_pipelines.prepare wrote.")
    flags.DEFINE_string("scans", None, "A table of scans, CSV or .jsonl.")
    flags.DEFINE_string("split", "train", "Split of the shards, or of a table that has splits.")
    flags.DEFINE_integer("batch_size", 8, "Volumes computed at a time.", lower_bound=1)
    flags.DEFINE_integer("workers", 2, "Scans read at a time, and kept waiting.", lower_bound=1)
    flags.DEFINE_bool("approximate", False, "Make an approximate index of the whole store.")


def main(*patterns: str) -> None:
    """Adds what the flags say."""
    values = flags.FLAGS
    if values.shards and (values.scans or patterns):
        raise InputError("--shards: one source at a time; scans go in by themselves")
    bad: list[SkippedCase] = []
    if values.shards or values.scans or patterns or not values.approximate:
        add(values, patterns, bad)
    if values.approximate:
        build_approximate(values.store)
    if bad:
        print(f"{len(bad)} scans could not be used:", file=sys.stderr)
        for scan in bad:
            print(f"  {scan.reason}", file=sys.stderr)
        sys.exit(1)


def add(values: flags.FlagValues, patterns: Sequence[str], bad: list[SkippedCase]) -> None:
    """Adds the cases of shards, or of scans, and tells how many."""
    cases = [] if values.shards else list_scans(patterns, values.scans, split=values.split)
    model = load(values.model)
    if values.shards:
        prepared = shards.preparation(values.shards, values.split)
        model.config.image.check(prepared, source=values.shards, name=str(values.model))
    dim = model.config.dim_latent
    store = Store.create(values.store, model_sha256=fingerprint(model), dim=dim)
    with adding(store.folder) as addition:
        if values.shards:
            given = list(enumerate(shards.read_reports(values.shards, values.split)))
            new = [row for row in given if row[1]["volume_name"] not in addition.known]
            items = of_shards(values.shards, values.split, rows=new)
        else:
            given = cases
            new = [case for case in given if case.volume_name not in addition.known]
            items = of_scans(model, new, workers=values.workers, bad=bad)
        count = add_all(addition, model, items, total=len(new), batch_size=values.batch_size)
    there = f"; {len(given) - len(new)} were there" if len(given) > len(new) else ""
    print(f"{count} cases added: {len(Store.open(values.store))} in {values.store}{there}")


if __name__ == "__main__":
    run_main(main, define_flags)
