import functools

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.text_sampler import TextSampler, choose_sentences

REPORT = ("One. Two. Three.", "Four.")


def draw(choice, report=REPORT, seed=0):
    return choice.draw(*report, rng=np.random.default_rng(seed))


def test_a_whole_report_in_any_form():
    assert draw(TextSampler()) == ["One. Two. Three. Four."]
    assert draw(TextSampler("published_inference")) == ["One. Two. Three.Four."]


def test_shuffled_sentences_are_all_of_them():
    texts = {draw(TextSampler(shuffle=True), seed=seed)[0] for seed in range(20)}
    assert len(texts) > 10
    assert all(sorted(text.split()) == ["Four.", "One.", "Three.", "Two."] for text in texts)
    assert draw(TextSampler(shuffle=True), report=("", "Not given.")) == [""]


def test_choices_of_sentences():
    assert len(draw(TextSampler("impressions", sentences=(1, 1), texts=3))) == 3
    assert draw(TextSampler("impressions", sentences=(1, 2))) == ["Four."]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"texts": 0}, "texts: 0"),
        ({"texts": 2}, "need a choice of sentences"),
        ({"sentences": (2, 1)}, "sentences: .2, 1"),
        ({"sentences": (0, 1)}, "sentences: .0, 1"),
        ({"form": "published_training", "sentences": (1, 1)}, "sentences of published_training"),
        ({"form": "published_inference", "shuffle": True}, "sentences of published_inference"),
    ],
)
def test_a_choice_that_cannot_be_made_is_an_input_error(wrong, message):
    with pytest.raises(InputError, match=message):
        TextSampler(**wrong)


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
