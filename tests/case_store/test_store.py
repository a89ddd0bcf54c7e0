"""Cases in a store: found exactly, added without loss, never torn."""

import dataclasses
import json
import os
import resource
import shutil
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import ctclip_jax
from ctclip_jax.case_store import (
    Entry,
    Searcher,
    Store,
    Where,
    adding,
    approximate,
    build_approximate,
)
from ctclip_jax.evaluation.latents import fingerprint
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.search import parse_where, text_latent
from data_pipelines.errors import InputError
from data_pipelines.shards import locked
from data_pipelines.sources.phantoms.samples import write_samples
from tests.studies import unit
from tests.tiny_run import tiny_config, write_tiny_shards

DIM = 16


def drawn(count, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, DIM))).astype(np.float32)


def entries(names, **told):
    return [Entry(name, findings=f"Findings of {name}: é.", **told) for name in names]


def new_store(folder):
    return Store.create(folder, model_sha256="of a test", dim=DIM).folder


def fill(folder, names, latents, **told):
    with adding(folder) as addition:
        return addition.add(entries(names, **told), latents, [name.encode() for name in names])


@pytest.fixture
def folder(tmp_path):
    """Cases a0 to a29, women with emphysema; b0 to b19, men without; in two segments."""
    folder, latents = new_store(tmp_path / "store"), drawn(50)
    fill(folder, [f"a{i}" for i in range(30)], latents[:30], labels={"Emphysema": 1},
         strata={"sex": "F"})  # fmt: skip
    fill(folder, [f"b{i}" for i in range(20)], latents[30:], labels={"Emphysema": 0},
         strata={"sex": "M"})  # fmt: skip
    return folder


def test_a_search_is_exact(folder):
    store, queries = Store.open(folder), drawn(3, seed=1)
    cosines = queries @ store.latents.T
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :7]
    rows, similarities = Searcher(store).nearest(queries, k=7)
    np.testing.assert_array_equal(rows, expected)
    np.testing.assert_allclose(similarities, np.take_along_axis(cosines, expected, 1), atol=1e-6)
    (hits, *_) = Searcher(store).search(queries, k=7)
    assert [hit.entry.name for hit in hits] == [store.names[row] for row in expected[0]]
    assert store.thumbnail(hits[0].row).decode() == hits[0].entry.name
    assert hits[0].entry.findings == f"Findings of {hits[0].entry.name}: é."


def test_equals_come_in_the_order_of_rows(tmp_path):
    folder = new_store(tmp_path / "store")
    same = np.repeat(drawn(1), 5, axis=0)
    fill(folder, list("vwxyz"), same)
    rows, _ = Searcher(Store.open(folder)).nearest(same[:1], k=4)
    assert rows.tolist() == [[0, 1, 2, 3]]


def test_filters_are_exact(folder):
    store, query = Store.open(folder), drawn(1, seed=2)
    searching = Searcher(store)
    (men,) = searching.search(query, k=50, where=store.mask(parse_where([], ["sex=M"])))
    assert {hit.entry.name[0] for hit in men} == {"b"} and len(men) == 20
    (ill,) = searching.search(query, k=50, where=store.mask(parse_where(["Emphysema"], [])))
    assert {hit.entry.name[0] for hit in ill} == {"a"} and len(ill) == 30
    neither = store.mask(Where({"Emphysema": 1}, {"sex": "M"}))
    assert searching.search(query, where=neither) == [[]]
    with pytest.raises(InputError, match="no stratum 'age'; there are: sex"):
        store.mask(Where({}, {"age": "1"}))
    with pytest.raises(InputError, match="label 'Emphysemas' is none of"):
        parse_where(["no:Emphysemas"], [])
    for wrong in ("sex", "sex=", "=F"):
        with pytest.raises(InputError, match=f"--stratum: NAME=VALUE, not {wrong}"):
            parse_where([], [wrong])
    with pytest.raises(InputError, match="--label: no case is two things at once of 'Emphysema'"):
        parse_where(["Emphysema", "no:Emphysema"], [])
    with pytest.raises(InputError, match="--stratum: no case is two things at once of 'sex'"):
        parse_where([], ["sex=F", "sex=M", "sex=F"])


def test_a_case_is_added_once(folder):
    before = Store.open(folder)
    assert fill(folder, ["b19", "c0"], drawn(2, seed=3)) == 1
    after = Store.open(folder)
    assert len(before) == 50 and len(after) == 51 and after.names[-1] == "c0"
    np.testing.assert_array_equal(after.latents[:50], before.latents)
    assert fill(folder, ["b19", "c0"], drawn(2, seed=3)) == 0
    assert len(list(folder.glob("segment-*"))) == 3


def test_the_first_of_a_name_is_taken(folder):
    latents = drawn(3, seed=3)
    assert fill(folder, ["c0", "b0", "c0"], latents) == 1
    np.testing.assert_array_equal(Store.open(folder).latents[50:], latents[:1])


def test_what_no_text_can_hold_is_replaced(folder):
    with adding(folder) as addition:
        addition.add([Entry("c0", findings="M\udcfcller: é.")], drawn(1, seed=3), [b""])
    assert Store.open(folder).entry(50).findings == "M?ller: é."


def test_a_latent_that_is_none_is_one_line(folder):
    for wrong in (np.nan, 0):
        latents = drawn(2)
        latents[1] = wrong
        with pytest.raises(InputError, match="c1: a latent of length"):
            fill(folder, ["c0", "c1"], latents)
    assert len(Store.open(folder)) == 50


def test_two_do_not_add_at_once(folder):
    with adding(folder), pytest.raises(InputError, match="another process is writing"):
        fill(folder, ["c0"], drawn(1))


def test_two_do_not_begin_a_store_at_once(tmp_path):
    with locked(tmp_path / "store", exclusive=True), pytest.raises(InputError, match="is writing"):
        new_store(tmp_path / "store")
    new_store(tmp_path / "store")


def test_an_empty_store_finds_nothing(tmp_path):
    searching = Searcher(Store.open(new_store(tmp_path / "store")))
    assert searching.search(drawn(2)) == [[], []]
    with pytest.raises(InputError, match="queries of shape"):
        searching.nearest(drawn(2)[:, :3])


KILLED = """
import os, sys
import numpy as np
from ctclip_jax.case_store import segment
from data_pipelines import files
from tests.case_store.test_store import drawn, fill
from pathlib import Path

step, reached = int(sys.argv[2]), 0

def pause(name, function):
    def wrapper(*arguments, **options):
        global reached
        reached += 1
        if reached == step:
            print("there", flush=True)
            __import__("time").sleep(60)
        return function(*arguments, **options)
    return wrapper

segment.np.save = pause("save", np.save)
files.os.rename = pause("rename", os.rename)
files._to_disk = pause("to disk", files._to_disk)
print(fill(Path(sys.argv[1]), ["c0", "c1"], drawn(2, seed=3)), flush=True)
"""


@pytest.mark.parametrize("step", [1, 4, 7, 12])
def test_a_kill_leaves_what_was_there(folder, step):
    """At the first file, the last, on the way to the disk, and before the folder has its name."""
    expected = Store.open(folder).latents
    assert killed(folder, step=step)
    assert list(folder.glob(".writing-*")), "the kill came too early or too late to tell anything"
    store = Store.open(folder)
    np.testing.assert_array_equal(store.latents, expected)
    assert len(store.names) == 50 and store.entry(49).name == "b19"
    assert fill(folder, ["c0", "c1"], drawn(2, seed=3)) == 2
    assert len(Store.open(folder)) == 52 and not list(folder.glob(".writing-*"))


def test_a_kill_after_the_name_is_given_loses_nothing(folder):
    assert killed(folder, step=13)
    assert Store.open(folder).names[-2:] == ["c0", "c1"]
    assert fill(folder, ["c0", "c1"], drawn(2, seed=3)) == 0


def killed(folder, *, step: int) -> bool:
    """Kills a process at this step of an addition."""
    command = [sys.executable, "-c", KILLED, str(folder), str(step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        there = writer.stdout.readline() == "there\n"
        os.kill(writer.pid, signal.SIGKILL)
    return there


@pytest.mark.parametrize("file", ["latents.npy", "cases.jsonl", "pictures.bin", "labels.npy"])
def test_a_damaged_segment_is_one_line(folder, file):
    path = folder / "segment-00001" / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="segment-00001: damaged"):
        Store.open(folder)


def test_a_damaged_case_is_one_line(folder):
    path = folder / "segment-00001" / "cases.jsonl"
    path.write_bytes(b"\0" * path.stat().st_size)
    store = Store.open(folder)
    assert store.entry(29).name == "a29"
    for read in (
        lambda: store.entry(30),
        lambda: store.names,
        lambda: store.mask(Where({}, {"sex": "M"})),
    ):
        with pytest.raises(InputError, match="segment-00001: damaged"):
            read()


def test_a_store_has_more_segments_than_a_process_may_open_files(tmp_path, monkeypatch):
    folder = new_store(tmp_path / "store")
    with adding(folder) as addition:
        for index in range(80):
            addition.add(entries([f"c{index}"]), drawn(1, seed=index), [b"picture"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    opened = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (opened + 40, limits[1]))
        (hits,) = Searcher(Store.open(folder)).search(drawn(1, seed=79), k=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert hits[0].entry.name == "c79"


def test_segments_are_in_the_order_of_their_numbers(folder):
    (folder / "segment-00001").rename(folder / "segment-100000")
    (folder / "segment-00000").rename(folder / "segment-99999")
    (folder / "segment-00001.old").mkdir()
    fill(folder, ["c0"], drawn(1, seed=3))
    assert (folder / "segment-100001").exists()
    names = Store.open(folder).names
    assert (names[0], names[30], names[50]) == ("a0", "b0", "c0")


def test_what_is_no_store_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no store of cases"):
        Store.open(tmp_path)
    folder = new_store(tmp_path / "store")
    with pytest.raises(InputError, match="of another model"):
        Store.create(folder, model_sha256="another", dim=DIM)


def test_an_approximate_index_is_used_while_it_covers_the_store(folder):
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
    build_approximate(folder)
    searching, queries = Searcher(Store.open(folder)), drawn(3, seed=1)
    assert searching.approximate
    found = searching.search(queries, k=1)
    rows, _ = searching.nearest(queries, k=1, where=np.ones(50, bool))
    assert [hits[0].row for hits in found] == rows[:, 0].tolist()
    fill(folder, ["c0"], drawn(1, seed=3))
    assert not Searcher(Store.open(folder)).approximate
    with adding(folder), pytest.raises(InputError, match="another process is writing"):
        build_approximate(folder)
    build_approximate(folder)
    searching = Searcher(Store.open(folder))
    assert searching.approximate
    assert searching.search(drawn(1, seed=3), k=1)[0][0].entry.name == "c0"


def test_an_approximate_index_is_added_to_until_it_has_too_few_lists(tmp_path, monkeypatch):
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
    folder, trained = new_store(tmp_path / "store"), []
    train = approximate._trained
    monkeypatch.setattr(
        approximate, "_trained", lambda latents: trained.append(len(latents)) or train(latents)
    )
    for size in (100, 110, 400):
        fill(folder, [f"c{i}" for i in range(size)], drawn(size))
        build_approximate(folder)
        (hits,) = Searcher(Store.open(folder)).search(drawn(size)[-1:], k=1)
        assert hits[0].row == size - 1
    assert trained == [100, 400]


def test_an_approximate_index_that_is_not_of_the_store_is_not_used(folder, tmp_path):
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
    build_approximate(folder)
    other = new_store(tmp_path / "other")
    fill(other, [f"c{i}" for i in range(50)], drawn(50, seed=9))
    index = other / "approximate.faiss"
    index.write_bytes((folder / "approximate.faiss").read_bytes())
    assert not Searcher(Store.open(other)).approximate
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"approximate\.faiss: damaged"):
        Searcher(Store.open(other))
    build_approximate(other)
    assert Searcher(Store.open(other)).approximate


def test_without_faiss_it_is_one_line(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="pip install faiss-cpu"):
        build_approximate(folder)


@pytest.fixture(scope="module")
def export(tmp_path_factory):
    """A tiny export, and shards that it reads."""
    from ctclip_jax.checkpoints.exports import save_export

    shards = write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48), volumes=6)
    config = tiny_config(shards).model
    folder = tmp_path_factory.mktemp("export")
    save_export(
        folder,
        jax.jit(CTCLIP(config).init)(jax.random.key(0)),
        config={
            "model": dataclasses.asdict(config),
            "max_length": 24,
            "report": "impressions",
            "pool_sentences": True,
        },
        tokenizer=shards / "tokenizer.model",
    )
    return folder, shards


def run(program, *arguments):
    command = [sys.executable, "-m", f"ctclip_jax.{program}", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def test_the_programs(export, tmp_path):
    """Shards and scans go in, a bad scan costs itself, and each is found by itself."""
    model, shards = export
    samples = write_samples(tmp_path / "samples", count=2, seed=0)
    (samples.parent / "bad.nii").write_bytes(b"none")
    common = (f"--store={tmp_path / 'store'}", f"--model={model}")
    done = run("index", *common, f"--shards={shards}")
    assert done.returncode == 0 and "6 cases added: 6 in" in done.stdout, done.stderr
    done = run("index", *common, f"--scans={samples}", samples.parent / "bad.nii")
    assert done.returncode == 1 and "2 cases added: 8 in" in done.stdout, done.stderr
    assert "1 scans could not be used" in done.stderr and "Traceback" not in done.stderr
    found = tmp_path / "found.json"
    scan = samples.parent / "sample_2.nii.gz"
    done = run("search", *common, f"--volume={scan}", "--k=3", f"--json={found}")
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(found.read_text())
    assert first["name"] == "sample_2.nii.gz" and first["similarity"] == pytest.approx(1, abs=1e-5)
    assert len(others) == 2 and first["findings"] and "sample_2.nii.gz" in done.stdout

    loaded = ctclip_jax.load(model)
    store = Store.open(tmp_path / "store")
    assert store.model_sha256 == fingerprint(loaded)
    sentences = loaded.encode_text(["Emphysema.", "No nodule."]).mean(axis=0)
    query = text_latent(loaded, "Emphysema. No nodule.")
    np.testing.assert_allclose(query[0], sentences / np.linalg.norm(sentences), atol=1e-6)


def test_scans_of_one_name_are_cases_of_their_own(export, tmp_path):
    """Whatever else is given with them."""
    samples = write_samples(tmp_path / "samples", count=2, seed=0).parent
    both = [tmp_path / patient / "ct.nii.gz" for patient in ("p1", "p2")]
    for number, path in enumerate(both, start=1):
        path.parent.mkdir()
        shutil.copy(samples / f"sample_{number}.nii.gz", path)
    common = (f"--store={tmp_path / 'store'}", f"--model={export[0]}")
    assert "1 cases added: 1 in" in run("index", *common, both[0]).stdout
    done = run("index", *common, *both)
    assert "1 cases added: 2 in" in done.stdout and done.stdout.endswith("; 1 were there\n")
    assert Store.open(tmp_path / "store").names == list(map(str, both))
