"""Serves a page on this machine: a scan's findings, heatmaps and similar cases.

    python -m ctclip_jax.demo --model=EXPORT [--store=STORE]

Without --model it shows the model of `make demo`. It listens on 127.0.0.1, deletes an upload as
soon as it has been read, and writes only into --folder. Research software, not a medical device.
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_string("model", None, "Any path that ctclip_jax.load opens.")
    flags.DEFINE_alias("checkpoint", "model")
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("store", None, "Case store that ctclip_jax.index wrote.")
    kinds = ("zero_shot", "trained", "classifier")
    flags.DEFINE_enum("classifier", "zero_shot", kinds, "Prompts, or a trained (=classifier) head.")
    flags.DEFINE_alias("scores", "classifier")
    flags.DEFINE_integer("port", 7860, "Port; 0: any free one.", 0, 65535)
    flags.DEFINE_string("folder", None, "Folder of the uploads; default: a temporary one.")
    flags.DEFINE_bool("keep_uploads", False, "Leave uploads in --folder.")
    flags.DEFINE_integer("max_upload_mb", 1024, "Largest upload or volume, MiB.", lower_bound=1)
    flags.DEFINE_bool("open_browser", True, "Open the page in a browser.")


command_line.parse(__name__, define_flags)

import contextlib
import signal
import socket
import sys
import tempfile
import threading
import time
import webbrowser
from concurrent.futures import Future
from pathlib import Path

from ctclip_jax import load
from ctclip_jax.case_store import Searcher, Store
from ctclip_jax.evaluation.encode import fingerprint
from data_pipelines.errors import InputError
from data_pipelines.files import make_folder

HOST = "127.0.0.1"
DEMO_MODEL = Path("runs/demo/train")
GRACE_SECONDS = 3  # for requests that are open when the page is stopped
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def exit_once(*_) -> None:
    """Signal handler: the first signal exits, and nothing interrupts the clean-up after it."""
    for number in STOP_SIGNALS:
        signal.signal(number, signal.SIG_IGN)
    sys.exit(0)


def listen(port: int) -> socket.socket:
    listener = socket.socket()
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((HOST, port))
        listener.listen()  # so that the address works as soon as it is printed
    except OSError as error:
        raise InputError(f"--port={port}: {error.strerror}; try another") from error
    return listener


def announce(warm_up: Future) -> None:
    """Says on the terminal that the model is being compiled, and when it is ready."""
    start = time.monotonic()
    print("compiling the model; scans can be opened already", flush=True)

    def report(warm_up: Future) -> None:
        if warm_up.cancelled():  # the page was stopped before
            return
        seconds = f"{time.monotonic() - start:.0f} s"
        error = warm_up.exception()
        print(f"not compiled: {error}" if error else f"ready after {seconds}", flush=True)

    warm_up.add_done_callback(report)


def main() -> None:
    try:
        import uvicorn

        from ctclip_jax.demo.analysis import Analyses
        from ctclip_jax.demo.server import Page
    except ImportError as error:
        raise InputError(f"{error.name} is missing: pip install 'ctclip-jax[demo]'") from error
    values = flags.FLAGS
    if values.keep_uploads and not values.folder:
        raise InputError("--keep_uploads: needs --folder")
    if not values.model and not DEMO_MODEL.exists():
        raise InputError(
            f"--model: missing, and there is no {DEMO_MODEL}, which `make demo` trains"
        )
    listener = listen(values.port)
    model = load(values.model or DEMO_MODEL, tokenizer=values.tokenizer)
    is_zero_shot = values.classifier == "zero_shot"
    classifier = model.zero_shot_classifier() if is_zero_shot else model.trained_classifier()
    searcher = None
    if values.store:
        store = Store(values.store)
        store.check_model(fingerprint(model))
        searcher = Searcher(store)
    analyses = Analyses(
        model,
        classifier,
        max_upload_bytes=values.max_upload_mb << 20,
        keep_uploads=values.keep_uploads,
    )
    # Before anything needs clean-up. uvicorn has its own handlers while it runs, then raises the
    # signal again.
    for number in STOP_SIGNALS:
        signal.signal(number, exit_once)
    with contextlib.ExitStack() as cleanup:
        if values.folder:
            folder = make_folder(values.folder)
        else:
            folder = cleanup.enter_context(tempfile.TemporaryDirectory(prefix="ctclip-jax-"))
        tempfile.tempdir = str(folder)  # zips are unpacked there
        # After the folder, so that uploads are deleted before it is.
        cleanup.enter_context(contextlib.closing(analyses))
        address = f"http://{HOST}:{listener.getsockname()[1]}"
        print(f"{address}  (Ctrl-C ends it; research software, not a medical device)", flush=True)
        announce(analyses.warm_up())
        if values.open_browser and sys.stdout.isatty():
            threading.Timer(1.0, webbrowser.open, [address]).start()
        config = uvicorn.Config(
            Page(analyses, Path(folder), searcher=searcher).app(),
            # The server prints internal errors itself; uvicorn would also print a traceback for
            # every request that it cancels after the grace period.
            log_level="critical",
            timeout_graceful_shutdown=GRACE_SECONDS,
        )
        uvicorn.Server(config).run(sockets=[listener])


if __name__ == "__main__":
    command_line.run(main)
