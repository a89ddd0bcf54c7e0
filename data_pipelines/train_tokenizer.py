"""Trains a SentencePiece tokenizer on a lab's own reports, in any language.

    python -m data_pipelines.train_tokenizer --shards=SHARDS --out=tokenizer.model

SHARDS are one or more folders of prepared shards. The same reports give the same file. Train with
`--config.data.tokenizer=tokenizer.model` and a `config.model.text.vocab_size` of at least the
number of pieces that is printed.
"""

from collections.abc import Sequence

from absl import flags
from etils import epath

from data_pipelines.errors import InputError, one_line, run_main
from data_pipelines.reports import report_text
from data_pipelines.shards import read_reports
from data_pipelines.tokenizers import load_tokenizer, train_sentencepiece


def train_on_reports(
    folders: Sequence[epath.PathLike], path: epath.PathLike, *, split: str, vocab_size: int
) -> None:
    """Writes a tokenizer trained on all reports of `split`; `vocab_size` is an upper bound."""
    rows = [row for folder in folders for row in read_reports(folder, split)]
    texts = (report_text(row["findings"], row["impressions"]) for row in rows)
    try:
        train_sentencepiece(texts, path, vocab_size)
    except OSError as error:
        raise InputError(f"{path}: cannot be written ({one_line(error)})") from error


def define_flags() -> None:
    """A function, as data_pipelines.prepare, which imports this module, has other flags."""
    flags.DEFINE_list("shards", None, "Folders that data_pipelines.prepare wrote.", required=True)
    flags.DEFINE_string("split", "train", "Split of the shards.")
    flags.DEFINE_string("out", None, "A .model file to write.", required=True)
    flags.DEFINE_integer("vocab_size", 8000, "Largest number of pieces.", lower_bound=1)


def main() -> None:
    values = flags.FLAGS
    if epath.Path(values.out).suffix != ".model":
        raise InputError(f"--out: got {values.out}, expected a file that ends with .model")
    train_on_reports(values.shards, values.out, split=values.split, vocab_size=values.vocab_size)
    print(f"{values.out}: {load_tokenizer(values.out).vocab_size} pieces")


if __name__ == "__main__":
    run_main(main, define_flags)
