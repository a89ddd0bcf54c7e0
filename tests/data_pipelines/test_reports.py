"""Report formats, sentences, prompts, and the text of a volume in a training step."""

import functools
import io
import json

import numpy as np
import pandas as pd
import pytest

from data_pipelines.errors import InputError
from data_pipelines.reports import (
    LABELS,
    PROMPTS,
    TextSampler,
    choose_sentences,
    prompt_text,
    report_text,
    split_sentences,
)


@pytest.mark.parametrize("form", ["train", "infer"])
def test_published_formats_equal_the_published_loaders(golden_dir, form):
    name = {"train": "published_training", "infer": "published_inference"}[form]
    for case in json.loads((golden_dir / "text.json").read_text())["cases"]:
        text = report_text(case["findings"] or "", case["impressions"] or "", form=name)
        assert text == case[form], "the published wording is fixed; do not regenerate"


def test_missing_cells_are_those_of_pandas():
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
def test_joined_omits_empty_parts(findings, impressions, text):
    assert report_text(findings, impressions) == text


def test_impressions_or_else_findings():
    assert report_text("Clear.", "Normal.", form="impressions") == "Normal."
    assert report_text("Clear.", "Not given.", form="impressions") == "Clear."
    assert report_text("", "", form="impressions") == ""


def test_unknown_format_is_an_input_error():
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
def test_prompt_without_the_label_is_an_input_error(prompt):
    with pytest.raises(InputError, match="^prompt '"):
        prompt_text(prompt, "Emphysema")


REPORT = ("One. Two. Three.", "Four.")


def draw(sampler, report=REPORT, seed=0):
    return sampler.draw(*report, rng=np.random.default_rng(seed))


def test_sampler_returns_whole_reports_in_any_format():
    assert draw(TextSampler()) == ["One. Two. Three. Four."]
    assert draw(TextSampler("published_inference")) == ["One. Two. Three.Four."]


def test_sampler_shuffles_all_sentences():
    texts = {draw(TextSampler(shuffle=True), seed=seed)[0] for seed in range(20)}
    assert len(texts) > 10
    assert all(sorted(text.split()) == ["Four.", "One.", "Three.", "Two."] for text in texts)
    assert draw(TextSampler(shuffle=True), report=("", "Not given.")) == [""]


def test_sampler_draws_sentences():
    assert len(draw(TextSampler("impressions", sentences_per_text=(1, 1), texts_per_volume=3))) == 3
    assert draw(TextSampler("impressions", sentences_per_text=(1, 2))) == ["Four."]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"texts_per_volume": 0}, "texts_per_volume: got 0"),
        ({"texts_per_volume": 2}, "need sentences_per_text"),
        ({"sentences_per_text": (2, 1)}, "sentences_per_text: got .2, 1"),
        ({"sentences_per_text": (0, 1)}, "sentences_per_text: got .0, 1"),
        (
            {"form": "published_training", "sentences_per_text": (1, 1)},
            "published_training",
        ),
        ({"form": "published_inference", "shuffle": True}, "published_inference"),
    ],
)
def test_invalid_sampler_is_an_input_error(wrong, message):
    with pytest.raises(InputError, match=message):
        TextSampler(**wrong)


def test_choose_sentences():
    rng = np.random.default_rng(0)
    sentences = ["One.", "Two.", "Three."]
    draw = functools.partial(choose_sentences, sentences, rng=rng)
    chosen = [draw(counts=(1, 2), num_texts=1)[0].split() for _ in range(100)]
    assert {len(words) for words in chosen} == {1, 2}
    assert {tuple(words) for words in chosen} >= {("Three.", "One."), ("One.", "Three.")}
    (everything,) = draw(counts=(9, 9), num_texts=1)
    assert sorted(everything.split()) == ["One.", "Three.", "Two."]
    assert sorted(draw(counts=(1, 1), num_texts=3)) == ["One.", "Three.", "Two."]
    first = draw(counts=(1, 1), num_texts=5)
    assert first[:2] == first[3:]
    assert choose_sentences([], counts=(1, 2), num_texts=2, rng=rng) == ["", ""]
