"""Trains a SentencePiece tokenizer on a lab's own reports, in any language.

    python -m data_pipelines.train_tokenizer --shards=SHARDS --out=tokenizer.model

SHARDS are one or more folders of prepared shards. The same reports give the same file. Train with
`--config.data.tokenizer=tokenizer.model` and a `config.model.text.vocab_size` of at least the
number of pieces that is printed.
"""

from absl import flags

from data_pipelines import command_line


def define_flags() -> None:
    flags.DEFINE_list("shards", None, "Folders that data_pipelines.prepare wrote.", required=True)
    flags.DEFINE_string("split", "train", "Split of the shards.")
    flags.DEFINE_string("out", None, "A .model file to write.", required=True)
    flags.DEFINE_integer("vocab_size", 8000, "Largest number of pieces.", lower_bound=1)


command_line.parse(__name__, define_flags)

from etils import epath

from data_pipelines.errors import InputError
from data_pipelines.reports import report_text
from data_pipelines.shards import read_reports
from data_pipelines.tokenizers import load_tokenizer, train_sentencepiece


def main() -> None:
    values = flags.FLAGS
    path = values.out
    if epath.Path(path).suffix != ".model":
        raise InputError(f"--out: got {path}, expected a file that ends with .model")
    rows = [row for folder in values.shards for row in read_reports(folder, values.split)]
    texts = (report_text(row["findings"], row["impressions"]) for row in rows)
    train_sentencepiece(texts, path, values.vocab_size)
    print(f"{path}: {load_tokenizer(path).vocab_size} pieces")


if __name__ == "__main__":
    command_line.run(main)
