"""Sentences of one report that say the same find each other, without labels."""

import numpy as np
import pytest

from data_pipelines import shards
from data_pipelines.errors import InputError
from data_pipelines.paraphrases import ABSENT, PRESENT, statement
from data_pipelines.reports import split_sentences
from data_pipelines.text_pairs import matched_sentences, text_pair_loader
from data_pipelines.tokenizers import load_tokenizer, train_sentencepiece
from tests import records

FINDINGS = (
    "No pleural effusion is seen. A nodule of 8 mm in the left lung. The heart is normal.",
    "Pleural effusion on the right. No nodule is seen. Severe emphysema.",
    "Heart size is normal. Emphysema in both upper lobes.",
)
IMPRESSIONS = (
    "Lung nodule. No effusion.",
    "Right pleural effusion, moderate. Emphysematous lungs: emphysema.",
    "Follow-up is advised.",
)


def test_each_conclusion_finds_what_it_concludes():
    matched = matched_sentences(list(zip(FINDINGS, IMPRESSIONS, strict=True)))
    assert matched == [
        [
            ("A nodule of 8 mm in the left lung.", "Lung nodule."),
            ("No pleural effusion is seen.", "No effusion."),
        ],
        [
            ("Pleural effusion on the right.", "Right pleural effusion, moderate."),
            ("Severe emphysema.", "Emphysematous lungs: emphysema."),
        ],
    ]


def test_words_that_name_no_finding_make_no_pair():
    assert (
        matched_sentences([("No nodule is seen in the lungs.", "No mass is seen in the lungs.")])
        == []
    )
    assert matched_sentences([("No.", "Normal.")]) == []


def test_one_shared_word_of_many_is_too_little():
    """Cosines of 0.151 and 0.122, on either side of SMALLEST_SIMILARITY."""
    aorta, granuloma = (
        "Calcified plaque, ectasia and tortuosity of the aorta",
        "Calcified granuloma.",
    )
    longer = f"{aorta} with ulcerated irregular mural thrombus, dissection flap, hematoma."
    near = f"{aorta} with dilatation, irregular thrombus."
    assert matched_sentences([(near, granuloma)]) == [[(near, granuloma)]]
    assert matched_sentences([(longer, granuloma)]) == []


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Reports that come twice each, as the reconstructions of a scan do, and one without a part."""
    out = tmp_path_factory.mktemp("shards")
    (plan,) = shards.begin(out, "train", settings=records.settings((2, 3, 4)))
    reports = [*zip(FINDINGS, IMPRESSIONS, strict=True)] * 2 + [(FINDINGS[0], "Not given.")]
    shards.write_shard(plan, [make_record(*numbered) for numbered in enumerate(reports)])
    shards.finish(out)
    train_sentencepiece(FINDINGS + IMPRESSIONS, out / "tokenizer.model", 100)
    return out


def make_record(number: int, report: tuple[str, str]) -> dict:
    findings, impressions = report
    return records.make_record(
        f"train_{number}_a_1.nii.gz",
        np.zeros((2, 3, 4), np.int16),
        findings=findings,
        impressions=impressions,
    )


def start(folder, batch_size: int, split: str = "train", objective="matched_sentences"):
    return text_pair_loader(
        [folder],
        split=split,
        objective=objective,
        tokenizer=load_tokenizer(folder / "tokenizer.model"),
        max_length=32,
        batch_size=batch_size,
        seed=0,
    )


def test_a_batch_holds_a_pair_of_each_report(folder):
    iterator = start(folder, 2)
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    reports = matched_sentences(list(zip(FINDINGS, IMPRESSIONS, strict=True)))
    known = {
        tuple(tokenizer([text for text in pair], 32)[0].ravel()): number
        for number, pairs in enumerate(reports)
        for pair in pairs
    }
    seen = set()
    for _ in range(20):
        batch = next(iterator)
        assert batch["first_mask"].dtype == np.int32
        pairs = [
            tuple(np.concatenate(ids))
            for ids in zip(batch["first_ids"], batch["second_ids"], strict=True)
        ]
        assert sorted(known[pair] for pair in pairs) == [0, 1]
        seen.update(pairs)
    iterator.close()
    assert seen == set(known)


def test_text_pairs_resume(folder):
    iterator, resumed = start(folder, 1), start(folder, 1)
    for _ in range(4):
        next(iterator)
    resumed.set_state(iterator.get_state())
    for _ in range(4):
        for one, other in zip(next(iterator).items(), next(resumed).items(), strict=True):
            np.testing.assert_array_equal(one[1], other[1])
    iterator.close()
    resumed.close()


def test_reports_without_a_pair_are_one_line(tmp_path):
    (plan,) = shards.begin(tmp_path, "train", settings=records.settings((2, 3, 4)))
    shards.write_shard(plan, [make_record(0, ("The heart is large.", "Follow-up."))])
    shards.finish(tmp_path)
    train_sentencepiece(FINDINGS, tmp_path / "tokenizer.model", 60)
    with pytest.raises(InputError, match="no report of train repeats a finding"):
        start(tmp_path, 1)


def test_a_rewording_says_the_same(folder):
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    said = {
        tuple(tokenizer([sentence], 32)[0][0]): statement(sentence)
        for report in zip(FINDINGS, IMPRESSIONS, strict=True)
        for part in report
        for sentence in split_sentences(part)
    }
    iterator = start(folder, 3, objective="rewordings")
    texts = set()
    for _ in range(30):
        batch = next(iterator)
        for first, second in zip(batch["first_ids"], batch["second_ids"], strict=True):
            finding, present = said[tuple(first)]
            frames = PRESENT if present else ABSENT
            options = [frame.format(finding[0].lower() + finding[1:]) + "." for frame in frames]
            assert any((tokenizer([text], 32)[0][0] == second).all() for text in options)
            texts.add(tuple(second))
    iterator.close()
    assert len(texts) > 15


def test_hidden_words_are_some_and_no_special_ones(folder):
    tokenizer = load_tokenizer(folder / "tokenizer.model")
    iterator = start(folder, 3, objective="masked_words")
    shares = []
    for _ in range(100):
        batch = next(iterator)
        hidden = batch["first_ids"] != batch["second_ids"]
        assert (batch["first_ids"][hidden] == tokenizer.mask_id).all()
        assert hidden.any(axis=1).all()
        special = (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id)
        assert not np.isin(batch["second_ids"][hidden], special).any()
        shares.append(hidden.sum() / (batch["second_mask"].sum() - 2 * len(hidden)))
    iterator.close()
    assert 0.15 < np.mean(shares) < 0.25, "of short sentences one word is more than 15 %"
