"""Tasks on Apache Beam, wherever its runner has workers (requirements-beam.txt)."""

from collections.abc import Sequence

from data_pipelines import shard_tasks
from data_pipelines.errors import InputError
from data_pipelines.shard_tasks import Task


def run(tasks: Sequence[Task], *, runner: str, options: Sequence[str]) -> None:
    """Runs every task, each a shard that its worker writes by itself; `options` are Beam's own.

    Raises InputError if Beam is not installed or its run fails."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError(
            f"--runner={runner}: Apache Beam is not here; install requirements-beam.txt into an "
            "environment of its own"
        ) from None
    arguments = [f"--runner={runner}", *options]
    try:
        with apache_beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            work = pipeline | apache_beam.Create(tasks) | apache_beam.Reshuffle()
            work | apache_beam.Map(shard_tasks.run)
    except Exception as error:  # of whatever kind its runner has
        cause = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"--runner={runner}: {cause}; finished shards are kept") from error
