"""Chest CTs on disk, read while the device computes."""

import dataclasses
import glob
import itertools
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from etils import epath

from ctclip_jax.inference.model import Model
from data_pipelines.errors import InputError
from data_pipelines.shard_tasks import PreparedVolume
from data_pipelines.sources import manifest
from data_pipelines.sources.case import CaseRecord


@dataclasses.dataclass(frozen=True)
class ReadScan:
    """A scan that can be used."""

    case: CaseRecord
    prepared: PreparedVolume


@dataclasses.dataclass(frozen=True)
class SkippedCase:
    """A scan that cannot be used, and the one line that says why."""

    case: CaseRecord
    reason: str


def list_scans(
    patterns: Sequence[str], table: str | None = None, *, split: str, by_path: bool = False
) -> list[CaseRecord]:
    """The scans that are meant, each once and with a name of its own.

    A pattern that is no file itself stands for what it matches. `table` is a manifest
    (data_pipelines.sources.manifest), of whose rows those of `split` are taken.

    A scan given by its path is named by the last parts of it that tell these scans apart, or with
    `by_path` by all of it, whatever else is given.

    Raises:
      InputError: no scan at all, a pattern that matches nothing, or a table that is none.
    """
    if not patterns and not table:
        raise InputError("no scan: give paths, or --scans=TABLE with a column path")
    paths = expand(patterns)
    called = [_as_text(str(path.absolute())) for path in paths] if by_path else names_of(paths)
    cases = [
        CaseRecord(volume_name=name, patient=name, scan=name, paths=(epath.Path(path),))
        for name, path in zip(called, paths, strict=True)
    ]
    cases += manifest.read_collection(table, split).cases if table else []
    names = [case.volume_name for case in cases]
    if len(set(names)) < len(names):
        twice = next(name for name in names if names.count(name) > 1)
        raise InputError(f"{table}: {twice}: also the name of another scan that is given")
    return cases


def expand(patterns: Sequence[str]) -> list[Path]:
    """The paths that `patterns` stand for. Raises InputError for one that matches nothing."""
    paths = {}
    for pattern in patterns:
        there = os.path.exists(pattern) or not glob.has_magic(pattern)
        found = [pattern] if there else sorted(glob.glob(pattern, recursive=True))
        if not found:
            raise InputError(f"{pattern}: matches nothing")
        paths |= dict.fromkeys(map(Path, found))
    return list(paths)


def names_of(paths: Sequence[Path]) -> list[str]:
    """A name for each path: its last part, with as many of those before it as tell all apart."""
    whole = [path.absolute().parts[1:] for path in paths]
    for depth in range(1, max(map(len, whole), default=1) + 1):
        names = [_as_text("_".join(parts[-depth:])) for parts in whole]
        if len(set(names)) == len(names):
            return names
    raise InputError(f"{paths[0]}: scans whose paths cannot be told apart")


def _as_text(name: str) -> str:
    """A name for tables: the names of files may have bytes that are no UTF-8."""
    return name.encode("utf-8", "backslashreplace").decode()


def read_ahead(
    model: Model, cases: Sequence[CaseRecord], *, workers: int
) -> Iterator[ReadScan | SkippedCase]:
    """Reads scans onto the grid of a model in so many threads, in their order; no more of them than
    `workers` wait in memory."""

    def read(case: CaseRecord) -> ReadScan | SkippedCase:
        if case.skip:
            return SkippedCase(case, f"{case.volume_name}: {case.skip}")
        try:
            return ReadScan(case, model.prepare(case))
        except InputError as error:
            return SkippedCase(case, str(error))
        except Exception as error:  # a fault of ours; the other scans are read all the same
            cause = f"{type(error).__name__}: {' '.join(str(error).split())}"
            return SkippedCase(case, f"{case.path()}: {cause}")

    left = iter(cases)
    with ThreadPoolExecutor(workers) as pool:
        waiting = [pool.submit(read, case) for case in itertools.islice(left, workers)]
        while waiting:
            yield waiting.pop(0).result()
            waiting += [pool.submit(read, case) for case in itertools.islice(left, 1)]
