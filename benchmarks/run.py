"""All benchmarks but the long ones, then the tables of the docs: `python -m benchmarks.run`."""

from benchmarks import (
    chaos,
    encode,
    evaluation,
    exactness,
    full_size_detection,
    full_size_weights,
    gradient_cache,
    loader,
    preparation,
    retrieval,
    tables,
    train_step,
    two_epochs,
)
from data_pipelines import command_line


def main() -> None:
    full_size = (full_size_weights, full_size_detection)
    data = (preparation, loader, two_epochs)
    training = (encode, train_step, gradient_cache, chaos)
    for benchmark in (exactness, *full_size, *data, evaluation, retrieval, *training):
        benchmark.main()
    tables.main()


if __name__ == "__main__":
    command_line.run(main)
