"""Task runners: a process pool on this machine, or Apache Beam (requirements-beam.txt)."""

import concurrent.futures
import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from data_pipelines import shard_tasks
from data_pipelines.errors import InputError, one_line
from data_pipelines.shard_tasks import Task

_BAR = "{l_bar}{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def run_in_pool(tasks: Sequence[Task], *, processes: int, split: str) -> None:
    """Runs tasks in worker processes, with a progress bar.

    The first error, also a worker that dies, ends the run after the tasks that are under way."""
    # Forked from a clean server: no imports per worker, no threads of this process in them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([shard_tasks.__name__])
    num_cases, num_skipped = sum(len(task.cases) for task in tasks), 0
    bar = tqdm(total=num_cases, desc=split, unit=" volumes", smoothing=0, bar_format=_BAR)
    workers = concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_die_with_parent
    )
    with workers as pool, bar:
        try:
            futures = {pool.submit(shard_tasks.run, task): len(task.cases) for task in tasks}
            for future in concurrent.futures.as_completed(futures):
                num_skipped += futures[future] - future.result()
                bar.set_postfix(skipped=num_skipped, refresh=False)
                bar.update(futures[future])
        except BrokenProcessPool:
            raise InputError(
                "a worker process died, possibly out of memory; finished shards are kept: run again"
                " with fewer --processes"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """A worker would otherwise wait forever, or go on writing, after this process is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)


def run_on_beam(tasks: Sequence[Task], *, runner: str, options: Sequence[str]) -> None:
    """Runs tasks on a Beam runner, whose workers write a shard each; `options` are Beam's own."""
    try:
        import apache_beam
        from apache_beam.options.pipeline_options import PipelineOptions
    except ImportError:
        raise InputError(
            f"--runner={runner}: Apache Beam is not installed; install requirements-beam.txt into"
            " an environment of its own"
        ) from None
    arguments = [f"--runner={runner}", *options]
    try:
        with apache_beam.Pipeline(options=PipelineOptions(arguments)) as pipeline:
            work = pipeline | apache_beam.Create(tasks) | apache_beam.Reshuffle()
            work | apache_beam.Map(shard_tasks.run)
    except Exception as error:  # each runner has its own exceptions
        cause = one_line(error)
        raise InputError(f"--runner={runner}: {cause}; finished shards are kept") from error
