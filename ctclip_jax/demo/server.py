"""HTTP API and static files of the page, for this machine only."""

import asyncio
import dataclasses
import functools
import json
import traceback
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from ctclip_jax.case_store import Searcher, encode_query
from ctclip_jax.demo import uploads
from ctclip_jax.demo.analysis import Analyses, Analysis, QueueFullError
from data_pipelines.errors import InputError

STATIC = Path(__file__).parent / "static"
LOCAL_HOSTS = ("127.0.0.1", "localhost", "[::1]")
NUM_SIMILAR = 6
MAX_TEXT_BYTES = 4000  # of a request with text
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
ERROR_STATUS = {
    InputError: 400,
    uploads.TooLargeError: 413,
    QueueFullError: 503,
    OSError: 507,
    ClientDisconnect: 400,
    Exception: 500,
}


class Page:
    """The API over one model and, optionally, a case store."""

    def __init__(self, analyses: Analyses, folder: Path, *, searcher: Searcher | None = None):
        """`folder` receives the uploads."""
        self.analyses, self.folder, self.searcher = analyses, folder, searcher

    def app(self) -> ASGIApp:
        """The application, to be served on 127.0.0.1."""
        routes = [
            Route("/api/about", self.about),
            Route("/api/scans", self.upload, methods=["POST"]),
            Route("/api/scans/{id}", self.scan),
            Route("/api/scans/{id}", self.drop, methods=["DELETE"]),
            Route("/api/scans/{id}/volume", self.volume),
            Route("/api/scans/{id}/map", self.map),
            Route("/api/scans/{id}/findings", self.score_finding, methods=["POST"]),
            Route("/api/scans/{id}/similar", self.similar),
            Route("/api/search", self.search, methods=["POST"]),
            Route("/api/thumbnails/{row:int}", self.thumbnail),
            Mount("/", StaticFiles(directory=STATIC, html=True)),
        ]
        handlers = {
            kind: functools.partial(_error_response, status=status)
            for kind, status in ERROR_STATUS.items()
        }
        # Around Starlette instead of in its middleware, whose own error pages would lack HEADERS.
        return local_only(Starlette(routes=routes, exception_handlers=handlers))

    async def about(self, request: Request) -> Response:
        model, classifier = self.analyses.model, self.analyses.classifier
        calibration, reference = classifier.calibration, classifier.reference
        return JSONResponse(
            {
                "is_compiling": self.analyses.is_compiling,
                "method": model.attribution_method,
                "notes": model.notes,
                "label_informed": model.label_informed or classifier.relu,
                "calibrated_on": calibration.fitted_on if calibration else None,
                "num_reference": len(reference.latents) if classifier.usual is not None else 0,
                "num_cases": len(self.searcher.store) if self.searcher else 0,
                "can_ask": not classifier.relu,
                "keep_uploads": self.analyses.keep_uploads,
                "max_upload_bytes": self.analyses.max_upload_bytes,
            }
        )

    async def upload(self, request: Request) -> Response:
        name = _display_name(request.query_params.get("name", ""))
        suffix, max_bytes = uploads.suffix_of(name), self.analyses.max_upload_bytes
        # Refused before the body is sent; `receive` counts what a client did not declare.
        uploads.check_size(int(request.headers.get("content-length") or 0), max_bytes)
        path = await uploads.receive(
            request.stream(), self.folder, suffix=suffix, max_bytes=max_bytes
        )
        return JSONResponse({"id": self.analyses.start(path, name=name).id}, 201)

    async def scan(self, request: Request) -> Response:
        analysis = self.analyses.get(request.path_params["id"])
        content = {"id": analysis.id, "name": analysis.name, "state": analysis.state}
        if analysis.state == "waiting" and self.analyses.is_compiling:
            content["state"] = "compiling"
        if analysis.state == "failed":
            content["error"] = analysis.error
        if analysis.state == "done":
            view, names = analysis.view, list(analysis.findings)
            content |= {
                "shape": view.hu.shape,
                "spacing": view.spacing,
                "step": view.step,
                "patches": [along.tolist() for along in view.patches],
                "provenance": analysis.provenance,
                "findings": [self._finding_json(name, analysis) for name in names],
            }
        return JSONResponse(content)

    async def drop(self, request: Request) -> Response:
        self.analyses.drop(request.path_params["id"])
        return Response(status_code=204)

    async def volume(self, request: Request) -> Response:
        """int16 HU, little-endian, (f, h, w), slice by slice."""
        hu = self._get_done(request).view.hu
        return StreamingResponse(
            (plane.astype("<i2").tobytes() for plane in hu),
            headers={"Content-Length": str(hu.nbytes)},
            media_type="application/octet-stream",
        )

    async def map(self, request: Request) -> Response:
        name = request.query_params.get("finding", "")
        analysis = self._get_done(request)
        if name not in analysis.findings:
            raise InputError("finding: not scored for this scan")
        contributions = analysis.findings[name].contributions
        return JSONResponse(
            {
                "shape": contributions.shape,
                "values": [float(f"{value:.5g}") for value in contributions.ravel()],
                "sum": float(contributions.sum()),
                "padding": float((contributions * analysis.view.padding).sum()),
            }
        )

    async def score_finding(self, request: Request) -> Response:
        analysis, text = self._get_done(request), await _read_text(request, "finding")
        if self.analyses.classifier.relu:
            raise InputError("finding: a trained classifier scores only its own labels")
        name = await self.analyses.score_finding(analysis, text)
        return JSONResponse(self._finding_json(name, analysis))

    async def similar(self, request: Request) -> Response:
        return await self._hits(self._get_done(request).latent)

    async def search(self, request: Request) -> Response:
        text = await _read_text(request, "text")
        return await self._hits(await self.analyses.run(encode_query, self.analyses.model, text))

    async def thumbnail(self, request: Request) -> Response:
        row = request.path_params["row"]
        if self.searcher is None or not 0 <= row < len(self.searcher.store):
            raise InputError("thumbnail: no such case")
        return Response(self.searcher.store.load_thumbnail(row), media_type="image/jpeg")

    async def _hits(self, latent: np.ndarray) -> Response:
        if self.searcher is None:
            raise InputError("no case store; start the page with --store")
        hits = await asyncio.to_thread(self.searcher.search, latent, k=NUM_SIMILAR)
        return JSONResponse([dataclasses.asdict(hit) for hit in hits])

    def _finding_json(self, name: str, analysis: Analysis) -> dict[str, Any]:
        score, inside = analysis.findings[name]._asdict(), analysis.view.patches_inside
        contributions = score.pop("contributions")[inside]
        peak = np.unravel_index(int(contributions.argmax()), contributions.shape)
        return {
            "name": name,
            "is_question": name not in self.analyses.classifier.names,
            **score,
            "peak": [int(along.ravel()[i]) for along, i in zip(inside, peak, strict=True)],
        }

    def _get_done(self, request: Request) -> Analysis:
        analysis = self.analyses.get(request.path_params["id"])
        if analysis.state != "done":
            raise InputError("this scan is not ready")
        return analysis


def local_only(app: ASGIApp) -> ASGIApp:
    """Middleware: refuses other hosts and origins, and sets HEADERS on every response."""

    async def guarded(scope: Scope, receive: Receive, send: Send) -> None:
        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(HEADERS)
            await send(message)

        refusal = _refusal(Headers(scope=scope)) if scope["type"] == "http" else None
        await (refusal or app)(scope, receive, send_with_headers)

    return guarded


def _refusal(headers: Headers) -> Response | None:
    host, origin = headers.get("host", ""), headers.get("origin")
    # Another site can let its name resolve to 127.0.0.1 (DNS rebinding); it cannot fake Host.
    if host.rpartition(":")[0] not in LOCAL_HOSTS and host not in LOCAL_HOSTS:
        return JSONResponse({"error": "this page serves its own machine only"}, 403)
    if origin not in (None, f"http://{host}"):
        return JSONResponse({"error": "request from another page"}, 403)
    return None


async def _error_response(request: Request, error: Exception, *, status: int) -> Response:
    message = str(error)
    if status == 500:
        traceback.print_exception(error)  # uvicorn's log is off
        message = f"internal error: {type(error).__name__}: {error}"
    elif isinstance(error, OSError):
        message = f"cannot be stored ({error.strerror or error})"
    return JSONResponse({"error": message}, status)


async def _read_text(request: Request, field: str) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_TEXT_BYTES:
            raise uploads.TooLargeError(f"{field}: more than {MAX_TEXT_BYTES} bytes")
    try:
        text = json.loads(body)[field]
        text.encode()  # a JSON string may hold lone surrogates, which no tokenizer takes
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"{field}: expected JSON with this key and a text") from error
    if not text.strip():
        raise InputError(f"{field}: expected a text, got none")
    return text


def _display_name(name: str) -> str:
    """The printable end of a file's name."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[-100:]
