"""Scans from the command line: paths, patterns and tables, prepared while the device computes."""

import dataclasses
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from ctclip_jax.inference.model import Model
from data_pipelines.errors import InputError, one_line
from data_pipelines.shard_tasks import PreparedVolume
from data_pipelines.sources import manifest
from data_pipelines.sources.case import CaseRecord


@dataclasses.dataclass(frozen=True)
class SkippedCase:
    """A scan that cannot be used, and why, in one line."""

    case: CaseRecord
    reason: str


def list_scans(
    patterns: Sequence[str], table: str | None = None, *, split: str
) -> list[CaseRecord]:
    """The scans of paths and glob patterns, named by their paths, and those of a table.

    Args:
      patterns: files, folders, or patterns of them.
      table: a manifest (data_pipelines.sources.manifest).
      split: which rows of the table count, if it has a column `split`.
    """
    if not patterns and not table:
        raise InputError("no scan: pass paths, or --scans=TABLE with a column path")
    paths = dict.fromkeys(path for pattern in patterns for path in expand(pattern))
    cases = [_case_of_path(path) for path in paths]
    if table:
        cases += manifest.read_collection(table, split, default_split=split).cases
    names = set()
    for name in (case.volume_name for case in cases):
        if name in names:
            raise InputError(f"{table}: {name}: duplicate name of a scan")
        names.add(name)
    return cases


def expand(pattern: str) -> list[Path]:
    """The paths that match a glob pattern; a path that exists, or without wildcards, is itself."""
    if os.path.exists(pattern) or not glob.has_magic(pattern):
        return [Path(pattern)]
    paths = [Path(path) for path in sorted(glob.glob(pattern, recursive=True))]
    if not paths:
        raise InputError(f"{pattern}: matches nothing")
    return paths


def _case_of_path(path: Path) -> CaseRecord:
    # File names may hold bytes that are not UTF-8; names go into tables, which cannot.
    name = str(path).encode("utf-8", "backslashreplace").decode()
    return CaseRecord(volume_name=name, patient=name, scan=name, paths=(epath.Path(path),))


def read_ahead(
    model: Model, cases: Sequence[CaseRecord], *, num_workers: int
) -> Iterator[tuple[CaseRecord, PreparedVolume] | SkippedCase]:
    """Prepares scans for a model in `num_workers` threads; yields them in order.

    At most `num_workers` scans wait in memory.
    """

    def prepare(case: CaseRecord) -> tuple[CaseRecord, PreparedVolume] | SkippedCase:
        if case.skip:
            return SkippedCase(case, f"{case.volume_name}: {case.skip}")
        try:
            return case, model.prepare(case)
        except InputError as error:
            return SkippedCase(case, str(error))
        except Exception as error:  # a bug of ours must not cost the other scans
            cause = f"{type(error).__name__}: {one_line(error)}"
            return SkippedCase(case, f"{case.path()}: {cause}")

    remaining = iter(cases)
    with ThreadPoolExecutor(num_workers) as pool:
        pending = [pool.submit(prepare, case) for case in itertools.islice(remaining, num_workers)]
        while pending:
            yield pending.pop(0).result()
            pending += [pool.submit(prepare, case) for case in itertools.islice(remaining, 1)]
