"""Shards swapped, copied over each other, damaged or missing: never other volumes' labels."""

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from absl import flags

from data_pipelines import loader, shards
from data_pipelines.errors import InputError
from data_pipelines.tokenizers import load_tokenizer
from tests.records import make_record, settings
from tests.tiny_run import write_tiny_shards

SHAPE = (4, 6, 6)
RECORDS = [
    make_record(f"train_{number}_a_1.nii.gz", np.full(SHAPE, number, np.int16), findings="A.")
    for number in range(6)
]


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two shards of three volumes."""
    out = tmp_path / "shards"
    for shard in shards.begin(out, "train", settings=settings(SHAPE, count=2)):
        shards.write_shard(shard, RECORDS[shard.index :: 2])
    shards.finish(out)
    return out


def swap(first: Path, second: Path) -> None:
    third = first.with_name("third")
    first.rename(third)
    second.rename(first)
    third.rename(second)


def read_for_evaluation(folder: Path) -> list[dict]:
    return list(loader.eval_loader(folder, split="train", patch=SHAPE, batch_size=2))


def read_for_training(folder: Path, *, num_workers: int = 0) -> None:
    flags.FLAGS.mark_as_parsed()  # grain's workers take the flags of their parent
    write_tiny_shards(folder.parent / "tiny", shape=(2, 2, 2))
    batches = loader.train_loader(
        [folder],
        split="train",
        text_sampler=None,
        tokenizer=load_tokenizer(folder.parent / "tiny" / "tokenizer.model"),
        max_length=8,
        patch=SHAPE,
        batch_size=2,
        seed=0,
        num_workers=num_workers,
    )
    try:
        for _ in range(6):
            next(batches)
    finally:
        batches.close()


@pytest.mark.parametrize("part", ["records", "rows"])
@pytest.mark.parametrize("read", [read_for_evaluation, read_for_training])
def test_swapped_files_are_named(part, read, folder):
    assert len(read_for_evaluation(folder)) == 3
    first, second = shards.plan(folder, "train")
    swap(Path(getattr(first, part)), Path(getattr(second, part)))
    message = rf"{folder}/chest_ct-train.array_record-0000.-of-00002: holds train_\d_a_1.nii.gz in"
    with pytest.raises(InputError, match=message):
        read(folder)


def test_a_shard_copied_over_another_is_named(folder):
    first, second = shards.plan(folder, "train")
    shutil.copyfile(first.records, second.records)
    with pytest.raises(InputError, match=f"{second.records}: holds train_0_a_1.nii.gz in"):
        read_for_evaluation(folder)
    shutil.copyfile(first.rows, second.rows)
    with pytest.raises(InputError, match=f"{second.rows}: train_0_a_1.nii.gz is also in"):
        shards.read_reports(folder, "train")
    with pytest.raises(InputError, match=f"{second.rows}: train_0_a_1.nii.gz is also in"):
        read_for_training(folder)


@pytest.mark.parametrize("num_workers", [0, 1])
@pytest.mark.parametrize("damage", ["missing", "truncated", "flipped"])
def test_a_damaged_record_in_training_names_its_shard(damage, num_workers, folder):
    path = shards.plan(folder, "train")[1].records
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        os.truncate(path, path.stat().length // 2)
    else:
        content = bytearray(path.read_bytes())
        start = content.index(RECORDS[1]["volume"][0])
        content[start : start + 8] = bytes(8)
        path.write_bytes(content)
    with pytest.raises(InputError, match=f"{path}: train_._a_1.nii.gz: damaged") as error:
        read_for_training(folder, num_workers=num_workers)
    assert "\n" not in str(error.value)
