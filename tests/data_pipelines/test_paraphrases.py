"""Statements of reports are found with their polarity, and nothing else is taken for one."""

import numpy as np
import pytest

from data_pipelines.paraphrases import ABSENT, PRESENT, reword, rewordable_sentences, statement


@pytest.mark.parametrize(
    ("sentence", "expected"),
    [
        ("No pleural effusion was detected.", ("pleural effusion", False)),
        ("There are no nodules.", ("nodules", False)),
        ("There is no effusion or nodule.", ("effusion or nodule", False)),
        ("Pericardial effusion is not observed", ("Pericardial effusion", False)),
        ("No evidence of emphysema.", ("emphysema", False)),
        ("Emphysema was observed.", ("Emphysema", True)),
        ("Findings consistent with consolidation.", ("consolidation", True)),
        ("Large right pleural effusion.", ("Large right pleural effusion", True)),
        ("The heart is large and no effusion is seen.", None),
        ("Nodules without calcification.", None),
        ("No pleural effusion but a nodule in the right lobe.", None),
        ("No pleural effusion, stable nodule.", None),
        ("Effusion cannot be seen.", None),
        ("Pleural effusion resolved.", None),
        ("Lungs free of nodules.", None),
        ("Neither effusion nor nodule is seen.", None),
        ("Thyroid gland is unremarkable.", None),
        ("Both glands have a normal shape.", None),
    ],
)
def test_a_statement_has_a_finding_and_a_polarity(sentence, expected):
    assert statement(sentence) == expected


@pytest.mark.parametrize("frames", [PRESENT, ABSENT])
def test_every_frame_is_read_as_what_it_says(frames):
    for frame in frames:
        text = frame.format("a nodule of 8 mm in the left lung").capitalize() + "."
        found, present = statement(text)
        assert found.lower() == "a nodule of 8 mm in the left lung"
        assert present == (frames is PRESENT), text


def test_a_rewording_keeps_finding_and_polarity():
    rng = np.random.default_rng(0)
    for sentence in ("No hiatal hernia was found.", "Hiatal hernia."):
        texts = {reword(sentence, rng) for _ in range(100)}
        assert len(texts) == 8
        assert {statement(text)[1] for text in texts} == {statement(sentence)[1]}
        assert {statement(text)[0].lower() for text in texts} == {"hiatal hernia"}
    assert reword("Thyroid gland is unremarkable.", rng) is None


def test_reports_keep_what_can_be_said_otherwise():
    reports = [("The spleen is of normal size. No nodule.", "Emphysema."), ("The heart is big.",)]
    assert rewordable_sentences(reports) == [["No nodule.", "Emphysema."]]
