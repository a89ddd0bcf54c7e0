"""One segment of a store: the cases of an addition, in a folder that is never written again."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Float32, Int8

from data_pipelines.errors import InputError
from data_pipelines.files import publish_folder, scratch_folder
from data_pipelines.reports import LABELS

UNKNOWN = -1
_TEXTS = ("name", "patient", "findings", "impressions")


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a case; `labels` are those that somebody has read, 0 or 1."""

    name: str
    patient: str = ""
    findings: str = ""
    impressions: str = ""
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)


class Segment:
    """A folder of cases. No file of it stays open, so that a store may have thousands of them.

    Attributes:
      labels: (n, 18) int8: 0, 1, -1 where unknown.
    """

    labels: Int8[np.ndarray, "n labels"]

    def __init__(self, folder: Path, *, dim: int):
        """Raises InputError if it is damaged, or has latents of another size than `dim`."""
        self.folder = folder
        with self._reading():
            shape = np.load(folder / "latents.npy", mmap_mode="r").shape  # its length is checked
            self.labels, self._lines, self._pictures = (
                np.load(folder / f"{name}.npy") for name in ("labels", "lines", "pictures")
            )
            ends = [(folder / name).stat().st_size for name in ("cases.jsonl", "pictures.bin")]
        count = len(self.labels)
        starts = self._lines, self._pictures
        whole = shape == (count, dim) and self.labels.shape[1:] == (len(LABELS),)
        whole &= all(
            each.shape == (count + 1,) and each[-1] == end
            for each, end in zip(starts, ends, strict=True)
        )
        if not whole:
            raise InputError(f"{folder}: damaged (its files are not of the same cases)")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def latents(self) -> Float32[np.ndarray, "n d"]:
        """Read anew each time."""
        with self._reading():
            return np.load(self.folder / "latents.npy")

    def entry(self, row: int) -> Entry:
        """One case."""
        with self._reading():
            case = json.loads(self._part("cases.jsonl", self._lines, row))
            known = zip(LABELS, self.labels[row].tolist(), strict=True)
            return Entry(**case, labels={name: value for name, value in known if value != UNKNOWN})

    def thumbnail(self, row: int) -> bytes:
        """The JPEG of one case."""
        with self._reading():
            return self._part("pictures.bin", self._pictures, row)

    def names_and_strata(self) -> list[tuple[str, dict[str, str]]]:
        """Of all cases; reads every line."""
        with self._reading(), (self.folder / "cases.jsonl").open(encoding="utf-8") as lines:
            cases = map(json.loads, lines)
            return [(case["name"], case["strata"]) for case in cases]

    def _part(self, file: str, starts: np.ndarray, row: int) -> bytes:
        with (self.folder / file).open("rb") as opened:
            opened.seek(int(starts[row]))
            return opened.read(int(starts[row + 1] - starts[row]))

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except (OSError, ValueError, TypeError, LookupError, EOFError) as error:
            raise InputError(f"{self.folder}: damaged ({error})") from error


def write_segment(
    folder: Path,
    entries: Sequence[Entry],
    latents: Float32[np.ndarray, "n d"],
    thumbnails: Sequence[bytes],
) -> None:
    """Writes a segment that is there whole, on the disk, or not at all.

    Raises InputError if it cannot be written, as where there is one of that name."""
    lines = [_line(entry) for entry in entries]
    labels = [[entry.labels.get(name, UNKNOWN) for name in LABELS] for entry in entries]
    arrays = {
        "latents": np.asarray(latents, np.float32),
        "labels": np.array(labels, np.int8),
        "lines": _starts(lines),
        "pictures": _starts(thumbnails),
    }
    with scratch_folder(epath.Path(folder.parent)) as scratch:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)
        (scratch / "cases.jsonl").write_bytes(b"".join(lines))
        (scratch / "pictures.bin").write_bytes(b"".join(thumbnails))
        publish_folder(scratch, folder)


def _line(entry: Entry) -> bytes:
    told = {name: getattr(entry, name) for name in _TEXTS}
    text = json.dumps({**told, "strata": dict(entry.strata)}, ensure_ascii=False)
    return text.encode("utf-8", "replace") + b"\n"


def _starts(parts: Sequence[bytes]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
