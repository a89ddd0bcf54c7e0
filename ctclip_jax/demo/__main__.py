"""Opens the page: `python -m ctclip_jax.demo --checkpoint=EXPORT [--store=STORE]`.

Without --checkpoint it shows the model of `make demo`. It answers to this machine alone, deletes
an upload when it has been read, and writes into --folder and nowhere else. Research software, not
a medical device.
"""

import contextlib
import signal
import socket
import sys
import tempfile
import threading
import webbrowser
from collections.abc import Iterator
from pathlib import Path

from absl import flags

from ctclip_jax import Model, load
from ctclip_jax.case_store import Searcher, Store
from ctclip_jax.evaluation.encode import fingerprint
from data_pipelines.errors import InputError, run_main
from data_pipelines.files import make_folder

try:
    import uvicorn

    from ctclip_jax.demo.analysis import Analyses
    from ctclip_jax.demo.server import Page
except ImportError as error:
    MISSING = error.name
else:
    MISSING = ""

HOST = "127.0.0.1"
GRACE_SECONDS = 3  # for what is being sent when the page is ended
DEMO = Path("runs/demo/train")


@contextlib.contextmanager
def upload_folder(path: str | None) -> Iterator[Path]:
    """The folder of the uploads: the one that is given, or one that is deleted at the end."""
    if path:
        make_folder(path)
        yield Path(path)
        return
    with tempfile.TemporaryDirectory(prefix="ctclip-jax-") as scratch:
        yield Path(scratch)


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """Ctrl-C, SIGTERM and a closed terminal end what is within, and nothing what then tidies up."""
    stops = {signal.SIGINT, signal.SIGTERM}
    for stop in stops:
        signal.signal(stop, lambda *_: sys.exit(0))
    hangup = getattr(signal, "SIGHUP", None)  # Windows has none
    if hangup and signal.getsignal(hangup) is not signal.SIG_IGN:  # as nohup wants it
        stops.add(hangup)
        signal.signal(hangup, lambda *_: signal.raise_signal(signal.SIGTERM))  # uvicorn knows this
    try:
        yield
    finally:
        for stop in stops:
            signal.signal(stop, signal.SIG_IGN)


def open_searcher(path: str | None, model: Model) -> Searcher | None:
    """The store of cases. Raises InputError if it is of another model."""
    if not path:
        return None
    store = Store(path)
    store.check_model(fingerprint(model))
    return Searcher(store)


def listen(port: int) -> socket.socket:
    """A socket of this machine alone. Raises InputError if the port is taken."""
    listening = socket.socket()
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((HOST, port))
        listening.listen()  # it answers as soon as its address is printed
    except OSError as error:
        raise InputError(f"--port={port}: {error.strerror}; try another") from error
    return listening


def define_flags() -> None:
    """Only the binary has flags, so that importing this module adds none."""
    flags.DEFINE_string("checkpoint", None, "Any path that ctclip_jax.load opens.")
    flags.DEFINE_string("tokenizer", None, "Its vocab.txt or *.model, if not in the export.")
    flags.DEFINE_string("store", None, "Cases to search, that ctclip_jax.index wrote.")
    kinds = ("zero_shot", "classifier")
    flags.DEFINE_enum("scores", "zero_shot", kinds, "By prompts, or by a trained classifier.")
    flags.DEFINE_integer("port", 7860, "Port; 0: any that is free.", 0, 65535)
    flags.DEFINE_string("folder", None, "Folder of the uploads, else a temporary one.")
    flags.DEFINE_bool("keep_uploads", False, "Leave uploads in --folder.")
    flags.DEFINE_integer("max_upload_mb", 1024, "Largest upload, in MiB.", lower_bound=1)
    flags.DEFINE_bool("open_browser", True, "Open the page.")


def main() -> None:
    """Serves the page until it is interrupted."""
    values = flags.FLAGS
    if MISSING:
        raise InputError(f"the page needs {MISSING}: pip install 'ctclip-jax[demo]'")
    if values.keep_uploads and not values.folder:
        raise InputError("--keep_uploads: say where, with --folder")
    if not values.checkpoint and not DEMO.exists():
        raise InputError(f"--checkpoint: none is given, and {DEMO} of `make demo` is not there")
    listening = listen(values.port)
    model = load(values.checkpoint or DEMO, tokenizer=values.tokenizer)
    is_trained = values.scores == "classifier"
    classifier = model.trained_classifier() if is_trained else model.zero_shot_classifier()
    searcher, most_bytes = open_searcher(values.store, model), values.max_upload_mb << 20
    address = f"http://{HOST}:{listening.getsockname()[1]}"
    analyses = Analyses(model, classifier, most_bytes=most_bytes, keep_uploads=values.keep_uploads)
    with upload_folder(values.folder) as folder, contextlib.closing(analyses), stoppable():
        page = Page(analyses, folder, most_bytes=most_bytes, searcher=searcher)
        print(f"{address}  (Ctrl-C ends it; research software, not a medical device)", flush=True)
        if values.open_browser and sys.stdout.isatty():
            threading.Timer(1.0, webbrowser.open, [address]).start()
        config = uvicorn.Config(
            page.app(), log_level="warning", timeout_graceful_shutdown=GRACE_SECONDS
        )
        server = uvicorn.Server(config)
        server.run(sockets=[listening])


if __name__ == "__main__":
    run_main(main, define_flags)
