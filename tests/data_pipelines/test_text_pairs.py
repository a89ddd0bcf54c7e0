"""Pairs of sentences with the same meaning, mined from reports."""

import numpy as np
import pytest

from data_pipelines import shards
from data_pipelines.errors import InputError
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


def test_sentences_of_impressions_match_those_of_findings():
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


def test_words_that_name_no_finding_are_not_compared():
    assert (
        matched_sentences([("No nodule is seen in the lungs.", "No mass is seen in the lungs.")])
        == []
    )
    assert matched_sentences([("No.", "Normal.")]) == []


def test_pairs_of_low_similarity_are_dropped():
    """Cosines of 0.151 and 0.122, on either side of MIN_SIMILARITY."""
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


def start(folder, batch_size: int):
    return text_pair_loader(
        [folder],
        split="train",
        tokenizer=load_tokenizer(folder / "tokenizer.model"),
        max_length=32,
        batch_size=batch_size,
        seed=0,
    )


def test_batch_has_a_pair_of_each_report(folder):
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


def test_reports_without_pairs_are_an_input_error(tmp_path):
    (plan,) = shards.begin(tmp_path, "train", settings=records.settings((2, 3, 4)))
    shards.write_shard(plan, [make_record(0, ("The heart is large.", "Follow-up."))])
    shards.finish(tmp_path)
    train_sentencepiece(FINDINGS, tmp_path / "tokenizer.model", 60)
    with pytest.raises(InputError, match="no report of train repeats a finding"):
        start(tmp_path, 1)
