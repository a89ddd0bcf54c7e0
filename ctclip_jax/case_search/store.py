"""The store on disk: opened at once, whatever its size; added to, and never torn."""

import contextlib
import dataclasses
import json
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool, Float32, Int8

from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, publish_folder, read_json, scratch_folder, write_text
from data_pipelines.reports import LABELS
from data_pipelines.shards import locked

FILE, SEGMENT = "store.json", "segment-{:05}"
SEGMENTS = "segment-*"
UNKNOWN = -1


@dataclasses.dataclass(frozen=True)
class Entry:
    """What is known of a case; `labels` are those that somebody has read, 0 or 1."""

    name: str
    patient: str = ""
    findings: str = ""
    impressions: str = ""
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Where:
    """A filter: labels that must be 1 or 0, and strata that must have a value."""

    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if unknown := [name for name in self.labels if name not in LABELS]:
            raise InputError(f"label {unknown[0]!r} is none of {', '.join(LABELS)}")


class Segment:
    """One folder of cases, its arrays mapped and not read."""

    def __init__(self, folder: Path):
        self.folder = folder
        try:
            self.latents, self.labels, self.lines, self.pictures = (
                np.load(folder / f"{name}.npy", mmap_mode="r")
                for name in ("latents", "labels", "lines", "pictures")
            )
            ends = [(folder / name).stat().st_size for name in ("cases.jsonl", "pictures.bin")]
        except (OSError, ValueError, EOFError) as error:
            raise InputError(f"{folder}: damaged ({error})") from error
        count = len(self.latents)
        whole = self.labels.shape == (count, len(LABELS)) and all(
            len(starts) == count + 1 and starts[-1] == end
            for starts, end in zip((self.lines, self.pictures), ends, strict=True)
        )
        if not whole:
            raise InputError(f"{folder}: damaged (its files are not of the same cases)")

    def __len__(self) -> int:
        return len(self.latents)

    def read(self, file: str, starts: np.ndarray, row: int) -> bytes:
        """The bytes of one case in one of the two files."""
        with (self.folder / file).open("rb") as opened:
            opened.seek(int(starts[row]))
            return opened.read(int(starts[row + 1] - starts[row]))

    def cases(self) -> Iterator[dict]:
        """The lines of all cases."""
        for line in (self.folder / "cases.jsonl").open(encoding="utf-8"):
            yield json.loads(line)


class Store:
    """The cases of a store, as they were when it was opened.

    Attributes:
      folder: where it lies.
      model_sha256: the fingerprint of the model whose latents they are.
      dim: the size of a latent.
    """

    def __init__(self, folder: Path):
        self.folder = Path(folder)
        if not (self.folder / FILE).exists():
            raise InputError(f"{folder}: no store of cases; ctclip_jax.index makes one")
        content = read_json(self.folder / FILE)
        try:
            self.model_sha256, self.dim = str(content["model_sha256"]), int(content["dim"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder / FILE}: no store ({error})") from error
        self.segments = [Segment(path) for path in sorted(self.folder.glob(SEGMENTS))]
        self._ends = np.cumsum([len(segment) for segment in self.segments], dtype=np.int64)

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens a store. Raises InputError if it is none, or damaged."""
        return cls(Path(folder))

    @classmethod
    def create(cls, folder: str | Path, *, model_sha256: str, dim: int) -> "Store":
        """Opens a store, or begins one. Raises InputError if it is of another model."""
        folder = Path(folder)
        make_folder(folder)
        if not (folder / FILE).exists():
            content = {"model_sha256": model_sha256, "dim": dim}
            write_text(folder / FILE, json.dumps(content) + "\n")
        store = cls.open(folder)
        store.check_model(model_sha256)
        return store

    def check_model(self, model_sha256: str) -> None:
        """Raises InputError if the latents are of another model."""
        if self.model_sha256 != model_sha256:
            raise InputError(f"{self.folder}: its latents are of another model than the one given")

    def __len__(self) -> int:
        return int(self._ends[-1]) if self.segments else 0

    @property
    def latents(self) -> Float32[np.ndarray, "n d"]:
        """All latents, in the order of the rows."""
        parts = [segment.latents for segment in self.segments]
        return np.concatenate(parts) if parts else np.zeros((0, self.dim), np.float32)

    @property
    def labels(self) -> Int8[np.ndarray, "n labels"]:
        """0, 1, or -1 where unknown, of the 18 labels."""
        parts = [segment.labels for segment in self.segments]
        return np.concatenate(parts) if parts else np.zeros((0, len(LABELS)), np.int8)

    @cached_property
    def names(self) -> list[str]:
        """Of all cases; reads every line."""
        return [case["name"] for segment in self.segments for case in segment.cases()]

    def entry(self, row: int) -> Entry:
        """One case."""
        segment, row = self._find(row)
        case = json.loads(segment.read("cases.jsonl", segment.lines, row))
        known = zip(LABELS, segment.labels[row].tolist(), strict=True)
        return Entry(**case, labels={name: value for name, value in known if value != UNKNOWN})

    def thumbnail(self, row: int) -> bytes:
        """The JPEG of one case."""
        segment, row = self._find(row)
        return segment.read("pictures.bin", segment.pictures, row)

    def mask(self, where: Where) -> Bool[np.ndarray, " n"]:
        """Which cases a filter lets pass. Raises InputError for a stratum that no case has."""
        passes, labels = np.ones(len(self), bool), self.labels
        for name, value in where.labels.items():
            passes &= labels[:, LABELS.index(name)] == value
        if where.strata:
            strata = [case["strata"] for segment in self.segments for case in segment.cases()]
            known = {name for each in strata for name in each}
            for name, value in where.strata.items():
                if name not in known:
                    told = ", ".join(sorted(known)) or "none"
                    raise InputError(f"{self.folder}: no stratum {name!r}; there are: {told}")
                passes &= np.array([each.get(name) == value for each in strata])
        return passes

    def _find(self, row: int) -> tuple[Segment, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        place = int(np.searchsorted(self._ends, row, side="right"))
        segment = self.segments[place]
        return segment, row - int(self._ends[place]) + len(segment)


class Addition:
    """Cases on their way into a store that nobody else adds to; made by `adding`."""

    def __init__(self, store: Store):
        self.known = set(store.names)
        self._store = store

    def add(
        self,
        entries: Sequence[Entry],
        latents: Float32[np.ndarray, "n d"],
        thumbnails: Sequence[bytes],
    ) -> int:
        """Adds the cases whose names are not `known`, as one segment; returns their number. Those
        who have the store open do not see them.

        Raises InputError if they cannot be written; nothing is added then.
        """
        if latents.shape != (len(entries), self._store.dim):
            raise ValueError(f"latents of shape {latents.shape}")
        new = [row for row, entry in enumerate(entries) if entry.name not in self.known]
        if new:
            chosen = [entries[row] for row in new]
            _write_segment(
                self._store.folder, chosen, latents[new], [thumbnails[row] for row in new]
            )
            self.known |= {entry.name for entry in chosen}
        return len(new)


@contextlib.contextmanager
def adding(folder: str | Path) -> Iterator[Addition]:
    """Holds a store for additions. Raises InputError if another process does."""
    store = Store.open(folder)
    with locked(folder, alone=True):
        yield Addition(Store.open(store.folder))


def _write_segment(folder, entries, latents, thumbnails) -> None:
    lines = [_line(entry) for entry in entries]
    labels = [[entry.labels.get(name, UNKNOWN) for name in LABELS] for entry in entries]
    arrays = {
        "latents": np.asarray(latents, np.float32),
        "labels": np.array(labels, np.int8),
        "lines": _starts(lines),
        "pictures": _starts(thumbnails),
    }
    last = max((int(path.name.split("-")[1]) for path in folder.glob(SEGMENTS)), default=-1)
    with scratch_folder(epath.Path(folder)) as scratch:
        for name, array in arrays.items():
            np.save(scratch / f"{name}.npy", array)
        (scratch / "cases.jsonl").write_bytes(b"".join(lines))
        (scratch / "pictures.bin").write_bytes(b"".join(thumbnails))
        publish_folder(scratch, folder / SEGMENT.format(last + 1))


def _line(entry: Entry) -> bytes:
    told = {name: getattr(entry, name) for name in ("name", "patient", "findings", "impressions")}
    text = json.dumps({**told, "strata": dict(entry.strata)}, ensure_ascii=False)
    return text.encode("utf-8", "backslashreplace") + b"\n"


def _starts(parts: Sequence[bytes]) -> np.ndarray:
    return np.concatenate([[0], np.cumsum([len(part) for part in parts], dtype=np.int64)])
