"""Chest CTs in every form that `Model` takes: paths, cases, prepared volumes, arrays."""

import os
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Num

from ctclip_jax.checkpoints.tensor_files import check_finite
from data_pipelines.errors import InputError
from data_pipelines.resample import STEPS_PER_HU, Geometry, to_fixed_point
from data_pipelines.shard_tasks import PreparedVolume
from data_pipelines.sources.case import CaseRecord

Scan = str | os.PathLike | CaseRecord | PreparedVolume
Volumes = Scan | Sequence[Scan] | Num[np.ndarray, "n f h w"] | Num[np.ndarray, "f h w"]

_UNITS = "floats in [-1, 1] (published: HU / 1000), or int16 in steps of 1/16 HU"
_MAX_FLOAT = 10  # beyond any noise around [-1, 1]; in HU even fat is beyond it
_AIR = -1000  # HU


def as_several(volumes: Volumes) -> list[Scan] | Num[np.ndarray, "n f h w"]:
    """Returns a list of scans, of length 1 for one, or an array of volumes."""
    if isinstance(volumes, Scan):
        return [volumes]
    if isinstance(volumes, Sequence) and any(isinstance(volume, Scan) for volume in volumes):
        return list(volumes)
    array = np.asarray(volumes)
    return array[None] if array.ndim == 3 else array


def scan_names(volumes: list[Scan] | np.ndarray) -> tuple[str | int, ...]:
    """Returns names of cases and paths of files; numbers for volumes of an array."""
    if isinstance(volumes, np.ndarray):
        return tuple(range(len(volumes)))
    paths = (scan.path if isinstance(scan, PreparedVolume) else scan for scan in volumes)
    return tuple(p.volume_name if isinstance(p, CaseRecord) else str(p) for p in paths)


def batches(
    volumes: list[Scan] | np.ndarray, prepare: Callable[[Scan], PreparedVolume], *, size: int
) -> Iterator[Num[np.ndarray, "n f h w"]]:
    """Yields an array as it is, and the volumes of `size` scans at a time: they may be many."""
    if isinstance(volumes, np.ndarray):
        yield volumes
        return
    for start in range(0, len(volumes), size):
        yield np.stack([prepare(scan).volume for scan in volumes[start : start + size]])


def check_volumes(volumes: np.ndarray, geometry: Geometry) -> Num[np.ndarray, "n f h w"]:
    """Returns volumes without an axis of one channel. Raises InputError for another grid, dtype or
    unit, and for NaN."""
    if volumes.ndim == 5 and volumes.shape[1] == 1:
        volumes = volumes[:, 0]
    if volumes.ndim != 4 or volumes.shape[1:] != geometry.shape:
        shape = ", ".join(map(str, ("n", *geometry.shape)))
        raise InputError(f"volumes: got shape {volumes.shape}, expected ({shape})")
    is_float = np.issubdtype(volumes.dtype, np.floating)
    if volumes.dtype != np.int16 and not is_float:
        raise InputError(f"volumes: got {volumes.dtype}, expected {_UNITS}")
    sample = volumes[:, ::2, ::4, ::4]  # enough to know the unit by
    low, high = sample.min(initial=0), sample.max(initial=0)
    if is_float:
        check_finite({str(volumes.dtype): volumes}, source="volumes")
        is_hu = max(-low, high) > _MAX_FLOAT
    else:
        # The lowest value is air or padding in both units; whole HU in steps are multiples of 16.
        air = to_fixed_point(max(_AIR, geometry.window[0]))
        is_hu = air / 2 < low <= 0.9 * _AIR and (sample % STEPS_PER_HU).any()
    if is_hu:
        raise InputError(
            f"volumes: {volumes.dtype} from {low:g} to {high:g} look like HU; expected {_UNITS}"
        )
    return volumes
