import io
import json

import pandas as pd
import pytest

from data_pipelines.errors import InputError
from data_pipelines.reports import LABELS, PROMPTS, prompt_text, report_text, split_sentences


@pytest.mark.parametrize("form", ["train", "infer"])
def test_published_forms_equal_the_published_loaders(golden_dir, form):
    name = {"train": "published_training", "infer": "published_inference"}[form]
    for case in json.loads((golden_dir / "text.json").read_text())["cases"]:
        text = report_text(case["findings"] or "", case["impressions"] or "", form=name)
        assert text == case[form], "the published wording is fixed; do not regenerate"


def test_missing_cells_are_what_pandas_calls_missing():
    table = pd.read_csv(io.StringIO("name,Findings_EN\na,NA\nb,\nc,None found.\n"))
    texts = [
        report_text(cell, "", form="published_training") for cell in table.Findings_EN.fillna("")
    ]
    assert texts == ["nan", "nan", "None found."]


@pytest.mark.parametrize(
    ("findings", "impressions", "text"),
    [
        ("Clear. ", "Normal.", "Clear. Normal."),
        ("Not given.", 'Normal ("chest").', 'Normal ("chest").'),
        ("Clear.", "", "Clear."),
        ("", "Not given.", ""),
    ],
)
def test_joined_leaves_out_what_says_nothing(findings, impressions, text):
    assert report_text(findings, impressions) == text


def test_impressions_alone_or_what_there_is():
    assert report_text("Clear.", "Normal.", form="impressions") == "Normal."
    assert report_text("Clear.", "Not given.", form="impressions") == "Clear."
    assert report_text("", "", form="impressions") == ""


def test_an_unknown_form_is_an_input_error():
    with pytest.raises(InputError, match="reversed"):
        report_text("a", "b", form="reversed")


def test_split_sentences():
    text = "1. Heart is normal. Nodule of 5.2 mm, cf. prior.\nNo effusion?  Yes!\n\n2."
    assert split_sentences(text) == [
        "Heart is normal.",
        "Nodule of 5.2 mm, cf. prior.",
        "No effusion?",
        "Yes!",
    ]
    assert split_sentences(" \n") == []


def test_prompts_and_labels():
    assert len(set(LABELS)) == 18
    assert prompt_text(PROMPTS[1], LABELS[0]) == "Medical material is not present."
    assert prompt_text("No {lower} is seen.", LABELS[0]) == "No medical material is seen."


@pytest.mark.parametrize("prompt", ["It is present.", "{label} is present.", "{} is {", "{1}"])
def test_a_prompt_that_does_not_name_the_label_is_an_error(prompt):
    with pytest.raises(InputError, match="^prompt '"):
        prompt_text(prompt, "Emphysema")
