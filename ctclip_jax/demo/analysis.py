"""Scans that the page looks at: read and encoded one after the other, a few kept in memory."""

import dataclasses
import secrets
import threading
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ctclip_jax.demo import uploads
from ctclip_jax.inference import classifiers
from ctclip_jax.inference.classifiers import Classifier
from ctclip_jax.inference.load import Model
from data_pipelines.errors import InputError
from data_pipelines.resample import to_hu
from data_pipelines.shard_tasks import provenance

KEPT = 4  # scans; a full-size one takes 250 MB with its tokens
WAITING = 4
LONGEST_FINDING = 200  # characters


class Busy(InputError):
    """Too many scans are waiting."""


@dataclasses.dataclass
class Analysis:
    """One scan; `state` goes from waiting over reading and encoding to done or failed.

    `findings` are (probability, calibrated or None, contributions (t, h, w)) by name.
    """

    id: str
    name: str
    state: str = "waiting"
    error: str = ""
    volume: np.ndarray | None = None
    latent: np.ndarray | None = None
    evidence: np.ndarray | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    findings: dict[str, tuple[float, float | None, np.ndarray]] = dataclasses.field(
        default_factory=dict
    )


class Analyses:
    """All scans of the page, and the one thread that works on them."""

    def __init__(
        self, model: Model, classifier: Classifier, *, most_bytes: int, keep_uploads: bool
    ):
        self.model, self.classifier = model, classifier
        self.keep_uploads, self._most_bytes = keep_uploads, most_bytes
        self._uploads: dict[str, Path] = {}  # by id, of scans that are waited for
        self._kept: OrderedDict[str, Analysis] = OrderedDict()
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1)

    def start(self, path: Path, *, name: str) -> Analysis:
        """Begins with an upload, which is deleted when it has been read. Raises Busy."""
        with self._lock:
            if len(self._uploads) >= WAITING:
                uploads.forget(path)
                raise Busy("too many scans are waiting; try again in a minute")
            analysis = Analysis(secrets.token_hex(8), name)
            self._kept[analysis.id] = analysis
            self._uploads[analysis.id] = path
            ended = (id for id in list(self._kept) if id not in self._uploads)
            while len(self._kept) > max(KEPT, len(self._uploads) + 1):
                del self._kept[next(ended)]
        self._worker.submit(self._analyze, analysis, path)
        return analysis

    def close(self) -> None:
        """Deletes the uploads, and waits for the scan that is being worked on."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            left = list(self._uploads.values())
        for path in left:
            self._forget(path)
        self._worker.shutdown()

    def find(self, id: str) -> Analysis:
        """Raises InputError if it is not kept any more."""
        with self._lock:
            if id not in self._kept:
                raise InputError("this scan is not in memory any more; drop it again")
            self._kept.move_to_end(id)
            return self._kept[id]

    def drop(self, id: str) -> None:
        """Forgets a scan; if it has not been read or encoded, it will not be."""
        with self._lock:
            self._kept.pop(id, None)

    def ask(self, analysis: Analysis, text: str) -> str:
        """Adds a finding in one's own words; returns its name. Raises InputError for no words."""
        name = " ".join(text.split()).rstrip(".")
        if not name or len(name) > LONGEST_FINDING:
            raise InputError(f"a finding of 1 to {LONGEST_FINDING} characters")
        if name not in analysis.findings:
            finding = classifiers.finding_prompts(name.replace("{", "(").replace("}", ")"))
            asked = self._worker.submit(
                lambda: self._explain(
                    analysis, self.model.zero_shot_classifier([finding]), names=[name]
                )
            )
            asked.result()
        return name

    def encode_text(self, encode, text: str) -> np.ndarray:
        """The latent of words, by the thread that has the device."""
        return self._worker.submit(encode, self.model, text).result()

    def _analyze(self, analysis: Analysis, path: Path) -> None:
        error = ""
        try:
            self._read_and_encode(analysis, path)
        except InputError as fault:
            where = str(path.with_suffix("") if path.suffix == ".zip" else path)
            error = str(fault).replace(where, analysis.name)
        except Exception as fault:  # ours; the page goes on
            error = f"{type(fault).__name__}, a fault of this program: {fault}"
        finally:
            self._forget(path)
        analysis.error, analysis.state = error, "failed" if error else "done"
        with self._lock:
            del self._uploads[analysis.id]

    def _read_and_encode(self, analysis: Analysis, path: Path) -> None:
        self.find(analysis.id)  # one that was dropped ends here
        analysis.state = "reading"
        prepared = self.model.prepare(uploads.unpack(path, most_bytes=self._most_bytes))
        analysis.volume, analysis.provenance = prepared.volume, provenance(prepared)
        del analysis.provenance["file"], prepared
        self._forget(path)
        self.find(analysis.id)  # or here
        analysis.state = "encoding"
        analysis.evidence = self.model.patch_features(analysis.volume[None])
        self._explain(analysis, self.classifier, names=self.classifier.names)

    def _explain(self, analysis: Analysis, classifier: Classifier, *, names) -> None:
        analysis.latent, contributions = self.model.attribute(
            analysis.evidence, classifier.kernel, relu=classifier.relu
        )
        probabilities = classifier.probabilities(analysis.latent)
        calibrated = classifier.calibrate(probabilities)
        for column, name in enumerate(names):
            worth = None if calibrated is None else float(calibrated[0, column])
            probability = float(probabilities[0, column])
            analysis.findings[name] = (probability, worth, contributions[0, column])

    def _forget(self, path: Path) -> None:
        if not self.keep_uploads:
            uploads.forget(path)


def hu(volume: np.ndarray) -> bytes:
    """A volume as the page reads it: int16 HU, little-endian, (f, h, w)."""
    return np.floor(to_hu(volume)).astype("<i2").tobytes()
