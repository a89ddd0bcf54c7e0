"""On-disk case store: append-only segments, atomic writes, one writer and any number of readers."""

import contextlib
import dataclasses
import hashlib
import json
from array import array
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from etils import epath
from jaxtyping import Bool, Float32, Int8, UInt64

from data_pipelines.errors import InputError, one_line
from data_pipelines.files import locked, publish_folder, read_json, scratch_folder, write_text
from data_pipelines.reports import LABELS
from data_pipelines.sources.case import UNKNOWN
from data_pipelines.sources.ct_rate import parse_volume_name

MANIFEST, SEGMENT_PREFIX = "store.json", "segment-"
CASES, PICTURES = "cases.jsonl", "pictures.bin"
PARTS = {CASES: "lines.npy", PICTURES: "pictures.npy"}  # file -> byte offsets of its cases
EXAMS = "exams.npy"
NORM_TOLERANCE = 1e-2  # largest |length - 1| of a latent


@dataclasses.dataclass(frozen=True)
class Entry:
    """One case, a volume. `labels` holds only annotated labels, as 0 or 1; `strata` e.g. {"sex":
    "F"}; volumes of one `exam` are its reconstructions, "" is unknown."""

    name: str
    patient: str = ""
    findings: str = ""
    impressions: str = ""
    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)
    exam: str = ""


@dataclasses.dataclass(frozen=True)
class CaseFilter:
    """Labels that must be 1 or 0, and strata that must have a value; all conditions hold."""

    labels: Mapping[str, int] = dataclasses.field(default_factory=dict)
    strata: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        if unknown := [name for name in self.labels if name not in LABELS]:
            raise InputError(f"label: unknown {unknown[0]!r}; choose from {', '.join(LABELS)}")


class Segment:
    """One immutable folder of cases: their labels, and where each lies in the files of PARTS.

    Files are opened per read: a store may have more segments than a process may have open files.
    """

    def __init__(self, folder: Path, *, dim: int):
        """Checks that the files hold the same cases and that latents have size `dim`."""
        self.folder = folder
        with self.reporting_damage():
            shape = np.load(folder / "latents.npy", mmap_mode="r").shape  # also checks file size
            self.labels = np.load(folder / "labels.npy")
            self._offsets = {file: np.load(folder / offsets) for file, offsets in PARTS.items()}
            num_cases = len(self.labels)
            is_whole = shape == (num_cases, dim) and self.labels.shape[1:] == (len(LABELS),)
            for file, offsets in self._offsets.items():
                is_whole &= offsets.shape == (num_cases + 1,)
                is_whole &= offsets[-1] == (folder / file).stat().st_size
        if not is_whole:
            raise InputError(f"{folder}: damaged (sizes of its files differ)")

    def __len__(self) -> int:
        return len(self.labels)

    def load_exams(self) -> UInt64[np.ndarray, " n"]:
        """A number for the exam of each case; of a segment of earlier versions from their names."""
        with self.reporting_damage():
            if (self.folder / EXAMS).exists():
                exams = np.load(self.folder / EXAMS)
            else:
                with (self.folder / CASES).open("rb") as lines:
                    names = [json.loads(line)["name"] for line in lines]
                exams = np.array([_exam_number(name) for name in names], np.uint64)
            if exams.shape != (len(self),):
                raise ValueError(f"{len(exams)} exams of {len(self)} cases")
            return exams

    def read_part(self, file: str, row: int) -> bytes:
        """Reads what a file of PARTS holds of one case."""
        start, stop = map(int, self._offsets[file][row : row + 2])
        with self.reporting_damage(), (self.folder / file).open("rb") as opened:
            opened.seek(start)
            return opened.read(stop - start)

    @contextlib.contextmanager
    def reporting_damage(self) -> Iterator[None]:
        """What goes wrong inside becomes an InputError that names the folder."""
        try:
            yield
        except (OSError, ValueError, TypeError, LookupError, EOFError) as error:
            raise InputError(f"{self.folder}: damaged ({one_line(error)})") from error


class Store:
    """A snapshot of the cases that the store held when it was opened.

    Attributes:
      folder: root of the store.
      model_sha256: fingerprint of the model that computed the latents.
      dim: size of a latent.
    """

    def __init__(self, folder: str | Path):
        self.folder = Path(folder)
        if not (self.folder / MANIFEST).exists():
            raise InputError(f"{folder}: no case store; python -m ctclip_jax.index creates one")
        manifest = read_json(self.folder / MANIFEST)
        try:
            self.model_sha256, self.dim = str(manifest["model_sha256"]), int(manifest["dim"])
        except (KeyError, TypeError, ValueError) as error:
            raise InputError(f"{self.folder / MANIFEST}: no case store ({error})") from error
        paths = _segment_folders(self.folder).values()
        self._segments = [Segment(path, dim=self.dim) for path in paths]
        ends = np.cumsum([len(segment) for segment in self._segments], dtype=np.int64)
        self._bounds = np.concatenate([[0], ends]).tolist()

    def check_model(self, model_sha256: str) -> None:
        """Raises InputError if another model computed the latents."""
        if self.model_sha256 != model_sha256:
            raise InputError(f"{self.folder}: its latents are of another model than --model")

    def __len__(self) -> int:
        return self._bounds[-1]

    def load_latents(self) -> Float32[np.ndarray, "n d"]:
        """Reads the latents of all cases from disk."""
        latents = np.empty((len(self), self.dim), np.float32)
        for segment, start in zip(self._segments, self._bounds, strict=False):
            with segment.reporting_damage():
                latents[start : start + len(segment)] = np.load(segment.folder / "latents.npy")
        return latents

    @cached_property
    def labels(self) -> Int8[np.ndarray, "n labels"]:
        """0, 1 or -1 (unknown) for each of LABELS."""
        empty = np.zeros((0, len(LABELS)), np.int8)
        return np.concatenate([empty, *(segment.labels for segment in self._segments)])

    @cached_property
    def exams(self) -> UInt64[np.ndarray, " n"]:
        """A number for the exam of each case, equal for its reconstructions."""
        empty = np.zeros(0, np.uint64)
        return np.concatenate([empty, *(segment.load_exams() for segment in self._segments)])

    @property
    def names(self) -> list[str]:
        """Names of all cases; the first access reads every line of the store."""
        return self._names_and_strata[0]

    def load_entry(self, row: int) -> Entry:
        """Reads one case."""
        segment, row = self._locate(row)
        with segment.reporting_damage():
            fields = json.loads(segment.read_part(CASES, row))
            labels = zip(LABELS, segment.labels[row].tolist(), strict=True)
            return Entry(**fields, labels={name: v for name, v in labels if v != UNKNOWN})

    def load_thumbnail(self, row: int) -> bytes:
        """Reads the JPEG of one case."""
        segment, row = self._locate(row)
        return segment.read_part(PICTURES, row)

    def mask(self, case_filter: CaseFilter) -> Bool[np.ndarray, " n"]:
        """The cases that pass; the first filter by a stratum reads every line of the store."""
        passes = np.ones(len(self), bool)
        for name, value in case_filter.labels.items():
            passes &= self.labels[:, LABELS.index(name)] == value
        for name, value in case_filter.strata.items():
            _, strata = self._names_and_strata
            if name not in strata:
                choices = ", ".join(sorted(strata)) or "none"
                raise InputError(f"{self.folder}: no stratum {name!r}; choose from {choices}")
            has_value = np.zeros(len(self), bool)
            has_value[np.asarray(strata[name].get(value, ()), np.int64)] = True
            passes &= has_value
        return passes

    @cached_property
    def _names_and_strata(self) -> tuple[list[str], dict[str, dict[str, array]]]:
        """Names by row, and rows by stratum and value; arrays, because a list of a million Python
        integers takes four times the memory."""
        names: list[str] = []
        strata: dict[str, dict[str, array]] = {}
        for segment in self._segments:
            with segment.reporting_damage(), (segment.folder / CASES).open("rb") as lines:
                for case in map(json.loads, lines):
                    for stratum, value in case["strata"].items():
                        rows = strata.setdefault(stratum, {}).setdefault(value, array("q"))
                        rows.append(len(names))
                    names.append(case["name"])
        return names, strata

    def _locate(self, row: int) -> tuple[Segment, int]:
        if not 0 <= row < len(self):
            raise IndexError(row)
        index = int(np.searchsorted(self._bounds, row, side="right")) - 1
        return self._segments[index], row - self._bounds[index]


class StoreWriter:
    """Appends cases to a store that this process has locked; `open_for_append` creates it."""

    def __init__(self, store: Store):
        self.names = set(store.names)
        self._store = store

    def add(
        self,
        entries: Sequence[Entry],
        latents: Float32[np.ndarray, "n d"],
        thumbnails: Sequence[bytes],
    ) -> int:
        """Writes the cases with new names as one segment and returns their number.

        Of several entries with one name, the first counts. Open stores do not see the segment.
        Nothing is written if a latent does not have unit length.
        """
        if latents.shape != (len(entries), self._store.dim):
            raise ValueError(f"latents of shape {latents.shape}")
        for entry, length in zip(entries, np.linalg.norm(latents, axis=1), strict=True):
            if not abs(length - 1) <= NORM_TOLERANCE:  # negated, so that NaN fails; it ranks first
                raise InputError(f"{entry.name}: latent of length {length}, expected 1")
        first_rows = {entry.name: row for row, entry in reversed([*enumerate(entries)])}
        rows = sorted(row for name, row in first_rows.items() if name not in self.names)
        if rows:
            last = max(_segment_folders(self._store.folder), default=-1)
            _write_segment(
                self._store.folder / f"{SEGMENT_PREFIX}{last + 1:05}",
                [entries[row] for row in rows],
                latents[rows],
                [thumbnails[row] for row in rows],
            )
            self.names |= first_rows.keys()
        return len(rows)


@contextlib.contextmanager
def open_for_append(folder: str | Path, *, model_sha256: str, dim: int) -> Iterator[StoreWriter]:
    """Locks the store of a model, creates it if the folder has none, and yields its writer."""
    with locked(folder, exclusive=True):
        path = Path(folder) / MANIFEST
        if not path.exists():
            write_text(path, json.dumps({"model_sha256": model_sha256, "dim": dim}) + "\n")
        store = Store(folder)
        store.check_model(model_sha256)
        yield StoreWriter(store)


def _segment_folders(folder: Path) -> dict[int, Path]:
    """Segments by number, in increasing order: by name, 100000 would come before 99999."""
    paths = {path.name.removeprefix(SEGMENT_PREFIX): path for path in folder.glob("segment-*")}
    return dict(sorted((int(text), path) for text, path in paths.items() if text.isdecimal()))


def _exam_number(name: str, exam: str = "") -> int:
    """64 bits of a digest of the exam; if it is unknown, of that of a CT-RATE name and the folder
    before it, and for any other name of the volume alone."""
    folder, _, file = name.rpartition("/")
    if not exam and (ids := parse_volume_name(file)):
        exam = "/".join((folder, *ids) if folder else ids)
    identity = f"exam {exam}" if exam else f"volume {name}"
    digest = hashlib.blake2b(identity.encode("utf-8", "replace"), digest_size=8)
    return int.from_bytes(digest.digest(), "big")


def _write_segment(
    folder: Path,
    entries: Sequence[Entry],
    latents: Float32[np.ndarray, "n d"],
    thumbnails: Sequence[bytes],
) -> None:
    """Writes into a scratch folder, syncs, then renames: a kill leaves all of it or nothing."""
    lines = []
    for entry in entries:
        fields = {**vars(entry), "strata": dict(entry.strata)}
        del fields["labels"]  # stored as an array
        line = json.dumps(fields, ensure_ascii=False)
        lines.append(line.encode("utf-8", "replace") + b"\n")  # names may hold lone surrogates
    parts = {CASES: lines, PICTURES: thumbnails}
    labels = [[entry.labels.get(name, UNKNOWN) for name in LABELS] for entry in entries]
    with scratch_folder(epath.Path(folder.parent)) as scratch:
        np.save(scratch / "latents.npy", np.asarray(latents, np.float32))
        np.save(scratch / "labels.npy", np.array(labels, np.int8))
        exams = [_exam_number(entry.name, entry.exam) for entry in entries]
        np.save(scratch / EXAMS, np.array(exams, np.uint64))
        for file, content in parts.items():
            ends = np.cumsum([len(part) for part in content], dtype=np.int64)
            np.save(scratch / PARTS[file], np.concatenate([[0], ends]))
            (scratch / file).write_bytes(b"".join(content))
        publish_folder(scratch, folder)
