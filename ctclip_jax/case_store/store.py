"""The store on disk: opened at once, whatever its size; added to, and never torn."""

import contextlib
import dataclasses
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float32, Int8

from ctclip_jax.case_store.segment import Entry, Segment, write_segment
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder, read_json, write_text
from data_pipelines.reports import LABELS
from data_pipelines.shards import locked

FILE, SEGMENT = "store.json", "segment-"
UNIT = 1e-2  # how far a latent's length may be from 1


@dataclasses.dataclass(frozen=True)
class Where:
    """A filter: labels that must be 1 or 0, and strata that must have a value."""

    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if unknown := [name for name in self.labels if name not in LABELS]:
            raise InputError(f"label {unknown[0]!r} is none of {', '.join(LABELS)}")


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
        paths = _segment_folders(self.folder).values()
        self._segments = [Segment(path, dim=self.dim) for path in paths]
        ends = np.cumsum([len(segment) for segment in self._segments], dtype=np.int64)
        self._bounds = np.concatenate([[0], ends]).tolist()

    @classmethod
    def open(cls, folder: str | Path) -> "Store":
        """Opens a store. Raises InputError if it is none, or damaged."""
        return cls(Path(folder))

    @classmethod
    def create(cls, folder: str | Path, *, model_sha256: str, dim: int) -> "Store":
        """Opens a store, or begins one. Raises InputError if it is of another model, or another
        process is writing there before it is begun."""
        path = make_folder(folder) / FILE
        if not path.exists():
            with locked(folder, exclusive=True):
                if not path.exists():
                    content = {"model_sha256": model_sha256, "dim": dim}
                    write_text(path, json.dumps(content) + "\n")
        store = cls.open(folder)
        store.check_model(model_sha256)
        return store

    def check_model(self, model_sha256: str) -> None:
        """Raises InputError if the latents are of another model."""
        if self.model_sha256 != model_sha256:
            raise InputError(f"{self.folder}: its latents are of another model than the one given")

    def __len__(self) -> int:
        return self._bounds[-1]

    @property
    def latents(self) -> Float32[np.ndarray, "n d"]:
        """All latents, in the order of the rows; read anew each time."""
        latents = np.empty((len(self), self.dim), np.float32)
        for segment, start in zip(self._segments, self._bounds, strict=False):
            latents[start : start + len(segment)] = segment.latents
        return latents

    @cached_property
    def labels(self) -> Int8[np.ndarray, "n labels"]:
        """0, 1, or -1 where unknown, of the 18 labels."""
        none = np.zeros((0, len(LABELS)), np.int8)
        return np.concatenate([none, *(segment.labels for segment in self._segments)])

    @property
    def names(self) -> list[str]:
        """Of all cases; reads every line, once."""
        return self._told[0]

    def entry(self, row: int) -> Entry:
        """One case. Raises InputError if it is damaged."""
        segment, row = self._find(row)
        return segment.entry(row)

    def thumbnail(self, row: int) -> bytes:
        """The JPEG of one case."""
        segment, row = self._find(row)
        return segment.thumbnail(row)

    def mask(self, where: Where) -> Bool[np.ndarray, " n"]:
        """Which cases a filter lets pass; the first one by a stratum reads every line.

        Raises InputError for a stratum that no case has."""
        passes = np.ones(len(self), bool)
        for name, value in where.labels.items():
            passes &= self.labels[:, LABELS.index(name)] == value
        for name, value in where.strata.items():
            known = self._told[1]
            if name not in known:
                told = ", ".join(sorted(known)) or "none"
                raise InputError(f"{self.folder}: no stratum {name!r}; there are: {told}")
            there = np.zeros(len(self), bool)
            there[np.asarray(known[name].get(value, ()), np.int64)] = True
            passes &= there
        return passes

    @cached_property
    def _told(self) -> tuple[list[str], dict[str, dict[str, array]]]:
        """The names of all cases; and for every stratum, and value of it, the rows."""
        names: list[str] = []
        strata: dict[str, dict[str, array]] = {}
        for segment in self._segments:
            for name, values in segment.names_and_strata():
                for stratum, value in values.items():
                    rows = strata.setdefault(stratum, {}).setdefault(value, array("q"))
                    rows.append(len(names))
                names.append(name)
        return names, strata

    def _find(self, row: int) -> tuple[Segment, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        place = int(np.searchsorted(self._bounds, row, side="right")) - 1
        return self._segments[place], row - self._bounds[place]


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
        """Adds the cases whose names are not `known`, the first of each name, as one segment;
        returns their number. Those who have the store open do not see them.

        Raises InputError, and adds nothing, if they cannot be written or a latent is not of unit
        length.
        """
        if latents.shape != (len(entries), self._store.dim):
            raise ValueError(f"latents of shape {latents.shape}")
        lengths = np.linalg.norm(latents, axis=1)
        for entry, length in zip(entries, lengths, strict=True):
            if not abs(length - 1) <= UNIT:  # NaN would be found before all others
                raise InputError(f"{entry.name}: a latent of length {length}, wanted 1")
        firsts = {entry.name: row for row, entry in reversed([*enumerate(entries)])}
        new = sorted(row for name, row in firsts.items() if name not in self.known)
        if new:
            chosen = [entries[row] for row in new]
            folder = self._store.folder
            last = max(_segment_folders(folder), default=-1)
            write_segment(
                folder / f"{SEGMENT}{last + 1:05}",
                chosen,
                latents[new],
                [thumbnails[row] for row in new],
            )
            self.known |= firsts.keys()
        return len(new)


@contextlib.contextmanager
def adding(folder: str | Path) -> Iterator[Addition]:
    """Holds a store for additions. Raises InputError if another process does."""
    store = Store.open(folder)
    with locked(folder, exclusive=True):
        yield Addition(Store.open(store.folder))


def _segment_folders(folder: Path) -> dict[int, Path]:
    """The segments by their numbers, in increasing order."""
    found = {path.name.removeprefix(SEGMENT): path for path in folder.glob(f"{SEGMENT}*")}
    return dict(sorted((int(text), path) for text, path in found.items() if text.isdecimal()))
