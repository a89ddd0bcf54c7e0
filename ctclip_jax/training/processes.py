"""Several processes that train one model: the switch --distributed of main.py."""

import re

import jax

from data_pipelines.errors import InputError

USAGE = "wanted 'auto' or HOST:PORT,PROCESSES,INDEX with INDEX from 0 to PROCESSES - 1"


def start(switch: str) -> None:
    """Joins this process with the others; must come before anything asks jax for its devices.

    Args:
      switch: '' for a process alone; 'auto' on a TPU pod, under SLURM and under Open MPI, where jax
        finds the others (and takes one GPU for each process of a host);
        'HOST:PORT,PROCESSES,INDEX' anywhere: the address of process 0, how many, which this is.

    Raises:
      InputError: another switch, or 'auto' where jax finds no cluster.
    """
    if not switch:
        return
    if switch != "auto":
        jax.distributed.initialize(*parse(switch))
        return
    try:
        jax.distributed.initialize()
    except ValueError as error:  # "coordinator_address should be defined."
        raise InputError(
            f"--distributed=auto: no TPU pod, SLURM or Open MPI found; {USAGE}"
        ) from error


def parse(switch: str) -> tuple[str, int, int]:
    """Returns (address of process 0, processes, index of this one).

    Raises:
      InputError: something else than HOST:PORT,PROCESSES,INDEX.
    """
    found = re.fullmatch(r"(\S+:\d+),(\d+),(\d+)", switch)
    if not found or not int(found[3]) < int(found[2]):
        raise InputError(f"--distributed={switch}: {USAGE}")
    return found[1], int(found[2]), int(found[3])
