"""Tasks in worker processes of this machine, with a progress bar."""

import concurrent.futures
import ctypes
import multiprocessing
import signal
import sys
from collections.abc import Sequence
from concurrent.futures.process import BrokenProcessPool

from tqdm import tqdm

from data_pipelines import shard_tasks
from data_pipelines.errors import InputError
from data_pipelines.shard_tasks import Task

_BAR = "{l_bar}{bar:20}| {n_fmt}/{total_fmt} [{elapsed}<{remaining}, {rate_noinv_fmt}{postfix}]"


def run(tasks: Sequence[Task], *, processes: int, split: str) -> None:
    """Runs every task. The first error ends the run, after the tasks that are under way.

    Raises InputError if a worker dies."""
    # Forked from a clean server: no imports per worker, no threads of this process in them.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([shard_tasks.__name__])
    total, skipped = sum(len(task.cases) for task in tasks), 0
    bar = tqdm(total=total, desc=split, unit=" volumes", smoothing=0, bar_format=_BAR)
    workers = concurrent.futures.ProcessPoolExecutor(
        processes, mp_context=context, initializer=_die_with_parent
    )
    with workers as pool, bar:
        try:
            futures = [pool.submit(shard_tasks.run, task) for task in tasks]
            for future in concurrent.futures.as_completed(futures):
                done = future.result()
                skipped += done.skipped
                bar.set_postfix(skipped=skipped, refresh=False)
                bar.update(done.volumes + done.skipped)
        except BrokenProcessPool:
            raise InputError(
                "a worker process died, perhaps for lack of memory; finished shards are kept: run "
                "again with fewer --processes"
            ) from None
        finally:
            pool.shutdown(wait=True, cancel_futures=True)


def _die_with_parent() -> None:
    """A worker would otherwise wait for ever, or write on, when this process is killed."""
    if sys.platform == "linux":
        pr_set_pdeathsig = 1
        ctypes.CDLL(None).prctl(pr_set_pdeathsig, signal.SIGKILL)
