"""Scans from the command line: paths, patterns and tables, prepared while the device computes."""

import glob
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import islice
from pathlib import Path

from etils import epath

from ctclip_jax.inference.model import Model
from data_pipelines.errors import InputError, one_line, printable
from data_pipelines.shard_tasks import PreparedVolume
from data_pipelines.sources import dicom, manifest
from data_pipelines.sources.case import CaseRecord


def list_scans(
    patterns: Sequence[str],
    table: str | None = None,
    *,
    split: str,
    encoding: str = "",
    series: str = "",
) -> list[CaseRecord]:
    """The scans of paths and glob patterns, named by their paths, and those of a table.

    Args:
      patterns: files, folders, or patterns of them.
      table: a manifest (data_pipelines.sources.manifest).
      split: which rows of the table count, if it has a column `split`.
      encoding: of a table that is not UTF-8.
      series: UID, number or description of the DICOM series, or "all"; empty: one by rule.
    """
    if not patterns and not table:
        raise InputError("no scan: pass paths, or --scans=TABLE with a column path")
    paths = dict.fromkeys(path for pattern in patterns for path in expand(pattern))
    cases = [_case_of_path(path) for path in paths]
    if table:
        cases += manifest.read_collection(
            table, split, default_split=split, encoding=encoding
        ).cases
    cases = dicom.name_series(cases, series)
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
    # File names may hold any bytes; names go into tables and onto the terminal.
    name = printable(str(path))
    return CaseRecord(volume_name=name, patient=name, scan=name, paths=(epath.Path(path),))


def read_ahead(
    model: Model,
    cases: Sequence[CaseRecord],
    *,
    num_workers: int,
    on_skip: Callable[[str], object],
) -> Iterator[tuple[CaseRecord, PreparedVolume]]:
    """Prepares scans for a model in `num_workers` threads; yields them in order.

    At most `num_workers` scans are in memory beside the one that was yielded last, and they are
    prepared while it is in use. `on_skip` gets the reason, one line, for each scan
    that cannot be used.
    """

    def prepare(case: CaseRecord) -> PreparedVolume:
        if case.skip:
            raise InputError(f"{case.volume_name}: {case.skip}")
        return model.prepare(case)

    remaining = iter(cases)
    with ThreadPoolExecutor(num_workers) as pool:

        def submit(count: int) -> list[tuple[CaseRecord, Future]]:
            return [(case, pool.submit(prepare, case)) for case in islice(remaining, count)]

        pending = submit(num_workers)
        while pending:
            case, future = pending.pop(0)
            error = future.exception()
            pending += submit(1)
            if error is None:
                yield case, future.result()
            elif isinstance(error, InputError):
                on_skip(str(error))
            else:  # a bug of ours must not cost the other scans
                on_skip(printable(f"{case.path()}: {type(error).__name__}: {one_line(error)}"))
