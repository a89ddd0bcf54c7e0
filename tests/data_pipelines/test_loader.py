"""Training and evaluation batches: content, epochs, resuming, dividing among processes."""

import multiprocessing
import threading
import time

import numpy as np
import pytest
from absl import flags

from data_pipelines import shards
from data_pipelines.batching import PUT_AHEAD
from data_pipelines.errors import InputError
from data_pipelines.loader import eval_loader, rescale_position, train_loader
from data_pipelines.patches import patchify
from data_pipelines.reports import TextSampler, split_sentences
from data_pipelines.tokenizers import load_tokenizer, train_sentencepiece
from tests import records

WORDS = ["heart", "lung", "aorta", "rib", "spine", "liver", "bronchus", "node", "nodule", "vessel"]
FINDINGS = [f"The {word} is normal. No {word} calcification. A {word} is seen" for word in WORDS]
WHOLE = TextSampler()
ONE, ONE_OR_TWO, UP_TO_THREE = (TextSampler(sentences_per_text=(1, n)) for n in (1, 2, 3))
TWO_TEXTS = TextSampler(sentences_per_text=(1, 1), texts_per_volume=2)
IMPRESSIONS = [f"Normal {word}. Follow the {word}." for word in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten volumes whose every voxel is their number; one lacks Impressions, two share a report."""
    out = tmp_path_factory.mktemp("shards")
    plan = shards.begin(out, "train", settings=records.settings((2, 3, 4), 2))
    for shard in plan:
        numbers = range(5 * shard.index, 5 * shard.index + 5)
        shards.write_shard(shard, map(make_record, numbers))
    shards.finish(out)
    train_sentencepiece(FINDINGS + IMPRESSIONS, out / "tokenizer.model", 300)
    return out


def write(out, content):
    """Shards of these records, one folder."""
    (shard,) = shards.begin(out, "train", settings=records.settings(content[0]["shape"]))
    shards.write_shard(shard, content)
    shards.finish(out)


def make_record(number: int) -> dict:
    text = 8 if number == 9 else number % 10
    return records.make_record(
        f"train_{number}_a_1.nii.gz",
        np.full((2, 3, 4), number, np.int16),
        labels=np.full(18, number % 2, np.int8),
        findings=FINDINGS[text],
        impressions="Not given." if number == 0 else IMPRESSIONS[text],
    )


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "tokenizer.model")


@pytest.fixture
def start(folder, tokenizer):
    """Starts a train loader, and closes it after the test."""
    iterators = []

    def begin(seed=0, folders=(folder,), text_sampler=WHOLE, **options):
        defaults = {"split": "train", "tokenizer": tokenizer, "max_length": 24, "batch_size": 4}
        defaults["patch"] = (1, 3, 2)
        options = defaults | {"text_sampler": text_sampler} | options
        iterators.append(train_loader(folders, seed=seed, **options))
        return iterators[-1]

    yield begin
    for iterator in iterators:
        iterator.close()


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def numbers(batches):
    """The numbers of the volumes in the batches, in order."""
    return np.concatenate([batch["image"][:, 0, 0, 0, 0] for batch in batches]).tolist()


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_train_batches(start):
    (batch,) = take(start(), 1)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((4, 2, 1, 2, 6), "int16"),
        "input_ids": ((4, 24), "int32"),
        "attention_mask": ((4, 24), "int32"),
        "scan": ((4,), "int32"),
        "report": ((4,), "int32"),
        "normal": ((4,), "bool"),
        "seed": ((4,), "int32"),
    }


def test_report_ids_and_normal_flags(start):
    batch = next(start(batch_size=10))
    column = {name: batch[name][np.argsort(numbers([batch]))] for name in batch}
    assert column["report"][8] == column["report"][9]
    assert len(set(column["report"].tolist())) == 9
    assert len(set(column["scan"].tolist())) == 10
    np.testing.assert_array_equal(column["normal"], [True, False] * 5)


def test_scan_ids_and_unknown_labels(tmp_path, start):
    labels = [np.array(each, np.int8) for each in ([], [0, -1], [0, 0])]
    write(tmp_path, [make_record(n) | whose(n // 2) | {"labels": labels[n]} for n in range(3)])
    batch = next(start(folders=(tmp_path,), batch_size=3))
    column = {name: batch[name][np.argsort(numbers([batch]))] for name in batch}
    assert column["scan"][0] == column["scan"][1] != column["scan"][2]
    assert column["normal"].tolist() == [False, False, True], "unknown is not normal"


def test_seeds_are_drawn_anew_for_every_example(start):
    seeds = np.concatenate([batch["seed"] for batch in take(start(batch_size=5), 6)])
    assert len(set(seeds.tolist())) == 30


def test_image_and_text_are_of_one_record(start, tokenizer):
    batch = next(start(max_length=64))
    for number, ids in zip(numbers([batch]), batch["input_ids"], strict=True):
        record = make_record(number)
        report = record["findings"]
        if number:
            report += " " + record["impressions"]
        np.testing.assert_array_equal(ids, tokenizer([report], 64)[0][0])


def test_each_epoch_has_every_volume_in_another_order(start):
    seen = numbers(take(start(batch_size=5), 6))
    epochs = [seen[:10], seen[10:20], seen[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_batch_may_be_larger_than_the_split(start):
    assert len(set(numbers(take(start(batch_size=16), 1)))) == 10


def test_the_seed_decides_the_batches(start):
    first = take(start(seed=1, text_sampler=ONE_OR_TWO), 4)
    assert_equal(first, take(start(seed=1, text_sampler=ONE_OR_TWO), 4))
    assert numbers(first) != numbers(take(start(seed=2, text_sampler=ONE_OR_TWO), 4))


@pytest.mark.parametrize("consumed", [0, 1, 4])
def test_resumed_equals_uninterrupted(start, consumed):
    iterator = start(text_sampler=UP_TO_THREE)
    take(iterator, consumed)
    state = iterator.get_state()
    expected = take(iterator, 5)
    resumed = start(text_sampler=UP_TO_THREE)
    resumed.set_state(state)
    assert_equal(take(resumed, 5), expected)


class Puts:
    """Stands for the transfer to devices, and counts it."""

    def __init__(self):
        self.count = 0

    def __call__(self, batch):
        self.count += 1
        return {name: column.copy() for name, column in batch.items()} | {"is_put": True}

    def wait(self, count: int) -> None:
        """Until `count` batches were put, and no more."""
        deadline = time.monotonic() + 10
        while self.count < count and time.monotonic() < deadline:
            time.sleep(0.001)
        time.sleep(0.05)
        assert self.count == count


@pytest.mark.parametrize(("used", "num_workers"), [(0, 0), (1, 0), (3, 0), (1, 1)])
def test_batches_that_were_put_and_not_used_come_again(start, used, num_workers):
    flags.FLAGS.mark_as_parsed()
    options = {"text_sampler": UP_TO_THREE, "num_workers": num_workers}
    plain = take(start(**options), used + 4)
    puts = Puts()
    iterator = start(put=puts, **options)
    assert_equal([dict(b, is_put=True) for b in plain[:used]], take(iterator, used))
    iterator.start_prefetch()
    puts.wait(used + PUT_AHEAD)
    state = iterator.get_state()
    iterator.close()
    resumed = start(**options)
    resumed.set_state(state)
    assert_equal(take(resumed, 4), plain[used:])
    again = start(put=Puts(), **options)
    take(again, 2)
    again.set_state(state)  # in the middle, as a restore does
    assert_equal([dict(b, is_put=True) for b in plain[used:]], take(again, 4))


def test_an_error_of_put_is_raised_by_next(start):
    def fail(batch):
        raise InputError("no memory")

    def prefetching() -> set[threading.Thread]:
        return {thread for thread in threading.enumerate() if "thread-prefetch" in thread.name}

    before = prefetching()
    iterator = start(put=fail)
    with pytest.raises(InputError, match="no memory"):
        next(iterator)
    iterator.close()
    assert prefetching() <= before, "close ends the threads"


def test_worker_processes_resume(start):
    flags.FLAGS.mark_as_parsed()  # grain's workers take the flags of their parent
    iterator = start(text_sampler=UP_TO_THREE, num_workers=1, batch_size=5)
    first = take(iterator, 4)
    assert sorted(numbers(first)) == sorted(list(range(10)) * 2)
    state = iterator.get_state()
    resumed = start(text_sampler=UP_TO_THREE, num_workers=1, batch_size=5)
    resumed.set_state(state)
    assert_equal(take(resumed, 3), take(iterator, 3))


def test_worker_processes_ignore_sigterm(start):
    flags.FLAGS.mark_as_parsed()
    before = set(multiprocessing.active_children())
    iterator = start(num_workers=1, batch_size=5)
    take(iterator, 1)
    workers = set(multiprocessing.active_children()) - before
    assert workers
    for worker in workers:
        worker.terminate()
    take(iterator, 6)
    assert all(worker.is_alive() for worker in workers)


def test_processes_divide_an_epoch(start):
    parts = [
        numbers(take(start(batch_size=5, process_index=index, process_count=2), 3))
        for index in range(2)
    ]
    assert sorted(parts[0][:5] + parts[1][:5]) == list(range(10))
    assert sorted(parts[0][5:10] + parts[1][5:10]) == list(range(10))


def test_processes_divide_epochs_of_any_size(start):
    """10 volumes among 3 processes: step by step, each epoch has every volume exactly once."""
    parts = [
        numbers(take(start(batch_size=1, process_index=index, process_count=3), 10))
        for index in range(3)
    ]
    seen = [number for step in zip(*parts, strict=True) for number in step]
    assert all(sorted(seen[i : i + 10]) == list(range(10)) for i in (0, 10, 20))


def test_one_reconstruction_per_scan_and_epoch(start, tmp_path):
    """Volumes 0 and 1 are one scan, 2 and 3 another, ..."""
    write(tmp_path, [make_record(n) | whose(n // 2) for n in range(10)])
    batches = take(start(folders=[tmp_path], batch_size=5, one_reconstruction_per_scan=True), 24)
    for batch in batches:
        assert sorted(number // 2 for number in numbers([batch])) == list(range(5))
    counts = np.bincount(numbers(batches), minlength=10)
    assert counts.min() >= 4, "both reconstructions come up"


def test_scans_of_two_patients_may_have_the_same_name(start, tmp_path):
    two = [{"patient": "p1", "scan": "1"}, {"patient": "p2", "scan": "1"}]
    write(tmp_path, [make_record(number) | two[number % 2] for number in range(4)])
    batches = take(start(folders=[tmp_path], batch_size=2, one_reconstruction_per_scan=True), 4)
    assert all(sorted(number % 2 for number in numbers([batch])) == [0, 1] for batch in batches)


@pytest.mark.parametrize("processes", [2, 3])
def test_draws_do_not_depend_on_the_number_of_processes(start, processes):
    options = {
        "batch_size": 1,
        "random_shift_voxels": 1,
        "text_sampler": ONE_OR_TWO,
    }
    alone = take(start(**options), 12)
    shared = [
        take(start(process_index=index, process_count=processes, **options), 12 // processes)
        for index in range(processes)
    ]
    assert_equal([batch for step in zip(*shared, strict=True) for batch in step], alone)


def whose(scan):
    return {"patient": f"train_{scan}", "scan": f"train_{scan}_a"}


def test_folders_are_mixed_by_weight(start, folder, tmp_path):
    write(tmp_path, [make_record(number) for number in range(100, 103)])
    both = {"folders": [folder, tmp_path], "batch_size": 20}
    seen = np.array(numbers(take(start(mixture_weights=(3, 1), **both), 10)))
    assert (seen >= 100).sum() == 50
    counts = np.unique(seen[seen < 100], return_counts=True)[1]
    assert counts.tolist() == [15] * 10, "each folder keeps its own epochs"
    by_size = np.array(numbers(take(start(folders=[folder, tmp_path], batch_size=13), 10)))
    assert abs((by_size >= 100).sum() - 30) <= 1
    iterator = start(mixture_weights=(3, 1), **both)
    take(iterator, 2)
    state = iterator.get_state()
    expected = take(iterator, 2)
    resumed = start(mixture_weights=(3, 1), **both)
    resumed.set_state(state)
    assert_equal(take(resumed, 2), expected)


def test_split_without_reports_is_an_input_error(start, tmp_path):
    write(tmp_path, [make_record(0) | {"findings": "", "impressions": ""}])
    with pytest.raises(InputError, match="no volume of train has a report"):
        start(folders=[tmp_path])


def test_texts_without_volumes_skip_volumes_without_report(start, tmp_path):
    records = [make_record(number) for number in range(8)]
    for record in records[::2]:
        record.update(findings="", impressions="Not given.")
    write(tmp_path, records)
    epoch = take(start(folders=[tmp_path], with_volumes=False, with_labels=True), 1)
    assert epoch[0]["labels"].all()  # the odd ones
    assert sorted(numbers(take(start(folders=[tmp_path]), 2))) == list(range(8))


@pytest.mark.parametrize("weights", [(1,), (1, 0), (1, 2, 3)])
def test_invalid_mixture_weights_are_an_input_error(start, folder, weights):
    with pytest.raises(InputError, match="weights"):
        start(folders=[folder, folder], mixture_weights=weights)


def test_folders_with_different_grids_are_an_input_error(start, folder, tmp_path):
    write(tmp_path, [records.make_record("a_1.nii.gz", np.zeros((2, 2, 2), np.int16))])
    with pytest.raises(InputError, match=f"{tmp_path}: volumes of .*2, 2, 2.*but {folder} has"):
        start(folders=[folder, tmp_path])
    with pytest.raises(InputError, match="no folder"):
        start(folders=[])


def test_sentences_are_shuffled_anew_each_epoch(start, tokenizer):
    batches = take(start(batch_size=10, max_length=64, text_sampler=TextSampler(shuffle=True)), 6)
    texts = {number: set() for number in range(10)}
    for batch in batches:
        for number, ids in zip(numbers([batch]), batch["input_ids"], strict=True):
            texts[number].add(tuple(ids))
    assert all(len(orders) > 2 for orders in texts.values())


def test_more_processes_than_volumes_are_an_input_error(start):
    with pytest.raises(InputError, match="fewer volumes"):
        start(process_index=11, process_count=12)


def test_sentences_are_chosen_anew_each_epoch(start, tokenizer):
    batches = take(start(batch_size=10, text_sampler=ONE_OR_TWO), 8)
    texts = {number: set() for number in range(10)}
    for batch in batches:
        for number, ids in zip(numbers([batch]), batch["input_ids"], strict=True):
            texts[number].add(tuple(ids))
    assert all(len(variants) > 3 for variants in texts.values())


def test_several_texts_per_volume(start, tokenizer):
    (batch,) = take(start(batch_size=4, text_sampler=TWO_TEXTS), 1)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 2, 24)
    assert (batch["input_ids"][:, 0] != batch["input_ids"][:, 1]).any()


def test_volumes_are_in_patches(tmp_path, start):
    """Each voxel is its own number; whole HU, which are stored without their sixteenths."""
    volumes = 16 * np.arange(2 * 4 * 6 * 10, dtype=np.int16).reshape(2, 4, 6, 10)
    content = [
        records.make_record(f"train_{n}_a_1.nii.gz", volume, steps_per_hu=1, findings=FINDINGS[n])
        for n, volume in enumerate(volumes)
    ]
    write(tmp_path, content)
    patch = (2, 3, 5)
    expected = patchify(volumes, patch)
    assert expected.shape == (2, 2, 2, 2, 30)
    (batch,) = eval_loader(tmp_path, split="train", patch=patch, batch_size=2)
    np.testing.assert_array_equal(batch["image"], expected)
    (batch,) = take(start(folders=(tmp_path,), batch_size=2, patch=patch), 1)
    np.testing.assert_array_equal(batch["image"][np.argsort(numbers([batch]))], expected)
    with pytest.raises(InputError, match=r"patch \(2, 4, 5\)"):
        start(folders=(tmp_path,), patch=(2, 4, 5))


def test_random_shift_moves_volumes_and_not_texts(start):
    (still,), (moving,) = (
        take(start(batch_size=10, random_shift_voxels=shift), 1) for shift in (0, 1)
    )
    assert still["image"].shape == moving["image"].shape
    assert (still["image"] != moving["image"]).any() and moving["image"].min() == -16000
    np.testing.assert_array_equal(still["input_ids"], moving["input_ids"])


def test_random_shifts_are_all_up_to_the_largest_and_differ_between_axes(tmp_path, start):
    volume = np.zeros((5, 5, 5), np.int16)
    volume[2, 2, 2] = 160
    write(tmp_path, [records.make_record("train_0_a_1.nii.gz", volume, findings=FINDINGS[0])])
    options = {"batch_size": 50, "random_shift_voxels": 2, "patch": (1, 1, 1)}
    batches = take(start(folders=(tmp_path,), **options), 2)
    images = np.concatenate([batch["image"][..., 0] for batch in batches])
    bright = np.argwhere(images == 160)
    assert bright[:, 0].tolist() == list(range(100))
    shifts = bright[:, 1:] - 2
    for axis in range(3):
        assert set(shifts[:, axis].tolist()) == {-2, -1, 0, 1, 2}
    for one, other in ((0, 1), (0, 2), (1, 2)):
        assert (shifts[:, one] != shifts[:, other]).sum() > 50


def test_sentences_do_not_cross_parts(start, tokenizer):
    """Also where Findings end without a full stop."""
    seen = {
        tuple(ids)
        for batch in take(start(batch_size=10, text_sampler=ONE), 12)
        for ids in batch["input_ids"]
    }
    parts = [FINDINGS[:9], IMPRESSIONS[1:9]]
    sentences = {sentence for part in parts for text in part for sentence in split_sentences(text)}
    assert len(seen) > 30
    assert seen <= {tuple(tokenizer([sentence], 24)[0][0]) for sentence in sentences}


@pytest.mark.parametrize(("rows", "processes"), [(None, 1), (None, 3), ([7, 2, 4], 1), ([7], 2)])
def test_eval_loader_is_one_pass_in_order(folder, rows, processes):
    reports = shards.read_reports(folder, "train")
    expected = [int(row["volume_name"].split("_")[1]) for row in reports]
    seen, batches = [], []
    for index in range(processes):
        loader = eval_loader(
            folder,
            split="train",
            patch=(2, 3, 4),
            batch_size=2,
            rows=rows,
            process_index=index,
            process_count=processes,
        )
        own = list(loader)
        for batch in own:
            assert batch["image"].shape == (2, 1, 1, 1, 24)
            assert (batch["image"] == batch["image"][..., :1]).all(), "no shift, no air"
            assert numbers([batch]) == [expected[max(row, 0)] for row in batch["row"]]
            seen += [int(row) for row in batch["row"] if row >= 0]
        batches.append(len(own))
    expected_rows = list(range(10)) if rows is None else rows
    assert len(set(batches)) == 1, "every process has the same number of steps"
    assert sorted(seen) == sorted(expected_rows)
    assert processes > 1 or seen == expected_rows


@pytest.mark.parametrize("processes", [2, 4])
def test_position_rescales_to_another_number_of_processes(processes, start):
    """The batches that the processes read next are together the one that one would have read."""
    alone = start()
    for _ in range(3):
        next(alone)
    state = alone.get_state()
    expected = [next(alone) for _ in range(4)]
    several = []
    for index in range(processes):
        process = {"process_index": index, "process_count": processes}
        mine = start(batch_size=4 // processes, **process)
        mine.set_state(rescale_position(state, 1, processes))
        several.append(mine)
    for batch in expected:
        parts = [next(mine) for mine in several]
        for name, rows in batch.items():
            joined = np.stack([part[name] for part in parts], axis=1).reshape(rows.shape)
            np.testing.assert_array_equal(joined, rows)
    assert rescale_position(several[0].get_state(), processes, 1) == alone.get_state()
