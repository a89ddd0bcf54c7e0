"""The page's server: its files, and what they ask for. It answers to this machine alone."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import numpy as np
from starlette.applications import Starlette
from starlette.requests import ClientDisconnect, Request
from starlette.responses import FileResponse, JSONResponse, Response
from starlette.routing import Route

from ctclip_jax.case_store import Hit, Searcher, encode_query
from ctclip_jax.demo import uploads
from ctclip_jax.demo.analysis import Analyses, Analysis, Busy, hu
from data_pipelines.errors import InputError

STATIC = Path(__file__).parent / "static"
PAGES = {"/": "index.html"} | {f"/{n}": n for n in ("page.js", "viewer.js", "style.css")}
LOCAL = ("127.0.0.1", "localhost", "[::1]")
SIMILAR = 6
LONGEST_QUERY = 4000  # bytes of a request in words
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; img-src 'self' data:; frame-ancestors 'none'; "
    "base-uri 'none'; form-action 'none'",
    "Cross-Origin-Resource-Policy": "same-origin",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
Endpoint = Callable[[Request], Awaitable[Response]]


class Page:
    """The routes of one model, and of the store of cases that it searches, if any."""

    def __init__(
        self, analyses: Analyses, folder: Path, *, most_bytes: int, searcher: Searcher | None = None
    ):
        self.analyses, self.folder = analyses, folder
        self.most_bytes, self.searcher = most_bytes, searcher

    def app(self) -> Starlette:
        """The application, to be served on 127.0.0.1."""
        routes = [
            ("GET", "/api/about", self.about),
            ("POST", "/api/scans", self.upload),
            ("GET", "/api/scans/{id}", self.scan),
            ("DELETE", "/api/scans/{id}", self.drop),
            ("GET", "/api/scans/{id}/volume", self.volume),
            ("GET", "/api/scans/{id}/map", self.map),
            ("POST", "/api/scans/{id}/findings", self.ask),
            ("GET", "/api/scans/{id}/similar", self.similar),
            ("POST", "/api/search", self.search),
            ("GET", "/api/thumbnails/{row:int}", self.thumbnail),
        ]
        pages = [Route(path, guarded(_file(name))) for path, name in PAGES.items()]
        api = [Route(path, guarded(each), methods=[method]) for method, path, each in routes]
        return Starlette(routes=[*pages, *api])

    async def about(self, request: Request) -> Response:
        model, classifier = self.analyses.model, self.analyses.classifier
        calibration = classifier.calibration
        return JSONResponse(
            {
                "labels": list(classifier.names),
                "method": model.attribution_method,
                "label_informed": model.label_informed or classifier.relu,
                "calibrated_on": calibration.fitted_on if calibration else None,
                "cases": len(self.searcher.store) if self.searcher else 0,
                "can_ask": not classifier.relu,
                "keeps_uploads": self.analyses.keep_uploads,
                "most_bytes": self.most_bytes,
                "suffixes": uploads.SUFFIXES,
            }
        )

    async def upload(self, request: Request) -> Response:
        name = _shown(request.query_params.get("name", ""))
        suffix = uploads.suffix_of(name)
        if int(request.headers.get("content-length") or 0) > self.most_bytes:
            raise uploads.TooLarge(f"more than {self.most_bytes / 2**20:g} MiB")
        path = await uploads.receive(
            request.stream(), self.folder, suffix=suffix, most_bytes=self.most_bytes
        )
        return JSONResponse({"id": self.analyses.start(path, name=name).id}, 201)

    async def scan(self, request: Request) -> Response:
        return JSONResponse(_described(self._found(request), self.analyses))

    async def drop(self, request: Request) -> Response:
        self.analyses.drop(request.path_params["id"])
        return Response(status_code=204)

    async def volume(self, request: Request) -> Response:
        analysis = self._done(request)
        content = await asyncio.to_thread(hu, analysis.volume)
        return Response(content, media_type="application/octet-stream")

    async def map(self, request: Request) -> Response:
        name = request.query_params.get("finding", "")
        analysis = self._done(request)
        if name not in analysis.findings:
            raise InputError("no such finding of this scan")
        contributions = analysis.findings[name][2]
        return JSONResponse(
            {
                "shape": contributions.shape,
                "values": [float(f"{value:.5g}") for value in contributions.ravel()],
                "sum": float(contributions.sum()),
            }
        )

    async def ask(self, request: Request) -> Response:
        analysis, text = self._done(request), await _words(request, "finding")
        if self.analyses.classifier.relu:
            raise InputError("a trained classifier answers no questions")
        name = await asyncio.to_thread(self.analyses.ask, analysis, text)
        return JSONResponse(_finding(name, analysis))

    async def similar(self, request: Request) -> Response:
        return await self._hits(self._done(request).latent)

    async def search(self, request: Request) -> Response:
        text = await _words(request, "text")
        query = await asyncio.to_thread(self.analyses.encode_text, encode_query, text)
        return await self._hits(query)

    async def thumbnail(self, request: Request) -> Response:
        row = request.path_params["row"]
        if self.searcher is None or not 0 <= row < len(self.searcher.store):
            raise InputError("no such case")
        return Response(self.searcher.store.load_thumbnail(row), media_type="image/jpeg")

    async def _hits(self, latent: np.ndarray) -> Response:
        if self.searcher is None:
            raise InputError("no store of cases: start the page with --store")
        (hits,) = await asyncio.to_thread(self.searcher.search, latent, k=SIMILAR)
        return JSONResponse([_hit(hit) for hit in hits])

    def _found(self, request: Request) -> Analysis:
        return self.analyses.find(request.path_params["id"])

    def _done(self, request: Request) -> Analysis:
        analysis = self._found(request)
        if analysis.state != "done":
            raise InputError("this scan is not ready")
        return analysis


def guarded(endpoint: Endpoint) -> Endpoint:
    """Answers to this machine's own page alone; bad input is a line, all answers have HEADERS."""

    async def answer(request: Request) -> Response:
        host = request.headers.get("host", "")
        origin = request.headers.get("origin")
        if host.rpartition(":")[0] not in LOCAL and host not in LOCAL:
            return JSONResponse({"error": "this page is of its own machine alone"}, 403)
        if origin not in (None, f"http://{host}"):
            return JSONResponse({"error": "asked by another page"}, 403)
        try:
            return await endpoint(request)
        except uploads.TooLarge as error:
            return JSONResponse({"error": str(error)}, 413)
        except Busy as error:
            return JSONResponse({"error": str(error)}, 503)
        except InputError as error:
            return JSONResponse({"error": str(error)}, 400)
        except OSError as error:
            return JSONResponse({"error": f"cannot be stored ({error.strerror or error})"}, 507)
        except ClientDisconnect:
            return Response(status_code=400)

    async def with_headers(request: Request) -> Response:
        response = await answer(request)
        response.headers.update(HEADERS)
        return response

    return with_headers


def _file(name: str) -> Endpoint:
    async def send(request: Request) -> Response:
        return FileResponse(STATIC / name)

    return send


async def _words(request: Request, name: str) -> str:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > LONGEST_QUERY:
            raise uploads.TooLarge(f"more than {LONGEST_QUERY} bytes of words")
    try:
        words = json.loads(body)[name]
        words.encode()  # not every string of JSON is text
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError) as error:
        raise InputError(f"wanted JSON with {name}") from error
    if not words.strip():
        raise InputError(f"wanted words in {name}")
    return words


def _shown(name: str) -> str:
    """The name of a file, as it may be shown."""
    last = name.replace("\\", "/").rpartition("/")[2]
    return "".join(letter for letter in last if letter.isprintable())[-100:]


def _described(analysis: Analysis, analyses: Analyses) -> dict[str, Any]:
    told = {"id": analysis.id, "name": analysis.name, "state": analysis.state}
    if analysis.state == "failed":
        told["error"] = analysis.error
    if analysis.state == "done":
        geometry = analyses.model.geometry
        told |= {
            "shape": geometry.shape,
            "spacing": geometry.spacing,
            "window": geometry.window,
            "provenance": analysis.provenance,
            "findings": [_finding(name, analysis) for name in list(analysis.findings)],
        }
    return told


def _finding(name: str, analysis: Analysis) -> dict[str, Any]:
    probability, worth, contributions = analysis.findings[name]
    peak = np.unravel_index(int(contributions.argmax()), contributions.shape)
    calibrated = None if worth is None or np.isnan(worth) else worth
    return {
        "name": name,
        "probability": probability,
        "calibrated": calibrated,
        "peak": [int(place) for place in peak],
    }


def _hit(hit: Hit) -> dict[str, Any]:
    entry = hit.entry
    return {
        "row": hit.row,
        "similarity": hit.similarity,
        "name": entry.name,
        "findings": entry.findings,
        "impressions": entry.impressions,
        "present": [name for name, value in entry.labels.items() if value],
        "strata": dict(entry.strata),
    }
