import functools

import numpy as np
import pytest
from absl import flags

from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.loader import choose_sentences, eval_loader, shifted, train_loader
from data_pipelines.reports import split_sentences
from data_pipelines.tokenizers import load_tokenizer, train_sentencepiece
from data_pipelines.volumes import AIR

WORDS = ["heart", "lung", "aorta", "rib", "spine", "liver", "bronchus", "node", "nodule", "vessel"]
FINDINGS = [f"The {word} is normal. No {word} calcification. A {word} is seen" for word in WORDS]
IMPRESSIONS = [f"Normal {word}. Follow the {word}." for word in WORDS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Ten volumes whose every voxel is their number; one lacks Impressions, two share a report."""
    out = tmp_path_factory.mktemp("shards")
    plan = shards.begin(out, "train", settings={"shards": 2})
    for shard in plan:
        numbers = range(5 * shard.index, 5 * shard.index + 5)
        shards.write_shard(shard, map(make_record, numbers))
    shards.finish(out)
    train_sentencepiece(FINDINGS + IMPRESSIONS, out / "tokenizer.model", 300)
    return out


def make_record(number: int) -> dict:
    volume = np.full((2, 3, 4), number, np.int16)
    text = 8 if number == 9 else number
    return {
        "volume": shards.compress(volume),
        "shape": volume.shape,
        "spacing": np.ones(3, np.float32),
        "labels": np.full(18, number % 2, np.uint8),
        "volume_name": f"train_{number}_a_1.nii.gz",
        "findings": FINDINGS[text],
        "impressions": "Not given." if number == 0 else IMPRESSIONS[text],
        **{name: "" for name in ("patient", "scan", "values", "axes", "grid")},
    }


@pytest.fixture(scope="module")
def tokenizer(folder):
    return load_tokenizer(folder / "tokenizer.model")


@pytest.fixture
def start(folder, tokenizer):
    """Starts a train loader, and closes it after the test."""
    iterators = []

    def begin(seed=0, **options):
        defaults = {"split": "train", "tokenizer": tokenizer, "max_length": 24, "batch_size": 4}
        iterators.append(train_loader(folder, seed=seed, **defaults | options))
        return iterators[-1]

    yield begin
    for iterator in iterators:
        iterator.close()


def take(iterator, count):
    return [next(iterator) for _ in range(count)]


def numbers(batches):
    """The numbers of the volumes in the batches, in order."""
    return np.concatenate([batch["image"][:, 0, 0, 0] for batch in batches]).tolist()


def assert_equal(batches, others):
    for batch, other in zip(batches, others, strict=True):
        assert batch.keys() == other.keys()
        for name in batch:
            np.testing.assert_array_equal(batch[name], other[name])


def test_train_batches(start):
    (batch,) = take(start(), 1)
    assert {name: (value.shape, value.dtype.name) for name, value in batch.items()} == {
        "image": ((4, 2, 3, 4), "int16"),
        "input_ids": ((4, 24), "int32"),
        "attention_mask": ((4, 24), "int32"),
    }


def test_an_image_keeps_its_report(start, tokenizer):
    batch = next(start(max_length=64))
    for number, ids in zip(numbers([batch]), batch["input_ids"], strict=True):
        record = make_record(number)
        report = record["findings"]
        if number:
            report += " " + record["impressions"]
        np.testing.assert_array_equal(ids, tokenizer([report], 64)[0][0])


def test_every_epoch_is_the_whole_set_in_another_order(start):
    seen = numbers(take(start(batch_size=5), 6))
    epochs = [seen[:10], seen[10:20], seen[20:]]
    assert all(sorted(epoch) == list(range(10)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3


def test_a_batch_may_be_larger_than_the_set(start):
    assert len(set(numbers(take(start(batch_size=16), 1)))) == 10


def test_the_seed_decides_the_batches(start):
    first = take(start(seed=1, sentences=(1, 2)), 4)
    assert_equal(first, take(start(seed=1, sentences=(1, 2)), 4))
    assert numbers(first) != numbers(take(start(seed=2, sentences=(1, 2)), 4))


@pytest.mark.parametrize("consumed", [0, 1, 4])
def test_resumed_equals_uninterrupted(start, consumed):
    iterator = start(sentences=(1, 3))
    take(iterator, consumed)
    state = iterator.get_state()
    expected = take(iterator, 5)
    resumed = start(sentences=(1, 3))
    resumed.set_state(state)
    assert_equal(take(resumed, 5), expected)


def test_worker_processes_resume_too(start):
    flags.FLAGS.mark_as_parsed()  # grain's workers take the flags of their parent
    iterator = start(sentences=(1, 3), workers=1, batch_size=5)
    first = take(iterator, 4)
    assert sorted(numbers(first)) == sorted(list(range(10)) * 2)
    state = iterator.get_state()
    resumed = start(sentences=(1, 3), workers=1, batch_size=5)
    resumed.set_state(state)
    assert_equal(take(resumed, 3), take(iterator, 3))


def test_processes_share_an_epoch(start):
    parts = [
        numbers(take(start(batch_size=5, process_index=index, process_count=2), 3))
        for index in range(2)
    ]
    assert sorted(parts[0][:5] + parts[1][:5]) == list(range(10))
    assert sorted(parts[0][5:10] + parts[1][5:10]) == list(range(10))


def test_more_processes_than_volumes_is_an_input_error(start):
    with pytest.raises(InputError, match="fewer volumes"):
        start(process_index=11, process_count=12)


def test_sentences_are_chosen_anew_each_epoch(start, tokenizer):
    batches = take(start(batch_size=10, sentences=(1, 2)), 8)
    texts = {number: set() for number in range(10)}
    for batch in batches:
        for number, ids in zip(numbers([batch]), batch["input_ids"], strict=True):
            texts[number].add(tuple(ids))
    assert all(len(variants) > 3 for variants in texts.values())


def test_choose_sentences():
    rng = np.random.default_rng(0)
    sentences = ["One.", "Two.", "Three."]
    draw = functools.partial(choose_sentences, sentences, rng=rng)
    chosen = [draw(counts=(1, 2), texts=1)[0].split() for _ in range(100)]
    assert {len(words) for words in chosen} == {1, 2}
    assert {tuple(words) for words in chosen} >= {("Three.", "One."), ("One.", "Three.")}
    (everything,) = draw(counts=(9, 9), texts=1)
    assert sorted(everything.split()) == ["One.", "Three.", "Two."]
    assert sorted(draw(counts=(1, 1), texts=3)) == ["One.", "Three.", "Two."]
    first = draw(counts=(1, 1), texts=5)
    assert first[:2] == first[3:]
    assert choose_sentences([], counts=(1, 2), texts=2, rng=rng) == ["", ""]


def test_several_texts_of_a_volume(start, tokenizer):
    (batch,) = take(start(batch_size=4, sentences=(1, 1), texts=2), 1)
    assert batch["input_ids"].shape == batch["attention_mask"].shape == (4, 2, 24)
    assert (batch["input_ids"][:, 0] != batch["input_ids"][:, 1]).any()


def test_a_shift_moves_a_volume_and_fills_with_air():
    volume = np.arange(1, 61).reshape(3, 4, 5)
    rng = np.random.default_rng(0)
    moved = [shifted(volume, voxels=1, rng=rng) for _ in range(300)]
    assert len({each.tobytes() for each in moved}) == 27
    (back,) = {each.tobytes(): each for each in moved if each[1, 1, 1] == volume[0, 0, 0]}.values()
    np.testing.assert_array_equal(back[1:, 1:, 1:], volume[:-1, :-1, :-1])
    assert all((side == AIR).all() for side in (back[0], back[:, 0], back[:, :, 0]))


def test_a_shift_moves_volumes_and_no_texts(start):
    (still,), (moving,) = (take(start(batch_size=10, shift=shift), 1) for shift in (0, 1))
    assert still["image"].shape == moving["image"].shape
    assert (still["image"] != moving["image"]).any()
    np.testing.assert_array_equal(still["input_ids"], moving["input_ids"])


def test_a_sentence_comes_from_one_part(start, tokenizer):
    """Also where Findings end without a full stop."""
    seen = {
        tuple(ids)
        for batch in take(start(batch_size=10, sentences=(1, 1)), 12)
        for ids in batch["input_ids"]
    }
    parts = [FINDINGS[:9], IMPRESSIONS[1:9]]
    known = {sentence for part in parts for text in part for sentence in split_sentences(text)}
    assert len(seen) > 30
    assert seen <= {tuple(tokenizer([sentence], 24)[0][0]) for sentence in known}


@pytest.mark.parametrize("processes", [1, 3])
def test_evaluation_is_one_pass_in_order(folder, processes):
    options = {"split": "train", "batch_size": 2}
    names, batches = [], []
    for index in range(processes):
        loader = eval_loader(folder, process_index=index, process_count=processes, **options)
        own = list(loader)
        assert all(batch["image"].shape == (2, 2, 3, 4) for batch in own)
        for batch in own:
            valid = batch["valid"]
            names += batch["volume_name"][valid].tolist()
            assert batch["labels"].dtype == np.uint8
            assert (batch["image"] == batch["image"][:, :1, :1, :1]).all(), "no shift, no air"
            expected = [int(name.split("_")[1]) for name in batch["volume_name"]]
            assert numbers([batch]) == expected
            assert batch["labels"][:, 0].tolist() == [number % 2 for number in expected]
        batches.append(len(own))
    assert sorted(names) == [f"train_{number}_a_1.nii.gz" for number in range(10)]
    assert len(set(batches)) == 1
    if processes == 1:
        assert names == sorted(names)
