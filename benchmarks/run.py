"""All benchmarks, one after the other: `python -m benchmarks.run`, as `make bench` does."""

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
    train_step,
    two_epochs,
)
from data_pipelines.errors import run_main


def main() -> None:
    full_size = (full_size_weights, full_size_detection)
    data = (preparation, loader, two_epochs)
    training = (encode, train_step, gradient_cache, chaos)
    for benchmark in (exactness, *full_size, *data, evaluation, retrieval, *training):
        benchmark.main()


if __name__ == "__main__":
    run_main(main)
