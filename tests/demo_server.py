"""The page, served from a thread, with a model that compiles in seconds and a store of phantoms."""

import contextlib
import dataclasses
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import uvicorn

import ctclip_jax
from ctclip_jax.case_store import Entry, Searcher, Store, adding
from ctclip_jax.demo.analysis import Analyses
from ctclip_jax.demo.server import Page
from ctclip_jax.evaluation.latents import fingerprint
from ctclip_jax.inference import classifiers
from ctclip_jax.reporting import thumbnails
from data_pipelines.resample import STEPS_PER_HU
from tests.tiny_run import write_tiny_export

MOST_BYTES = 4 << 20


@dataclasses.dataclass(frozen=True)
class Served:
    """Where the page is, its scans, and the folder of its uploads."""

    address: str
    analyses: Analyses
    folder: Path

    @property
    def finder(self) -> classifiers.Detector:
        return self.analyses.finder


def make_store(folder: Path, finder: classifiers.Detector, scans: list[Path]) -> Store:
    """A store of these scans."""
    model = finder.model
    dim = model.config.dim_latent
    store = Store.create(folder, model_sha256=fingerprint(model), dim=dim)
    volumes = np.stack([model.prepare(scan).volume for scan in scans])
    entries = [
        Entry(scan.name, findings=f"<b>Report</b> of {scan.name}.", labels={"Emphysema": 1})
        for scan in scans
    ]
    thumbnails = [
        thumbnails.slices(volume, spacing=model.geometry.spacing, steps_per_hu=STEPS_PER_HU)
        for volume in volumes
    ]
    with adding(store.folder) as addition:
        addition.add(entries, model.encode_image(volumes), thumbnails)
    return Store.open(folder)


@contextlib.contextmanager
def served(folder: Path, scans: list[Path]) -> Iterator[Served]:
    """The page on a free port of this machine."""
    model = ctclip_jax.load(write_tiny_export(folder, init_logit_scale_log=4.0))
    finder, uploads = classifiers.zero_shot_classifier(model), folder / "uploads"
    uploads.mkdir()
    searcher = Searcher(make_store(folder / "store", finder, scans))
    analyses = Analyses(finder, most_bytes=MOST_BYTES, keep_uploads=False)
    page = Page(analyses, uploads, most_bytes=MOST_BYTES, searcher=searcher)
    listening = socket.socket()
    listening.bind(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(page.app(), log_level="error"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]}, daemon=True)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield Served(f"http://127.0.0.1:{listening.getsockname()[1]}", analyses, uploads)
    finally:
        server.should_exit = True
        thread.join()
        analyses.close()
