import pickle

import numpy as np
import pytest

from data_pipelines.errors import InputError
from data_pipelines.tokenizers import SPECIAL_TOKENS, load_tokenizer, train_sentencepiece

WORDS = ("[MASK]", "heart", "is", "##t", "norm", "##al", "a", "\u2028", ".", "肺")
TEXTS = ["The heart is normal.", "No pleural effusion.", "A nodule in the right lobe.", ""]


@pytest.fixture
def vocabulary(tmp_path):
    path = tmp_path / "vocab.txt"
    path.write_text("\n".join((*SPECIAL_TOKENS, *WORDS)) + "\n", encoding="utf-8")
    return path


@pytest.fixture
def model(tmp_path):
    path = tmp_path / "tokenizer.model"
    train_sentencepiece(TEXTS, path, 1000)
    return path


def test_word_piece_equals_bert(vocabulary):
    tokenizer = load_tokenizer(vocabulary)
    ids, mask = tokenizer(["HEÁRT\tis normal.", "ist 肺a zebra"], 9)
    # [CLS] 2, [SEP] 3, [UNK] 1; accents and case dropped, CJK letters are words of their own.
    assert ids.tolist() == [[2, 5, 6, 8, 9, 12, 3, 0, 0], [2, 6, 7, 13, 10, 1, 3, 0, 0]]
    assert mask.tolist() == [[1] * 7 + [0] * 2] * 2
    assert ids.dtype == mask.dtype == np.int32
    assert tokenizer.vocab_size == len(SPECIAL_TOKENS) + len(WORDS)


def test_special_tokens_in_a_text_stay_whole(vocabulary):
    ids, _ = load_tokenizer(vocabulary)(["heart [SEP] a"], 6)
    assert ids.tolist() == [[2, 5, 3, 10, 3, 0]]


def test_long_texts_are_truncated_before_the_last_token(vocabulary):
    ids, mask = load_tokenizer(vocabulary)(["heart " * 50], 5)
    assert ids.tolist() == [[2, 5, 5, 5, 3]] and mask.tolist() == [[1] * 5]


def test_sentence_piece_round_trip(model):
    tokenizer = load_tokenizer(model)
    ids, mask = tokenizer(["The HEART", "the heart", ""], 12)
    assert (tokenizer.pad_id, tokenizer.cls_id, tokenizer.sep_id) == (0, 2, 3)
    assert ids[0].tolist() == ids[1].tolist() and ids[2].tolist() == [2, 3] + [0] * 10
    assert 0 < mask[0].sum() < 12 and tokenizer.vocab_size < 1000
    assert 1 not in ids and ids.max() < tokenizer.vocab_size


def test_sentence_piece_training_is_deterministic(model, tmp_path):
    train_sentencepiece(reversed(TEXTS), tmp_path / "again.model", 1000)
    assert (tmp_path / "again.model").read_bytes() == model.read_bytes()


def test_training_on_no_text_is_an_input_error(tmp_path):
    with pytest.raises(InputError, match="no text"):
        train_sentencepiece(["", " "], tmp_path / "tokenizer.model", 100)


def test_tokenizers_can_be_pickled(vocabulary, model):
    for path in (vocabulary, model):
        tokenizer = load_tokenizer(path)
        copy = pickle.loads(pickle.dumps(tokenizer))
        np.testing.assert_array_equal(copy(TEXTS, 16), tokenizer(TEXTS, 16))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("vocab.txt", None, "no such tokenizer"),
        ("vocab.txt", "a\nb\n", "lacks"),
        ("tokenizer.model", "not a model", "not a SentencePiece model"),
        ("tokenizer.json", "{}", "vocab.txt or"),
    ],
)
def test_bad_tokenizer_file_is_an_input_error(tmp_path, name, content, message):
    if content is not None:
        (tmp_path / name).write_text(content)
    with pytest.raises(InputError, match=f"{name}.*{message}"):
        load_tokenizer(tmp_path / name)
