"""The page, served by a thread, with a model that compiles in seconds and a store of phantoms."""

import contextlib
import dataclasses
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvicorn

import ctclip_jax
from ctclip_jax.case_store import Entry, Searcher, Store, open_for_append
from ctclip_jax.demo.__main__ import listen
from ctclip_jax.demo.analysis import Analyses
from ctclip_jax.demo.server import Page
from ctclip_jax.evaluation.encode import fingerprint
from data_pipelines import slices
from tests.tiny_run import write_tiny_export

MAX_BYTES = 4 << 20
REPORT = "<b>Report</b> <script>alert(1)</script>"


@dataclasses.dataclass(frozen=True)
class Served:
    """Address of the page, its scans, and the folder of its uploads."""

    address: str
    analyses: Analyses
    folder: Path

    @property
    def model(self) -> ctclip_jax.Model:
        return self.analyses.model

    @contextlib.contextmanager
    def busy_worker(self) -> Iterator[None]:
        """The worker thread is busy within this block; requests queue behind it."""
        release = threading.Event()
        self.analyses._worker.submit(release.wait, 30)
        try:
            yield
        finally:
            release.set()


def make_store(folder: Path, model: ctclip_jax.Model, scans: list[Path]) -> Store:
    """A store of these scans, of the second one two reconstructions; their reports hold markup."""
    names = [*(scan.name for scan in scans), "thin.nii.gz"]
    scans = [*scans, scans[1]]
    volumes = np.stack([model.prepare(scan).volume for scan in scans])
    case = Entry("", findings=REPORT, labels={"Emphysema": 1})
    entries = [
        dataclasses.replace(case, name=name, exam=scan.name)
        for name, scan in zip(names, scans, strict=True)
    ]
    thumbnails = [slices.thumbnail(volume, spacing=model.geometry.spacing) for volume in volumes]
    sha256, dim = fingerprint(model), model.config.dim_latent
    with open_for_append(folder, model_sha256=sha256, dim=dim) as writer:
        writer.add(entries, model.encode_image(volumes), thumbnails)
    return Store(folder)


@contextlib.contextmanager
def served(folder: Path, scans: list[Path]) -> Iterator[Served]:
    """The page on a free port of this machine."""
    model = ctclip_jax.load(write_tiny_export(folder, init_logit_scale_log=4.0))
    uploads = folder / "uploads"
    uploads.mkdir()
    searcher = Searcher(make_store(folder / "store", model, scans))
    analyses = Analyses(
        model, model.zero_shot_classifier(), max_upload_bytes=MAX_BYTES, keep_uploads=False
    )
    page = Page(analyses, uploads, searcher=searcher)
    listener = listen(0)
    server = uvicorn.Server(uvicorn.Config(page.app(), log_level="critical"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{listener.getsockname()[1]}", analyses, uploads)
    finally:
        server.should_exit = True
        thread.join()
        analyses.close()
