"""Case store: exact search and filters, atomic appends, damage reports, FAISS, the two programs."""

import dataclasses
import json
import os
import resource
import signal
import subprocess
import sys

import jax
import numpy as np
import pytest

import ctclip_jax
from ctclip_jax.case_store import (
    CaseFilter,
    Entry,
    Searcher,
    Store,
    build_approximate_index,
    encode_query,
    open_for_append,
)
from ctclip_jax.evaluation.encode import fingerprint
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.search import parse_filter
from data_pipelines.errors import InputError
from data_pipelines.sources.phantoms.layout import write_samples
from tests.eval_sets import unit
from tests.tiny_run import tiny_config, write_tiny_shards

DIM = 16


def random_latents(count, seed=0):
    return unit(np.random.default_rng(seed).normal(size=(count, DIM))).astype(np.float32)


def make_entries(names, **fields):
    return [Entry(name, findings=f"Findings of {name}: é.", **fields) for name in names]


def open_writer(folder, model_sha256="of a test"):
    return open_for_append(folder, model_sha256=model_sha256, dim=DIM)


def create_store(folder):
    with open_writer(folder):
        return folder


def append(folder, names, latents, **fields):
    with open_writer(folder) as writer:
        return writer.add(make_entries(names, **fields), latents, [name.encode() for name in names])


def reconstructions(folder):
    """Nine exams of three volumes that are almost the same, v0 to v2 of each, two exams a patient;
    and three volumes of unknown exams of one patient, which are almost the same too."""
    exact, rng = random_latents(10, seed=5), np.random.default_rng(6)
    latents = unit(exact[:, None] + 1e-3 * rng.normal(size=(10, 3, DIM))).astype(np.float32)
    with open_writer(folder) as writer:
        for number in range(10):
            exam = {"exam": f"p{number // 2}/e{number % 2}"} if number < 9 else {}
            strata = [{"kernel": kernel} for kernel in ("sharp", "soft", "soft")]
            entries = [
                Entry(f"e{number}v{v}", patient=f"p{number // 2}", strata=strata[v], **exam)
                for v in range(3)
            ]
            writer.add(entries, latents[number], [b""] * 3)
    return exact


@pytest.fixture
def folder(tmp_path):
    """Cases a0 to a29, women with emphysema; b0 to b19, men without; in two segments."""
    folder, latents = create_store(tmp_path / "store"), random_latents(50)
    append(folder, [f"a{i}" for i in range(30)], latents[:30], labels={"Emphysema": 1},
           strata={"sex": "F"})  # fmt: skip
    append(folder, [f"b{i}" for i in range(20)], latents[30:], labels={"Emphysema": 0},
           strata={"sex": "M"})  # fmt: skip
    return folder


def test_search_is_exact(folder):
    store, queries = Store(folder), random_latents(3, seed=1)
    cosines = queries @ store.load_latents().T
    expected = np.argsort(-cosines, axis=1, kind="stable")[:, :7]
    searcher = Searcher(store)
    for query, rows, similarities in zip(queries, expected, cosines, strict=True):
        hits = searcher.search(query, k=7)
        assert [hit.row for hit in hits] == rows.tolist()
        np.testing.assert_allclose([hit.similarity for hit in hits], similarities[rows], atol=1e-6)
        assert [hit.entry.name for hit in hits] == [store.names[row] for row in rows]
    assert store.load_thumbnail(hits[0].row).decode() == hits[0].entry.name
    assert hits[0].entry.findings == f"Findings of {hits[0].entry.name}: é."


def test_ties_are_in_row_order(tmp_path):
    folder = create_store(tmp_path / "store")
    same = np.repeat(random_latents(1), 5, axis=0)
    append(folder, list("vwxyz"), same)
    hits = Searcher(Store(folder)).search(same[0], k=4)
    assert [hit.row for hit in hits] == [0, 1, 2, 3]


def hits_of(searcher, query, **options):
    return [(hit.entry.name, hit.num_volumes) for hit in searcher.search(query, **options)]


@pytest.mark.parametrize("index", ["exact", "approximate"])
def test_one_hit_per_exam(tmp_path, index):
    folder = create_store(tmp_path / "store")
    queries = reconstructions(folder)
    if index == "approximate":
        pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
        build_approximate_index(folder)
    store, searcher = Store(folder), Searcher(Store(folder))
    assert searcher.is_approximate == (index == "approximate")
    latents = store.load_latents()
    for number, query in enumerate(queries[:9]):
        order = np.argsort(-latents @ query, kind="stable")
        hits = hits_of(searcher, query, k=10)
        # The most similar volume of each exam; each of unknown exam is one of its own.
        expected, exams = [], set()
        for name in (store.names[row] for row in order):
            exam = name if name.startswith("e9") else name[:2]
            if exam not in exams:
                expected.append((name, 1 if name.startswith("e9") else 3))
                exams.add(exam)
        assert hits == expected[:10] and hits[0][0].startswith(f"e{number}")
        volumes = hits_of(searcher, query, k=7, per="volume")
        assert volumes == [(store.names[row], 1) for row in order[:7]]
    # 27 volumes of 9 exams and 3 of unknown ones.
    assert len(searcher.search(queries[0], k=50)) == 12
    soft = store.mask(CaseFilter(strata={"kernel": "soft"}))
    assert {n for _, n in hits_of(searcher, queries[0], k=50, mask=soft)} == {1, 2}
    assert len(searcher.search(queries[0], k=50, mask=soft)) == 11


def test_exams_of_stores_written_before_are_known_by_ct_rate_names_only(tmp_path):
    """And are the same as those that a source states; another folder is another patient."""
    folder = create_store(tmp_path / "store")
    names = ["train_1_a_1.nii.gz", "train_1_a_2.nii.gz", "train_1_b_1.nii.gz", "a_1", "a_2"]
    names += ["/x/train_1_a_1.nii.gz", "/x/train_1_a_2.nii.gz", "/y/train_1_a_1.nii.gz"]
    append(folder, names, random_latents(8), patient="p")
    (folder / "segment-00000" / "exams.npy").unlink()
    append(folder, ["another"], random_latents(1, seed=1), exam="train_1/train_1_a")
    _, exams = np.unique(Store(folder).exams, return_inverse=True)
    groups = [0, 0, 1, 2, 3, 4, 4, 5, 0]
    assert (exams[:, None] == exams).tolist() == np.equal.outer(groups, groups).tolist()
    np.save(folder / "segment-00001" / "exams.npy", np.zeros(2, np.uint64))
    with pytest.raises(InputError, match="segment-00001: damaged"):
        Searcher(Store(folder))


def test_filters_are_exact(folder):
    store, (query,) = Store(folder), random_latents(1, seed=2)
    searcher = Searcher(store)
    men = searcher.search(query, k=50, mask=store.mask(parse_filter([], ["sex=M"])))
    assert {hit.entry.name[0] for hit in men} == {"b"} and len(men) == 20
    ill = searcher.search(query, k=50, mask=store.mask(parse_filter(["Emphysema"], [])))
    assert {hit.entry.name[0] for hit in ill} == {"a"} and len(ill) == 30
    nobody = store.mask(CaseFilter({"Emphysema": 1}, {"sex": "M"}))
    assert searcher.search(query, mask=nobody) == []
    with pytest.raises(InputError, match="stratum 'age'.*sex"):
        store.mask(CaseFilter({}, {"age": "1"}))


@pytest.mark.parametrize(
    ("labels", "strata", "match"),
    [
        (["no:Emphysemas"], [], "label: unknown 'Emphysemas'"),
        ([], ["sex"], "--stratum: got sex"),
        ([], ["sex="], "--stratum: got sex="),
        ([], ["=F"], "--stratum: got =F"),
        (["Emphysema", "no:Emphysema"], [], "--label: two values"),
        ([], ["sex=F", "sex=M", "sex=F"], "--stratum: two values"),
    ],
)
def test_impossible_filters_are_errors(labels, strata, match):
    with pytest.raises(InputError, match=match):
        parse_filter(labels, strata)


def test_a_filter_may_be_repeated():
    assert parse_filter([], ["sex=F", "sex=F"]) == CaseFilter({}, {"sex": "F"})


def test_existing_names_are_not_added_again(folder):
    before = Store(folder)
    assert append(folder, ["b19", "c0"], random_latents(2, seed=3)) == 1
    after = Store(folder)
    assert len(before) == 50 and len(after) == 51 and after.names[-1] == "c0"
    np.testing.assert_array_equal(after.load_latents()[:50], before.load_latents())
    assert append(folder, ["b19", "c0"], random_latents(2, seed=3)) == 0
    assert len(list(folder.glob("segment-*"))) == 3


def test_the_first_of_duplicate_names_counts(folder):
    latents = random_latents(3, seed=3)
    assert append(folder, ["c0", "b0", "c0"], latents) == 1
    np.testing.assert_array_equal(Store(folder).load_latents()[50:], latents[:1])


def test_characters_outside_unicode_are_replaced(folder):
    with open_writer(folder) as writer:
        writer.add([Entry("c0", findings="M\udcfcller: é.")], random_latents(1, seed=3), [b""])
    assert Store(folder).load_entry(50).findings == "M?ller: é."


@pytest.mark.parametrize("value", [np.nan, 0])
def test_latents_must_have_unit_length(folder, value):
    latents = random_latents(2)
    latents[1] = value
    with pytest.raises(InputError, match="c1: latent of length"):
        append(folder, ["c0", "c1"], latents)
    assert len(Store(folder)) == 50


def test_appending_locks_the_store(folder):
    with open_writer(folder), pytest.raises(InputError, match="another process"):
        append(folder, ["c0"], random_latents(1))


def test_an_empty_store_has_no_hits(tmp_path):
    searcher = Searcher(Store(create_store(tmp_path / "store")))
    assert searcher.search(random_latents(1)[0]) == []
    with pytest.raises(InputError, match="query"):
        searcher.search(random_latents(1)[0, :3])


def test_the_layout_on_disk_is_stable(tmp_path):
    """Stores that were written before must stay readable: this one is written by hand."""
    latents = random_latents(2)
    labels = np.full((2, 18), -1, np.int8)
    labels[0, 7], labels[1, 7] = 1, 0
    fields = {"patient": "p", "findings": "é", "impressions": "", "strata": {"sex": "F"}}
    lines = [json.dumps({"name": name, **fields}).encode() + b"\n" for name in ("a", "b")]
    segment = tmp_path / "segment-00000"
    segment.mkdir()
    (tmp_path / "store.json").write_text(json.dumps({"model_sha256": "of a test", "dim": DIM}))
    np.save(segment / "latents.npy", latents)
    np.save(segment / "labels.npy", labels)
    np.save(segment / "lines.npy", np.array([0, len(lines[0]), len(b"".join(lines))]))
    np.save(segment / "pictures.npy", np.array([0, 1, 3]))
    (segment / "cases.jsonl").write_bytes(b"".join(lines))
    (segment / "pictures.bin").write_bytes(b"abb")
    store = Store(tmp_path)
    np.testing.assert_array_equal(store.load_latents(), latents)
    assert store.load_entry(1) == Entry("b", **fields, labels={"Emphysema": 0})
    assert store.load_thumbnail(1) == b"bb"
    assert append(tmp_path, ["c"], random_latents(1)) == 1
    files = {path.name for path in (tmp_path / "segment-00001").iterdir()}
    assert files == {path.name for path in segment.iterdir()} | {"exams.npy"}


KILLED = """
import os, sys, time
import numpy as np
from tests.case_store.test_store import append, random_latents
from pathlib import Path

pause_at, num_steps = int(sys.argv[2]), 0

def pausing(function):
    def wrapper(*arguments, **options):
        global num_steps
        num_steps += 1
        if num_steps == pause_at:
            print("paused", flush=True)
            time.sleep(60)
        return function(*arguments, **options)
    return wrapper

np.save = pausing(np.save)
os.rename = pausing(os.rename)
os.fsync = pausing(os.fsync)
print(append(Path(sys.argv[1]), ["c0", "c1"], random_latents(2, seed=3)), flush=True)
"""


def kill_append(folder, *, step: int) -> bool:
    """Kills a process at this step of an append; whether it got that far."""
    command = [sys.executable, "-c", KILLED, str(folder), str(step)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as writer:
        is_paused = writer.stdout.readline() == "paused\n"
        os.kill(writer.pid, signal.SIGKILL)
    return is_paused


@pytest.mark.drill
@pytest.mark.parametrize("step", [1, 5, 8, 14])
def test_kill_before_the_rename_leaves_the_store_unchanged(folder, step):
    """At the first array, the last, while files are synced, and just before the rename."""
    expected = Store(folder).load_latents()
    assert kill_append(folder, step=step)
    assert list(folder.glob(".writing-*")), "killed too early or too late to prove anything"
    store = Store(folder)
    np.testing.assert_array_equal(store.load_latents(), expected)
    assert len(store.names) == 50 and store.load_entry(49).name == "b19"
    assert append(folder, ["c0", "c1"], random_latents(2, seed=3)) == 2
    assert len(Store(folder)) == 52 and not list(folder.glob(".writing-*"))


@pytest.mark.drill
def test_kill_after_the_rename_keeps_the_segment(folder):
    assert kill_append(folder, step=15)
    assert Store(folder).names[-2:] == ["c0", "c1"]
    assert append(folder, ["c0", "c1"], random_latents(2, seed=3)) == 0


@pytest.mark.parametrize("file", ["latents.npy", "cases.jsonl", "pictures.bin", "labels.npy"])
def test_a_truncated_file_is_an_error(folder, file):
    path = folder / "segment-00001" / file
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(InputError, match="segment-00001: damaged"):
        Store(folder)


def test_damaged_text_is_an_error_when_it_is_read(folder):
    path = folder / "segment-00001" / "cases.jsonl"
    path.write_bytes(b"\0" * path.stat().st_size)
    store = Store(folder)
    assert store.load_entry(29).name == "a29"
    for read in (
        lambda: store.load_entry(30),
        lambda: store.names,
        lambda: store.mask(CaseFilter({}, {"sex": "M"})),
    ):
        with pytest.raises(InputError, match="segment-00001: damaged"):
            read()


def test_more_segments_than_open_files(tmp_path):
    folder = create_store(tmp_path / "store")
    with open_writer(folder) as writer:
        for index in range(80):
            writer.add(make_entries([f"c{index}"]), random_latents(1, seed=index), [b"picture"])
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    num_open = len(os.listdir("/proc/self/fd"))
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (num_open + 40, limits[1]))
        hits = Searcher(Store(folder)).search(random_latents(1, seed=79)[0], k=1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert hits[0].entry.name == "c79"


def test_segments_are_in_numeric_order(folder):
    (folder / "segment-00001").rename(folder / "segment-100000")
    (folder / "segment-00000").rename(folder / "segment-99999")
    (folder / "segment-00001.old").mkdir()
    append(folder, ["c0"], random_latents(1, seed=3))
    assert (folder / "segment-100001").exists()
    names = Store(folder).names
    assert (names[0], names[30], names[50]) == ("a0", "b0", "c0")


def test_not_a_store_of_this_model(tmp_path):
    with pytest.raises(InputError, match="no case store"):
        Store(tmp_path)
    folder = create_store(tmp_path / "store")
    with pytest.raises(InputError, match="another model"), open_writer(folder, "another"):
        pass


def test_the_approximate_index_is_used_while_it_covers_the_store(folder):
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
    build_approximate_index(folder)
    searcher, queries = Searcher(Store(folder)), random_latents(3, seed=1)
    everybody = np.ones(50, bool)
    assert searcher.is_approximate
    for query in queries:
        (approximate,) = searcher.search(query, k=1)
        assert [approximate.row] == [hit.row for hit in searcher.search(query, k=1, mask=everybody)]
    append(folder, ["c0"], random_latents(1, seed=3))
    assert not Searcher(Store(folder)).is_approximate
    with open_writer(folder), pytest.raises(InputError, match="another process"):
        build_approximate_index(folder)
    build_approximate_index(folder)
    searcher = Searcher(Store(folder))
    assert searcher.is_approximate
    assert searcher.search(random_latents(1, seed=3)[0], k=1)[0].entry.name == "c0"


def test_the_approximate_index_of_another_store_is_not_used(folder, tmp_path):
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
    build_approximate_index(folder)
    other = create_store(tmp_path / "other")
    append(other, [f"c{i}" for i in range(50)], random_latents(50, seed=9))
    index = other / "approximate.faiss"
    index.write_bytes((folder / "approximate.faiss").read_bytes())
    assert not Searcher(Store(other)).is_approximate
    index.write_bytes(index.read_bytes()[:-9])
    with pytest.raises(InputError, match=r"approximate\.faiss: damaged"):
        Searcher(Store(other))
    build_approximate_index(other)
    assert Searcher(Store(other)).is_approximate


def test_an_empty_store_is_not_indexed(tmp_path):
    pytest.importorskip("faiss", reason="an extra: pip install faiss-cpu")
    with pytest.raises(InputError, match="no cases"):
        build_approximate_index(create_store(tmp_path / "store"))


def test_missing_faiss_is_an_error(folder, monkeypatch):
    monkeypatch.setitem(sys.modules, "faiss", None)
    with pytest.raises(InputError, match="pip install faiss-cpu"):
        build_approximate_index(folder)


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


@pytest.mark.drill
def test_index_and_search(export, tmp_path):
    """Shards and scans are added, an unreadable scan is skipped, and a scan finds itself."""
    model, shards = export
    samples = write_samples(tmp_path / "samples", count=2, seed=0)
    (samples.parent / "bad.nii").write_bytes(b"none")
    common = (f"--store={tmp_path / 'store'}", f"--model={model}")
    done = run("index", *common, f"--shards={shards}", "--split=train")
    assert done.returncode == 0 and "6 cases added: 6 in" in done.stdout, done.stderr
    bad, by_path = samples.parent / "bad.nii", samples.parent / "sample_1.nii.gz"
    done = run("index", *common, f"--scans={samples}", bad, by_path)
    assert done.returncode == 1 and "3 cases added: 9 in" in done.stdout, done.stderr
    assert "1 scans skipped" in done.stderr and "Traceback" not in done.stderr
    assert str(by_path) in Store(tmp_path / "store").names
    done = run("index", *common, by_path)
    assert done.stdout.startswith("0 cases added: 9 in") and "1 were there" in done.stdout
    output = tmp_path / "hits.json"
    scan = samples.parent / "sample_2.nii.gz"
    done = run("search", *common, f"--volume={scan}", "--k=3", f"--json={output}")
    assert done.returncode == 0, done.stderr
    first, *others = json.loads(output.read_text())
    assert first["name"] == "sample_2.nii.gz" and first["similarity"] == pytest.approx(1, abs=1e-5)
    assert {"name", "similarity", "findings", "impressions", "labels", "strata"} <= set(first)
    assert len(others) == 2 and first["findings"] and "sample_2.nii.gz" in done.stdout
    # The volumes of shards are exams of one volume each; one more of train_1_a, and it has two.
    assert first["num_volumes"] == 1 and "reconstructions" not in done.stdout
    store = Store(tmp_path / "store")
    row = store.names.index("train_1_a_1.nii.gz")
    assert store.load_entry(row).exam == "train_1/train_1_a"
    twin = Entry("twin", exam="train_1/train_1_a")
    with open_for_append(store.folder, model_sha256=store.model_sha256, dim=store.dim) as writer:
        writer.add([twin], store.load_latents()[[row]], [b""])
    query = ("--text=Emphysema.", "--k=99")
    done = run("search", *common, *query)
    assert done.stdout.count("(2 reconstructions)") == 1, done.stderr
    all_volumes = run("search", *common, *query, "--per=volume").stdout
    assert "twin" in all_volumes and "reconstructions" not in all_volumes
    assert Store(tmp_path / "store").model_sha256 == fingerprint(ctclip_jax.load(model))


def test_a_query_is_pooled_over_sentences_as_reports_are(export):
    model = ctclip_jax.load(export[0])
    sentences = model.encode_text(["Emphysema.", "No nodule."]).mean(axis=0)
    query = encode_query(model, "Emphysema. No nodule.")
    np.testing.assert_allclose(query, sentences / np.linalg.norm(sentences), atol=1e-6)
