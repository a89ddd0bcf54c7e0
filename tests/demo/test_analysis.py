"""The page's server: what goes up, what comes back, and what it refuses."""

import argparse
import errno
import http.client
import io
import json
import os
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
import zipfile
from unittest import mock
from urllib.parse import quote

import numpy as np
import pytest

from ctclip_jax.demo import uploads
from ctclip_jax.demo.__main__ import listen
from ctclip_jax.demo.analysis import KEPT, WAITING
from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS
from data_pipelines.resample import STEPS_PER_HU
from data_pipelines.sources.phantoms import write_samples
from tests.demo_server import MOST_BYTES, served
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
    """(status, content) of a request; content is JSON or bytes."""
    request = urllib.request.Request(page.address + path, body, dict(headers), method=method)
    try:
        with urllib.request.urlopen(request, timeout=30) as response:
            status, content, kind = response.status, response.read(), response.headers
    except urllib.error.HTTPError as error:
        status, content, kind = error.code, error.read(), error.headers
    assert "default-src 'self'" in kind["content-security-policy"]
    assert kind["cross-origin-resource-policy"] == "same-origin"  # no picture in another's page
    return status, json.loads(content) if "json" in kind.get("content-type", "") else content


def upload(page, name, content):
    """What became of an upload."""
    status, told = ask(page, f"/api/scans?name={quote(name)}", content, method="POST")
    if status != 201:
        return status, told["error"]
    while True:
        _, found = ask(page, f"/api/scans/{told['id']}")
        if found["state"] in ("done", "failed"):
            return found["state"], found
        time.sleep(0.02)


@pytest.fixture(scope="module")
def scan(page, scans):
    state, found = upload(page, scans[0].name, scans[0].read_bytes())
    assert state == "done", found
    return found


def test_a_scan_goes_up_and_its_findings_come_back(page, scans, scan):
    volume = page.model.prepare(scans[0]).volume
    expected = page.model.detect(volume[None])[0]
    assert scan["name"] == scans[0].name and scan["provenance"]["axes"] == "header"
    assert "file" not in scan["provenance"]
    assert [each["name"] for each in scan["findings"]] == list(LABELS)
    found = [each["probability"] for each in scan["findings"]]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    _, content = ask(page, f"/api/scans/{scan['id']}/volume")
    hu = np.frombuffer(content, "<i2").reshape(scan["shape"])
    np.testing.assert_array_equal(hu, volume // STEPS_PER_HU)
    assert not list(page.folder.iterdir()), "an upload was left"


def test_a_map_is_the_contributions(page, scans, scan):
    evidence = page.model.evidence(page.model.prepare(scans[0]).volume[None])
    _, contributions = page.model.explain(evidence, page.analyses.classifier.kernel)
    name = scan["findings"][3]["name"]
    _, found = ask(page, f"/api/scans/{scan['id']}/map?finding={quote(name)}")
    assert found["shape"] == list(contributions.shape[2:])
    np.testing.assert_allclose(found["values"], contributions[0, 3].ravel(), rtol=1e-4, atol=1e-6)
    assert ask(page, f"/api/scans/{scan['id']}/map?finding=x")[0] == 400


def test_a_finding_in_ones_own_words(page, scan):
    path = f"/api/scans/{scan['id']}/findings"
    _, found = ask(page, path, json.dumps({"finding": " pleural  {fluid}. "}).encode())
    assert found["name"] == "pleural {fluid}" and 0 < found["probability"] < 1
    status, mapped = ask(page, f"/api/scans/{scan['id']}/map?finding={quote(found['name'])}")
    logit = np.log(found["probability"] / (1 - found["probability"]))
    assert status == 200 and mapped["sum"] == pytest.approx(logit, abs=1e-3)
    for wrong in (b"", b"[" * 3900, b"3", b'" "', b'"."', b'"\\ud800"'):
        assert ask(page, path, b'{"finding": ' + wrong + b"}", method="POST")[0] == 400
    assert ask(page, path, b"[]", method="POST")[0] == 400
    assert ask(page, path, b"x" * 5000)[0] == 413


def test_similar_cases_and_words(page, scans, scan):
    _, similar = ask(page, f"/api/scans/{scan['id']}/similar")
    assert similar[0]["name"] == scans[0].name
    assert similar[0]["similarity"] == pytest.approx(1, abs=1e-5)
    assert similar[0]["present"] == ["Emphysema"] and "Report" in similar[0]["findings"]
    status, picture = ask(page, f"/api/thumbnails/{similar[0]['row']}")
    assert status == 200 and picture[:2] == b"\xff\xd8"
    assert ask(page, "/api/thumbnails/99")[0] == 400
    _, found = ask(page, "/api/search", b'{"text": "Emphysema."}')
    assert len(found) == len(scans)


def zipped(files):
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


def test_a_zip_of_a_series_whose_names_lead_nowhere(page, tmp_path):
    series = write_dicom(tmp_path / "dicom", chest_slices("LPS", spacing=(12.0, 12.0, 20.0)))
    files = {f"../../{i}/../x": p.read_bytes() for i, p in enumerate(sorted(series.iterdir()))}
    files |= {"DICOMDIR": next(iter(files.values()))[:200], "a/._x": b"none"}  # as on a CD
    state, found = upload(page, "series.zip", zipped(files))
    assert state == "done", found
    assert not list(page.folder.iterdir())


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("../x.nii.gz", b"none", "x.nii.gz: damaged or no NIfTI file"),
        ("x.zip", b"none", "damaged or no zip file"),
        ("x.zip", zipped({"a": b"none"}), "x.zip"),
        ("x.zip", zipped({"a.dcm": b"none"}), "unreadable DICOM"),
        ("x.npz", zipped({"a.npy": b"none"}), "x.npz"),
        ("x.dcm", b"none", "x.dcm"),
        ("x.zip", zipped({"a": b"0" * (MOST_BYTES + 1)}), "a zip of more than 4 MiB"),
        ("x.zip", zipped({str(i): b"" for i in range(uploads.MOST_FILES + 1)}), "at most 5000"),
    ],
)
def test_a_bad_scan_is_told_in_one_line_without_our_paths(page, name, content, told):
    state, found = upload(page, name, content)
    assert state == "failed" and told in found["error"], found
    assert str(page.folder) not in found["error"] and "\n" not in found["error"]
    assert "fault of this program" not in found["error"]
    assert not list(page.folder.iterdir())


def test_what_is_not_taken(page):
    assert upload(page, "x.exe", b"none")[0] == 400
    assert upload(page, "", b"none")[0] == 400
    connection = http.client.HTTPConnection(page.address.removeprefix("http://"))
    connection.putrequest("POST", "/api/scans?name=x.nii")
    connection.putheader("Content-Length", str(MOST_BYTES + 1))
    connection.endheaders()
    answer = connection.getresponse()  # before a byte of it was sent
    assert answer.status == 413 and b"more than 4 MiB" in answer.read()
    chunks = (b"0" * (1 << 16) for _ in range(1 + MOST_BYTES // (1 << 16)))
    with pytest.raises((urllib.error.HTTPError, urllib.error.URLError)):  # cut off on the way
        urllib.request.urlopen(f"{page.address}/api/scans?name=x.nii", chunks, timeout=30)
    assert upload(page, "x.nii", b"")[0] == 400
    assert not list(page.folder.iterdir())


def test_a_full_disk_is_one_line(page, monkeypatch, tmp_path):
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(uploads, "receive", mock.Mock(side_effect=full))
    assert upload(page, "x.nii", b"none") == (507, "cannot be stored (No space left on device)")
    (tmp_path / "x.zip").write_bytes(zipped({"a": b"none"}))
    monkeypatch.setattr(uploads.zipfile.ZipFile, "open", mock.Mock(side_effect=full))
    with pytest.raises(InputError, match="cannot be unpacked .No space left on device"):
        uploads.unpack(tmp_path / "x.zip", most_bytes=100)


def test_it_answers_to_its_own_page_alone(page):
    assert ask(page, "/")[0] == 200
    assert ask(page, "/", headers={"Host": "evil.example:80"})[0] == 403
    assert ask(page, "/api/about", headers={"Origin": "http://evil.example"})[0] == 403
    status, about = ask(page, "/api/about", headers={"Origin": page.address})
    assert status == 200 and not about["keeps_uploads"]
    with listen(0) as listening:
        assert listening.getsockname()[0] == "127.0.0.1"


def test_old_scans_are_forgotten(page, scans, scan):
    content = scans[1].read_bytes()
    ids = [upload(page, "x.nii.gz", content)[1]["id"] for _ in range(KEPT)]
    assert ask(page, f"/api/scans/{scan['id']}")[0] == 400
    assert ask(page, f"/api/scans/{ids[0]}")[0] == 200
    assert ask(page, f"/api/scans/{ids[0]}", method="DELETE")[0] == 204
    assert ask(page, f"/api/scans/{ids[0]}")[0] == 400


def test_what_is_dropped_is_not_read_and_what_waits_is_counted(page, scans):
    held, go = scans[1].read_bytes(), threading.Event()
    busy = threading.Thread(target=page.analyses.encode_text, args=(lambda *_: go.wait(30), ""))
    busy.start()
    path, waiting = "/api/scans?name=x.nii.gz", []
    try:
        for _ in range(WAITING):
            status, told = ask(page, path, held)
            assert status == 201
            waiting.append(page.analyses.find(told["id"]))
            assert ask(page, f"/api/scans/{told['id']}", method="DELETE")[0] == 204
        status, told = ask(page, path, held)
        assert status == 503 and "too many scans are waiting" in told["error"]
        assert len(list(page.folder.iterdir())) == WAITING
    finally:
        go.set()
        busy.join()
    assert upload_when_free(page, scans[1]) == "done"
    assert all(each.state == "failed" and each.volume is None for each in waiting)
    assert not list(page.folder.iterdir())


def upload_when_free(page, scan):
    while (found := upload(page, scan.name, scan.read_bytes()))[0] == 503:
        time.sleep(0.02)
    return found[0]


def test_what_was_half_sent_is_not_left(tmp_path):
    import asyncio

    async def broken():
        yield b"half"
        raise ConnectionError

    with pytest.raises(ConnectionError):
        asyncio.run(uploads.receive(broken(), tmp_path, suffix=".nii", most_bytes=100))
    assert not list(tmp_path.iterdir())
    with pytest.raises(InputError, match="a zip holds a DICOM series"):
        uploads.suffix_of("x.txt")


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    return write_tiny_export(tmp_path_factory.mktemp("run"))


@pytest.mark.parametrize("stop", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_the_end_of_the_program_leaves_no_upload(export, scans, tmp_path, stop):
    command = [sys.executable, "-m", "ctclip_jax.demo", f"--checkpoint={export}", "--port=0"]
    before = signal.signal(stop, signal.SIG_DFL)  # what runs under nohup is deaf to SIGHUP
    process = subprocess.Popen(
        [*command, f"--folder={tmp_path / 'uploads'}"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    signal.signal(stop, before)
    try:
        page = argparse.Namespace(address=process.stdout.readline().split()[0])
        for _ in range(WAITING):  # the first of them compiles; the others wait for it
            ask(page, "/api/scans?name=x.nii.gz", scans[0].read_bytes())
        assert len(list((tmp_path / "uploads").iterdir())) >= WAITING - 1
        process.send_signal(stop)
        time.sleep(0.5)  # and the impatient do it again
        process.send_signal(stop)
        _, told = process.communicate(timeout=60)
    finally:
        process.kill()
    assert (process.returncode, told) == (0, "")
    assert not list((tmp_path / "uploads").iterdir())


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--checkpoint=nowhere"], "nowhere"),
        (["--keep_uploads", "--checkpoint=x"], "--keep_uploads: say where, with --folder"),
        (["x.nii"], "too many positional arguments; got x.nii"),
        (["--port=65536"], "65536"),
    ],
)
def test_what_cannot_be_opened_is_one_line(arguments, told):
    command = [sys.executable, "-m", "ctclip_jax.demo", "--port=0", *arguments]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2 and told in done.stderr and done.stderr.count("\n") == 1
