"""The page's server: uploads, answers, refusals, and the end of the program."""

import argparse
import asyncio
import errno
import gzip
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
import zipfile
from unittest import mock
from urllib.parse import quote

import nibabel as nib
import numpy as np
import pytest

from ctclip_jax.demo import uploads
from ctclip_jax.demo.__main__ import listen
from ctclip_jax.demo.analysis import MAX_QUEUED, MAX_SCANS, Analyses, QueueFullError
from ctclip_jax.inference import heatmaps
from ctclip_jax.inference import model as inference_model
from data_pipelines import geometry
from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan
from data_pipelines.formats.zipped import MAX_FILES
from data_pipelines.reports import LABELS
from data_pipelines.sources.phantoms.layout import write_samples
from tests.demo_server import MAX_BYTES, served
from tests.dicom_series import chest_slices
from tests.dicom_series import write as write_dicom
from tests.tiny_run import write_tiny_export


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    folder = write_samples(tmp_path_factory.mktemp("samples"), count=3, seed=0).parent
    return sorted(folder.glob("*.nii.gz"))


@pytest.fixture(scope="module")
def page(scans, tmp_path_factory):
    with served(tmp_path_factory.mktemp("page"), scans) as page:
        yield page


def ask(page, path, body=None, *, method=None, headers=()):
    """(status, content) of a request; content is JSON or bytes. Every answer is guarded."""
    request = urllib.request.Request(page.address + path, body, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, content, answer = response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        status, content, answer = error.code, error.read(), error.headers
    assert "default-src 'self'" in answer["content-security-policy"]
    assert answer["cross-origin-resource-policy"] == "same-origin"  # no <img> of another page
    return status, json.loads(content) if "json" in answer.get("content-type", "") else content


def upload(page, name, content):
    """(status, error) of a refused upload, or (state, analysis) once it is done or failed."""
    status, answer = ask(page, f"/api/scans?name={quote(name)}", content, method="POST")
    if status != 201:
        return status, answer["error"]
    while True:
        _, analysis = ask(page, f"/api/scans/{answer['id']}")
        if analysis["state"] in ("done", "failed"):
            return analysis["state"], analysis
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scan(page, scans):
    state, analysis = upload(page, scans[0].name, scans[0].read_bytes())
    assert state == "done", analysis
    return analysis


def test_findings_and_volume_of_an_upload(page, scans, scan):
    volume = page.model.prepare(scans[0]).volume
    assert scan["name"] == scans[0].name and scan["provenance"]["axes"] == "header"
    assert "file" not in scan["provenance"]
    assert [finding["name"] for finding in scan["findings"]] == list(LABELS)
    probabilities = [finding["probability"] for finding in scan["findings"]]
    np.testing.assert_allclose(probabilities, page.model.detect(volume[None])[0], atol=1e-6)
    _, content = ask(page, f"/api/scans/{scan['id']}/volume")
    hu = np.frombuffer(content, "<i2").reshape(scan["shape"])
    image = nib.load(scans[0])  # along Left, Posterior and Superior, in HU
    np.testing.assert_array_equal(hu, np.asarray(image.dataobj).transpose(2, 0, 1))
    x, y, z = image.header.get_zooms()
    assert scan["spacing"] == pytest.approx([z, x, y])


def test_a_voxel_of_the_page_lies_in_its_patch(page, scans, scan):
    """As the map in scan space says, which the page must agree with."""
    prepared, image = page.model.prepare(scans[0]), page.model.config.image
    numbers = np.arange(1, np.prod(image.grid) + 1, dtype=np.float32).reshape(image.grid)
    values, _ = heatmaps.to_scan_space(numbers, prepared, page.model.geometry)
    voxels = geometry.to_lps(values, prepared.oriented.orientation).transpose(2, 0, 1)
    f, h, w = map(np.array, scan["patches"])
    is_inside = (f[:, None, None] >= 0) & (h[:, None] >= 0) & (w >= 0)
    expected = np.where(is_inside, numbers[np.ix_(f, h, w)], 0)
    np.testing.assert_array_equal(voxels, expected)
    assert not list(page.folder.iterdir()), "the upload was not deleted"


def test_nothing_is_compiled_after_the_warm_up(page, scans):
    """Neither for a scan nor for a question."""
    page.analyses.warm_up().result()
    compiled = inference_model._patch_features, inference_model._attribute
    before = [function._cache_size() for function in compiled]
    _, analysis = upload(page, scans[2].name, scans[2].read_bytes())
    ask(page, f"/api/scans/{analysis['id']}/findings", b'{"finding": "stent"}')
    assert [function._cache_size() for function in compiled] == before


def test_a_map_holds_the_contributions(page, scans, scan):
    features = page.model.patch_features(page.model.prepare(scans[0]).volume[None])
    _, contributions = page.model.attribute(features, page.analyses.classifier.kernel)
    name = scan["findings"][3]["name"]
    _, answer = ask(page, f"/api/scans/{scan['id']}/map?finding={quote(name)}")
    assert answer["shape"] == list(contributions.shape[2:])
    np.testing.assert_allclose(answer["values"], contributions[0, 3].ravel(), rtol=1e-4, atol=1e-6)
    f, h, w = ({*along} - {-1} for along in scan["patches"])
    peak = scan["findings"][3]["peak"]
    assert all(patch in along for patch, along in zip(peak, (f, h, w), strict=True))
    assert ask(page, f"/api/scans/{scan['id']}/map?finding=x")[0] == 400


def test_a_finding_in_the_users_words(page, scan):
    path = f"/api/scans/{scan['id']}/findings"
    _, finding = ask(page, path, json.dumps({"finding": " pleural  {fluid}. "}).encode())
    assert finding["name"] == "pleural {fluid}" and 0 < finding["probability"] < 1
    status, answer = ask(page, f"/api/scans/{scan['id']}/map?finding={quote(finding['name'])}")
    logit = np.log(finding["probability"] / (1 - finding["probability"]))
    assert status == 200 and answer["sum"] == pytest.approx(logit, abs=1e-3)


@pytest.mark.parametrize(
    "body",
    [
        b"[]",
        b'{"finding": }',
        b'{"finding": ' + b"[" * 3900 + b"}",
        b'{"finding": 3}',
        b'{"finding": " "}',
        b'{"finding": "."}',
        b'{"finding": "\\ud800"}',
    ],
)
def test_a_finding_that_is_no_text_is_refused(page, scan, body):
    assert ask(page, f"/api/scans/{scan['id']}/findings", body, method="POST")[0] == 400


def test_a_long_text_is_refused(page, scan):
    assert ask(page, f"/api/scans/{scan['id']}/findings", b"x" * 5000)[0] == 413


def test_similar_cases_and_text_search(page, scans, scan):
    _, (first, *_) = ask(page, f"/api/scans/{scan['id']}/similar")
    assert first["similarity"] == pytest.approx(1, abs=1e-5)
    assert first["entry"]["name"] == scans[0].name
    assert first["entry"]["labels"] == {"Emphysema": 1} and "Report" in first["entry"]["findings"]
    status, picture = ask(page, f"/api/thumbnails/{first['row']}")
    assert status == 200 and picture[:2] == b"\xff\xd8"
    assert ask(page, "/api/thumbnails/99")[0] == 400
    _, hits = ask(page, "/api/search", b'{"text": "Emphysema."}')
    assert len(hits) == len(scans)


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def bomb():
    """16 MB of voxels in a file of 16 kB."""
    return gzip.compress(nib.Nifti1Image(np.zeros((200,) * 3, np.int16), np.eye(4)).to_bytes())


def test_names_in_a_zip_lead_nowhere(page, tmp_path):
    series = write_dicom(tmp_path / "dicom", chest_slices("LPS", spacing=(12.0, 12.0, 20.0)))
    files = {f"../../{i}/../x": p.read_bytes() for i, p in enumerate(sorted(series.iterdir()))}
    files |= {"DICOMDIR": next(iter(files.values()))[:200], "a/._x": b"none"}  # as on a CD
    state, analysis = upload(page, "series.zip", zipped(files))
    assert state == "done", analysis
    assert not list(page.folder.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "error"),
    [
        ("../x.nii.gz", b"none", "x.nii.gz: not a scan but text"),
        ("x.zip", b"none", "x.zip: not a scan but text"),
        ("x.zip", b"PK\x03\x04", "damaged or no zip file"),
        ("x.zip", zipped({"a": b"none"}), "x.zip"),
        ("x.zip", zipped({"a.dcm": b"none"}), "DICOM"),
        ("x.npz", zipped({"a.npy": b"none"}), "x.npz"),
        ("x.dcm", b"none", "x.dcm"),
        ("x.nii.gz", bomb(), "x.nii.gz: 200x200x200 voxels are 15 MiB, expected at most 4"),
        ("x.nrrd", b"NRRD0004\ndata file: ../secret\n\n", "x.nrrd: voxels in '../secret'"),
        ("x.zip", zipped({"a": b"0" * (MAX_BYTES + 1)}), "more than 4 MiB"),
        ("x.zip", zipped({str(i): b"" for i in range(MAX_FILES + 1)}), "at most 20000"),
    ],
    ids=range(11),
)
def test_an_unreadable_scan_is_one_line_without_our_paths(page, name, content, error):
    state, analysis = upload(page, name, content)
    assert state == "failed" and error in analysis["error"], analysis
    assert str(page.folder) not in analysis["error"] and "\n" not in analysis["error"]
    assert "internal error" not in analysis["error"]
    assert not list(page.folder.iterdir())


def test_refused_uploads(page):
    assert upload(page, "x.exe", b"none")[0] == 400
    assert upload(page, "", b"none")[0] == 400
    connection = http.client.HTTPConnection(page.address.removeprefix("http://"))
    connection.putrequest("POST", "/api/scans?name=x.nii")
    connection.putheader("Content-Length", str(MAX_BYTES + 1))
    connection.endheaders()
    answer = connection.getresponse()  # before a byte of it was sent
    assert answer.status == 413 and b"more than 4 MiB" in answer.read()
    chunks = (b"0" * (1 << 16) for _ in range(1 + MAX_BYTES // (1 << 16)))
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError)):  # cut off on the way
        urllib.request.urlopen(f"{page.address}/api/scans?name=x.nii", chunks, timeout=30)
    assert upload(page, "x.nii", b"")[0] == 400
    assert not list(page.folder.iterdir())


def test_a_full_disk_is_one_line(page, monkeypatch, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(uploads, "receive", mock.Mock(side_effect=full))
    assert upload(page, "x.nii", b"none") == (507, "cannot be stored (No space left on device)")
    (tmp_path / "x.zip").write_bytes(zipped({"a": b"none"}))
    monkeypatch.setattr(zipfile.ZipFile, "open", mock.Mock(side_effect=full))
    with pytest.raises(InputError, match="unpacked .No space left on device"):
        read_scan(tmp_path / "x.zip")


def test_other_hosts_and_pages_are_refused(page):
    assert ask(page, "/")[0] == 200
    for path in ("/", "/page.js", "/api/about", "/nowhere"):
        assert ask(page, path, headers={"Host": "evil.example:80"})[0] == 403
        assert ask(page, path, headers={"Origin": "http://evil.example"})[0] == 403
    status, about = ask(page, "/api/about", headers={"Origin": page.address})
    assert status == 200 and not about["keep_uploads"]
    with listen(0) as listener:
        assert listener.getsockname()[0] == "127.0.0.1"


def test_error_pages_have_the_headers_too(page, monkeypatch, capsys):
    assert ask(page, "/nowhere")[0] == 404
    assert ask(page, "/../__main__.py")[0] == 404
    assert ask(page, "/api/about", method="DELETE")[0] == 405
    monkeypatch.setattr(page.analyses, "get", mock.Mock(side_effect=TypeError("a bug")))
    status, answer = ask(page, "/api/scans/x")
    assert status == 500 and answer["error"] == "internal error: TypeError: a bug"
    assert "TypeError: a bug" in capsys.readouterr().err


def test_the_oldest_scans_leave_memory(page, scans, scan):
    content = scans[1].read_bytes()
    ids = [upload(page, "x.nii.gz", content)[1]["id"] for _ in range(MAX_SCANS)]
    assert ask(page, f"/api/scans/{scan['id']}")[0] == 400
    assert ask(page, f"/api/scans/{ids[0]}")[0] == 200
    assert ask(page, f"/api/scans/{ids[0]}", method="DELETE")[0] == 204
    assert ask(page, f"/api/scans/{ids[0]}")[0] == 400


def test_dropped_scans_are_skipped_but_fill_the_queue(page, scans):
    content, queued = scans[1].read_bytes(), []
    with page.busy_worker():
        for _ in range(MAX_QUEUED):
            status, answer = ask(page, "/api/scans?name=x.nii.gz", content)
            assert status == 201
            queued.append(page.analyses.get(answer["id"]))
            assert ask(page, f"/api/scans/{answer['id']}", method="DELETE")[0] == 204
        status, answer = ask(page, "/api/scans?name=x.nii.gz", content)
        assert status == 503 and "too many scans" in answer["error"]
        assert len(list(page.folder.iterdir())) == MAX_QUEUED
    while (result := upload(page, "x.nii.gz", content))[0] == 503:
        time.sleep(0.02)
    assert result[0] == "done"
    assert all(analysis.state == "failed" and analysis.view is None for analysis in queued)
    assert not list(page.folder.iterdir())


def test_a_cancelled_request_leaves_the_queue(page):
    """Else Ctrl-C would wait for all scans before it."""
    calls = []

    async def cancel():
        task = asyncio.create_task(page.analyses.run(calls.append, 1))
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    with page.busy_worker():
        asyncio.run(cancel())
    asyncio.run(page.analyses.run(calls.append, 2))
    assert calls == [2]


def test_a_half_sent_upload_is_deleted(tmp_path):
    async def broken():
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(uploads.receive(broken(), tmp_path, suffix=".nii", max_bytes=100))
    assert not list(tmp_path.iterdir())


def test_a_folder_of_files_must_be_zipped():
    with pytest.raises(InputError, match="zip a DICOM series"):
        uploads.suffix_of("x.txt")


def test_an_upload_that_arrives_after_the_end_is_refused_and_deleted(tmp_path):
    analyses = Analyses(None, None, max_upload_bytes=9, keep_uploads=False)
    analyses.close()
    path = tmp_path / "scan.nii"
    path.write_bytes(b"scan")
    with pytest.raises(QueueFullError, match="closing"):
        analyses.start(path, name="scan.nii")
    assert not path.exists()


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_tiny_export(tmp_path_factory.mktemp("run"))


@pytest.mark.drill
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_end_of_the_program_is_quick_and_leaves_no_upload(export, scans, tmp_path, number):
    """With scans in work and queued, a question behind them, and an upload on its way."""
    inbox = tmp_path / "uploads"
    command = [sys.executable, "-m", "ctclip_jax.demo", f"--checkpoint={export}", "--port=0"]
    process = subprocess.Popen(
        [*command, f"--folder={inbox}"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    try:
        page = argparse.Namespace(address=process.stdout.readline().split()[0])
        assert process.stdout.readline().startswith("compiling the model")
        content = scans[0].read_bytes()
        state, analysis = upload(page, "x.nii.gz", content)
        assert state == "done", analysis
        partial = http.client.HTTPConnection(page.address.removeprefix("http://"))
        partial.putrequest("POST", "/api/scans?name=x.nii")
        partial.putheader("Content-Length", "1000")
        partial.endheaders(b"half")
        for _ in range(MAX_QUEUED - 1):
            ask(page, "/api/scans?name=x.nii.gz", content)
        path, body = f"/api/scans/{analysis['id']}/findings", b'{"finding": "stent"}'
        question = http.client.HTTPConnection(page.address.removeprefix("http://"))
        question.request("POST", path, body)
        process.send_signal(number)
        time.sleep(0.5)  # and the impatient do it again
        process.send_signal(number)
        stdout, stderr = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, stderr) == (0, "")
    assert stdout.startswith("ready after "), "before its first scan"
    assert not list(inbox.iterdir())


@pytest.mark.parametrize(
    ("arguments", "error"),
    [
        (["--checkpoint=nowhere"], "nowhere"),
        (["--keep_uploads", "--model=x"], "--keep_uploads"),
        (["x.nii"], "positional arguments; got x.nii"),
        (["--port=65536"], "65536"),
    ],
    ids=range(4),
)
def test_wrong_flags_are_one_line(arguments, error):
    command = [sys.executable, "-m", "ctclip_jax.demo", "--port=0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and error in done.stderr and done.stderr.count("\n") == 1
