"""CaseRecord: what a source says about one volume before its file is opened."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

from etils import epath

UNKNOWN = -1
"""The value of a label that was not read."""


@dataclasses.dataclass(frozen=True)
class CaseRecord:
    """One volume of a source: its file, its report and the tables' claims about its voxels.

    Attributes:
      scan: the exam, unique within the patient; its volumes are reconstructions.
      paths: possible locations of the file; the first that exists counts.
      series: UID, number or description of the DICOM series, or "all"; empty: one by the rule of
        `formats.dicom_series`.
      findings, impressions: of the report; empty if missing.
      labels: 0, 1 or UNKNOWN, in the order of the collection's.
      strata: for subgroup results: sex, age, manufacturer, kernel, ...
      slope, intercept: to HU; NaN without a claim.
      spacing: mm (z, x, y) of the patient; NaN without a claim.
      stored_spacing: mm along the stored axes, where a table says so; replaces `spacing`, which
        the published modes take.
      axes: directions of the stored axes, such as "LPS"; empty without a claim.
      skip: the reason why the case must be skipped; empty if there is none.
    """

    volume_name: str
    patient: str
    scan: str
    paths: tuple[epath.Path, ...]
    # Not in repr, nor is `stored_spacing`: shards hold a digest of it (`shard_tasks.plan`).
    series: str = dataclasses.field(default="", repr=False)
    findings: str = ""
    impressions: str = ""
    labels: tuple[int, ...] = ()
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    slope: float = math.nan
    intercept: float = math.nan
    spacing: tuple[float, float, float] = (math.nan, math.nan, math.nan)
    stored_spacing: tuple[float, float, float] = dataclasses.field(
        default=(math.nan, math.nan, math.nan), repr=False
    )
    axes: str = ""
    skip: str = ""

    def path(self) -> epath.Path:
        """Returns the first of `paths` that exists, else the last."""
        existing = (path for path in self.paths[:-1] if path.exists())
        return next(existing, self.paths[-1])


@dataclasses.dataclass(frozen=True)
class Collection:
    """The cases of one split of a source, sorted by name, and the names of the labels."""

    labels: tuple[str, ...]
    cases: Sequence[CaseRecord]
