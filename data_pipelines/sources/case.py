"""What every source says of one scan, before its file is opened."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from etils import epath

UNKNOWN = -1
"""A label that nobody has read."""


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """One volume of a source: its file, its report and what the tables claim of its voxels.

    `paths` are where its file may lie; the first that is there counts. `scan` is unique within the
    patient. `labels` are 0, 1 or UNKNOWN, in the order of the collection's. `strata` are what
    results are split by: sex, age, manufacturer, kernel, ... `slope`, `intercept` (to HU) and
    `spacing` (mm; z, x, y) are NaN and `axes` (where the stored axes run to, such as "LPS") is
    empty where the tables are silent. A missing report part is an empty string. `skip` says why the
    case must be left out; empty if it is wanted.
    """

    volume_name: str
    patient: str
    scan: str
    paths: tuple[epath.Path, ...]
    findings: str = ""
    impressions: str = ""
    labels: tuple[int, ...] = ()
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    slope: float = math.nan
    intercept: float = math.nan
    spacing: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    axes: str = ""
    skip: str = ""

    def path(self) -> epath.Path:
        """What `formats.read_scan` opens: the first of `paths` that is there, or else the last."""
        found = (path for path in self.paths[:-1] if path.exists())
        return next(found, self.paths[-1])


@dataclasses.dataclass(frozen=True)
class Collection:
    """The cases of one split of a source, sorted by name, and the names of their labels."""

    labels: tuple[str, ...]
    cases: Sequence[CaseRecord]
