"""What every source says of one scan, before its file is opened."""

import dataclasses
import math
from pathlib import Path


@dataclasses.dataclass(frozen=True)
class Entry:
    """One volume of a source: its file, its report and what the tables claim of its voxels.

    `slope`, `intercept` (to HU) and `spacing` (mm; z, x, y) are NaN where the tables are silent.
    `labels` are 0 or 1 in the order of `reports.LABELS`. A missing report part is an empty string.
    `skip` says why the scan must be left out; empty if it is wanted.
    """

    volume_name: str
    patient: str
    scan: str
    path: Path
    findings: str = ""
    impressions: str = ""
    labels: tuple[int, ...] = ()
    slope: float = math.nan
    intercept: float = math.nan
    spacing: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    skip: str = ""
