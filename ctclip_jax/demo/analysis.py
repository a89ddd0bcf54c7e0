"""Scan queue of the page: one worker thread encodes uploads; the latest scans stay in memory."""

import asyncio
import dataclasses
import secrets
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
from jaxtyping import Float, Float32

from ctclip_jax.demo.scan_view import ScanView, view_scan
from ctclip_jax.evaluation.estimates import number
from ctclip_jax.inference.classifiers import Classifier, finding_prompts
from ctclip_jax.inference.load import Model
from data_pipelines.errors import InputError
from data_pipelines.formats.stored import limited_bytes
from data_pipelines.shard_tasks import provenance

MAX_SCANS = 4  # in memory; one takes up to 256 MiB, and 30 MB of full-size patch features
MAX_QUEUED = 4
MAX_FINDING_CHARS = 200


class QueueFullError(InputError):
    """Too many scans are queued."""


class FindingScore(NamedTuple):
    """A finding in one scan.

    Attributes:
      probability: the score of the classifier.
      calibrated, rank: a calibrated probability; the share of the reference volumes with a lower
        score; None without a curve, without a reference.
      usual: the median score of the reference volumes.
      shown: the first of calibrated, rank and probability that there is.
      tick: the calibrated probability of the threshold; None if not calibrated.
      contributions: of the patches to the logit.
    """

    probability: float
    calibrated: float | None
    rank: float | None
    usual: float | None
    shown: float
    tick: float | None
    contributions: Float32[np.ndarray, "t h w"]


@dataclasses.dataclass
class Analysis:
    """One scan, which the worker thread fills in; `findings` by name."""

    id: str
    name: str
    state: Literal["waiting", "reading", "encoding", "done", "failed"] = "waiting"
    error: str = ""
    view: ScanView | None = None
    patch_features: Float[np.ndarray, "1 ..."] | None = None
    latent: Float32[np.ndarray, " d"] | None = None
    provenance: dict[str, Any] = dataclasses.field(default_factory=dict)
    findings: dict[str, FindingScore] = dataclasses.field(default_factory=dict)


class Analyses:
    """All scans of the page, and the one thread that uses the device."""

    def __init__(
        self, model: Model, classifier: Classifier, *, max_upload_bytes: int, keep_uploads: bool
    ):
        self.model, self.classifier = model, classifier
        self.max_upload_bytes, self.keep_uploads = max_upload_bytes, keep_uploads
        self._uploads: dict[str, Path] = {}  # of the scans that are queued or in work, by id
        self._scans: OrderedDict[str, Analysis] = OrderedDict()  # least recently used first
        self._lock = threading.Lock()
        self._worker = ThreadPoolExecutor(1)
        self._warm_up: Future | None = None

    def warm_up(self) -> Future:
        """Compiles the model for scans and questions, before the first of them waits for it."""
        self._warm_up = self._submit(self._compile)
        return self._warm_up

    @property
    def is_compiling(self) -> bool:
        """Whether `warm_up` was called and is not done."""
        return self._warm_up is not None and not self._warm_up.done()

    def start(self, path: Path, *, name: str) -> Analysis:
        """Queues an upload, whose file is deleted as soon as it has been read."""
        with self._lock:
            analysis = Analysis(secrets.token_hex(8), name)
            try:
                if len(self._uploads) >= MAX_QUEUED:
                    raise QueueFullError("too many scans are waiting; try again in a minute")
                self._submit(self._analyze, analysis, path)
            except QueueFullError:
                path.unlink()
                raise
            self._scans[analysis.id] = analysis
            self._uploads[analysis.id] = path
            finished = (id for id in list(self._scans) if id not in self._uploads)
            while len(self._scans) > max(MAX_SCANS, len(self._uploads) + 1):
                del self._scans[next(finished)]
        return analysis

    def get(self, id: str) -> Analysis:
        """The scan with this id, if it is still in memory."""
        with self._lock:
            if id not in self._scans:
                raise InputError(
                    f"this scan is no longer in memory, which holds {MAX_SCANS}; open its file"
                )
            self._scans.move_to_end(id)
            return self._scans[id]

    def drop(self, id: str) -> None:
        """Removes a scan from memory; the worker skips it if it is queued."""
        with self._lock:
            self._scans.pop(id, None)

    async def run(self, function: Callable, *arguments: Any) -> Any:
        """Runs a function in the worker thread; a cancelled request leaves the queue."""
        return await asyncio.wrap_future(self._submit(function, *arguments))

    async def score_finding(self, analysis: Analysis, text: str) -> str:
        """Scores a finding in the user's words by zero-shot prompts, and returns its name."""
        name = " ".join(text.split()).rstrip(".")
        if not name or len(name) > MAX_FINDING_CHARS:
            raise InputError(f"finding: expected 1 to {MAX_FINDING_CHARS} characters")
        if name not in analysis.findings:
            await self.run(self._score_finding, analysis, name)
        return name

    def close(self) -> None:
        """Deletes all uploads, empties the queue, and waits for the scan in work."""
        self._worker.shutdown(wait=False, cancel_futures=True)
        with self._lock:
            paths = list(self._uploads.values())
        for path in paths:
            self._delete(path)
        self._worker.shutdown()

    def _submit(self, function: Callable, *arguments: Any) -> Future:
        try:
            return self._worker.submit(function, *arguments)
        except RuntimeError as error:  # after `close`
            raise QueueFullError("the page is closing") from error

    def _analyze(self, analysis: Analysis, path: Path) -> None:
        error = ""
        try:
            self._read_and_encode(analysis, path)
        except InputError as problem:
            # The user knows the name of the file, not that of our copy.
            error = str(problem).replace(str(path), analysis.name)
        except Exception as bug:  # must not end the page
            error = f"internal error: {type(bug).__name__}: {bug}"
        finally:
            self._delete(path)
        analysis.error, analysis.state = error, "failed" if error else "done"
        with self._lock:
            del self._uploads[analysis.id]

    def _read_and_encode(self, analysis: Analysis, path: Path) -> None:
        self.get(analysis.id)  # raises InputError for a scan that was dropped while it was queued
        analysis.state = "reading"
        # A small file may hold gigabytes.
        with limited_bytes(self.max_upload_bytes):
            prepared = self.model.prepare(path)
        volume, analysis.provenance = prepared.volume, provenance(prepared)
        grid = self.model.config.image.grid
        analysis.view = view_scan(prepared, self.model.geometry, grid=grid)
        del analysis.provenance["file"], prepared
        self._delete(path)
        self.get(analysis.id)
        analysis.state = "encoding"
        analysis.patch_features = self.model.patch_features(volume[None])
        self._score(analysis, self.classifier)

    def _score_finding(self, analysis: Analysis, name: str) -> None:
        self._score(analysis, self._classifier_of(name))

    def _classifier_of(self, name: str) -> Classifier:
        finding = finding_prompts(name.replace("{", "(").replace("}", ")"))  # no placeholders
        return self.model.zero_shot_classifier([dataclasses.replace(finding, name=name)])

    def _compile(self) -> None:
        features = self.model.patch_features(np.zeros((1, *self.model.geometry.shape), np.int16))
        questions = () if self.classifier.relu else (self._classifier_of("Pleural effusion"),)
        for classifier in (self.classifier, *questions):
            self.model.attribute(features, classifier.kernel, relu=classifier.relu)

    def _score(self, analysis: Analysis, classifier: Classifier) -> None:
        latents, contributions = self.model.attribute(
            analysis.patch_features, classifier.kernel, relu=classifier.relu
        )
        analysis.latent, contributions = latents[0], contributions[0]
        (table,) = classifier.tables(analysis.latent[None])
        if classifier.thresholds is not None:
            table["tick"] = classifier.calibrate(classifier.thresholds[None])[0]
        columns = ["probability", "calibrated", "rank", "usual", "tick"]
        table = table.reindex(columns=columns).astype(float)
        table["shown"] = table["calibrated"].fillna(table["rank"]).fillna(table["probability"])
        for name, contribution in zip(classifier.names, contributions, strict=True):
            numbers = {column: number(value) for column, value in table.loc[name].items()}
            analysis.findings[name] = FindingScore(**numbers, contributions=contribution)

    def _delete(self, path: Path) -> None:
        if not self.keep_uploads:
            path.unlink(missing_ok=True)
