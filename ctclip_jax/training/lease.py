"""The lease of a run on its workdir: one run at a time trains there.

WORKDIR/.lease-N names the process that created it, and counts its heartbeats. Once that process has
released it or is dead, the next run creates N + 1. A file can be created only once, also on shared
disks and in buckets; nothing else is needed, neither a common clock nor the locks of
`data_pipelines.files.locked`, which such disks lack, or keep after their host has gone.
"""

import json
import os
import socket
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from jax.experimental import multihost_utils

from data_pipelines.errors import InputError, one_line, warn
from data_pipelines.files import make_folder

BEAT_SECONDS = 5.0
SILENCE_SECONDS = 30.0  # after which a process of another machine, which we cannot see, is dead


class Lease:
    """Held from its creation to `release`, by the first process of a run for all of them."""

    def __init__(self, workdir: Path, *, is_holder: bool = True):
        """Raises InputError if another run trains in `workdir`, or it cannot be written."""
        self._workdir, self._number, refusal = workdir, 0, ""
        self._is_released = threading.Event()
        if is_holder:
            try:
                self._acquire()
            except InputError as error:
                refusal = str(error)
        # One that failed alone would leave the others waiting for it.
        if np.any(multihost_utils.process_allgather(np.array(bool(refusal)))):
            raise InputError(refusal or f"{workdir}: process 0 cannot train here")

    def check(self) -> None:
        """Raises InputError if another run has taken over, because this one stood still."""
        if self._number and self._number != _newest(self._workdir):
            raise InputError(f"{self._workdir}: another run took over while this one stood still")

    def release(self) -> None:
        """Its file stays, so that the number is never used again."""
        if self._number:
            self._is_released.set()
            self._thread.join()
            self._write(released=True)

    def _acquire(self) -> None:
        make_folder(self._workdir)
        while not self._number:
            newest = _newest(self._workdir)
            path = _path(self._workdir, newest)
            if newest and (holder := _living_holder(path)):
                raise InputError(f"{self._workdir}: another process trains here ({holder})")
            try:
                _path(self._workdir, newest + 1).touch(exist_ok=False)
                self._number = newest + 1
            except FileExistsError:
                continue  # another run was faster
            except OSError as error:
                cause = one_line(error)
                raise InputError(f"{self._workdir}: cannot be written ({cause})") from error
        self._record = {**_myself(), "host": socket.gethostname(), "beat": 0}
        self._write()
        self._thread = threading.Thread(target=self._beat, name="lease", daemon=True)
        self._thread.start()
        # The one before stays: a run that lists the folder right now sees one of the two.
        for number in range(self._number - 2, 0, -1):
            if not _path(self._workdir, number).exists():
                break
            _path(self._workdir, number).unlink(missing_ok=True)

    def _beat(self) -> None:
        while not self._is_released.wait(BEAT_SECONDS):
            self._write(beat=self._record["beat"] + 1)

    def _write(self, **changes: Any) -> None:
        self._record |= changes  # its text never gets shorter
        try:
            # Not created anew: a run that has taken over may have deleted it.
            with _path(self._workdir, self._number).open("r+") as file:
                file.write(json.dumps(self._record))
        except OSError:  # a disk that is full, or away for a moment, does not end the run here
            pass


def _living_holder(path: Path) -> str:
    """Host and pid of the process that holds a lease; "" if it has released it or is dead."""
    record, myself = _read(path), _myself()
    holder = f"host {record.get('host')}, pid {record.get('pid')}"
    if record.get("released"):
        return ""
    if record.get("machine") == myself["machine"]:
        started = _start_time(record["pid"])
        if started is None:
            return ""
        if started == record["started"]:
            return holder
        # Another process has its pid by now, or the clock was set.
    warn(f"{path}: not released by {holder}; waiting {SILENCE_SECONDS:.0f} s for its heartbeat")
    deadline = time.monotonic() + SILENCE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(BEAT_SECONDS / 5)
        if (current := _read(path)) != record:
            return "" if current.get("released") else holder
    return ""


def _myself() -> dict[str, Any]:
    """This process, and its machine: host, boot and process namespace, in which a pid counts."""
    machine = [socket.gethostname()]
    if os.path.exists("/proc/self/ns/pid"):  # Linux
        boot_id = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        machine += [boot_id, os.readlink("/proc/self/ns/pid")]
    return {"machine": machine, "pid": os.getpid(), "started": _start_time(os.getpid())}


def _start_time(pid: int) -> float | None:
    """When a process of this machine started (s); None if it does not run."""
    try:
        process = psutil.Process(pid)
        return None if process.status() == psutil.STATUS_ZOMBIE else process.create_time()
    except psutil.Error:
        return None


def _path(workdir: Path, number: int) -> Path:
    return workdir / f".lease-{number}"


def _newest(workdir: Path) -> int:
    """The number of the newest lease; 0 without any."""
    texts = [path.name.removeprefix(".lease-") for path in workdir.glob(".lease-*")]
    return max((int(text) for text in texts if text.isdecimal()), default=0)


def _read(path: Path) -> dict[str, Any]:
    """The record of a lease; {} while its process writes it, or was killed before."""
    try:
        return dict(json.loads(path.read_text()))
    except (OSError, TypeError, ValueError):
        return {}
