"""Tokenizers: BERT WordPiece and SentencePiece behind one interface; SentencePiece training."""

import io
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import sentencepiece
import tokenizers
from etils import epath
from jaxtyping import Int32

from data_pipelines.errors import InputError, one_line

SPECIAL_TOKENS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]")


@dataclass(frozen=True)
class Tokenizer:
    """`tokenizer(texts, max_length)` -> (input_ids, attention_mask), each [CLS] ... [SEP].

    `encode` returns the ids of one text without special tokens; `path` is the tokenizer's file.
    """

    encode: Callable[[str], list[int]]
    vocab_size: int
    pad_id: int
    cls_id: int
    sep_id: int
    path: Path

    def __call__(
        self, texts: Sequence[str], max_length: int
    ) -> tuple[Int32[np.ndarray, "n l"], Int32[np.ndarray, "n l"]]:
        """Returns ids, truncated or padded to `max_length`, and a mask that is 0 for padding."""
        input_ids = np.full((len(texts), max_length), self.pad_id, np.int32)
        attention_mask = np.zeros((len(texts), max_length), np.int32)
        for row, text in enumerate(texts):
            ids = [self.cls_id, *self.encode(text)[: max_length - 2], self.sep_id]
            input_ids[row, : len(ids)] = ids
            attention_mask[row, : len(ids)] = 1
        return input_ids, attention_mask


def load_tokenizer(path: str | Path) -> Tokenizer:
    """Loads WordPiece from a `.txt` file (a token per line) or SentencePiece from a `.model`."""
    path = Path(path)
    if path.suffix not in (".txt", ".model"):
        raise InputError(f"{path}: expected a vocab.txt or a SentencePiece .model file")
    if not path.is_file():
        raise InputError(f"{path}: no such tokenizer file")
    return _load_word_piece(path) if path.suffix == ".txt" else _load_sentence_piece(path)


def _load_word_piece(path: Path) -> Tokenizer:
    """Lower-case BERT WordPiece with the same ids as Hugging Face's BertTokenizer."""
    # Not splitlines: a token may itself be one of Unicode's other line separators.
    tokens = path.read_text(encoding="utf-8").removesuffix("\n").split("\n")
    vocab = {token: index for index, token in enumerate(tokens)}
    missing = [token for token in SPECIAL_TOKENS if token not in vocab]
    if missing:
        raise InputError(f"{path}: the vocabulary lacks {', '.join(missing)}")
    return Tokenizer(
        encode=partial(_word_pieces, tokenizers.BertWordPieceTokenizer(vocab, lowercase=True)),
        vocab_size=len(tokens),
        pad_id=vocab["[PAD]"],
        cls_id=vocab["[CLS]"],
        sep_id=vocab["[SEP]"],
        path=path,
    )


def _word_pieces(tokenizer: tokenizers.BertWordPieceTokenizer, text: str) -> list[int]:
    return tokenizer.encode(text, add_special_tokens=False).ids


def _load_sentence_piece(path: Path) -> Tokenizer:
    processor = sentencepiece.SentencePieceProcessor()
    try:
        processor.load(str(path))
    except (OSError, RuntimeError) as error:
        raise InputError(f"{path}: not a SentencePiece model") from error
    pad_id, unk_id, cls_id, sep_id = ids = [processor.piece_to_id(t) for t in SPECIAL_TOKENS]
    if len({*ids}) < len(ids) or unk_id != processor.unk_id():
        raise InputError(f"{path}: the SentencePiece model lacks {' '.join(SPECIAL_TOKENS)}")
    return Tokenizer(
        encode=processor.encode,
        vocab_size=processor.vocab_size(),
        pad_id=pad_id,
        cls_id=cls_id,
        sep_id=sep_id,
        path=path,
    )


def train_sentencepiece(texts: Iterable[str], path: epath.PathLike, vocab_size: int) -> None:
    """Trains a lower-casing unigram SentencePiece model and writes it to `path` (a `.model` file).

    The same texts give the same file. `vocab_size` is an upper bound: a small corpus gives fewer
    pieces. An error, such as more letters than pieces, leaves an existing file as it is.
    """
    sentences = sorted({" ".join(text.split()) for text in texts} - {""})
    if not sentences:
        raise InputError(f"{path}: no text to train a SentencePiece model on")
    trained = io.BytesIO()
    try:
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(sentences),
            model_writer=trained,
            model_type="unigram",
            vocab_size=vocab_size,
            hard_vocab_limit=False,
            normalization_rule_name="nmt_nfkc_cf",
            character_coverage=1.0,
            max_sentence_length=1 << 16,
            num_threads=1,
            pad_id=0,
            unk_id=1,
            bos_id=2,
            eos_id=3,
            pad_piece=SPECIAL_TOKENS[0],
            unk_piece=SPECIAL_TOKENS[1],
            bos_piece=SPECIAL_TOKENS[2],
            eos_piece=SPECIAL_TOKENS[3],
            minloglevel=2,
        )
    except RuntimeError as error:  # such as fewer pieces than letters
        cause = one_line(error).rpartition("] ")[2]  # after the place in the C++ source
        raise InputError(
            f"{path}: cannot train a SentencePiece model of {vocab_size} pieces ({cause})"
        ) from None
    try:
        epath.Path(path).write_bytes(trained.getvalue())
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({one_line(error)})") from error
