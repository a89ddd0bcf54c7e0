"""Laps, waits that count only while the devices are free, and the time left."""

import datetime
from concurrent.futures import Future

import pytest

from ctclip_jax.training import step_clock
from ctclip_jax.training.step_clock import Lap, StepClock


class Time:
    """A clock that stands, and the moments at which the devices become free."""

    def __init__(self):
        self.now = 0.0
        self.free = Future()

    def submit(self, function, outputs):
        self.free = Future()
        return self.free


@pytest.fixture
def time(monkeypatch):
    time = Time()
    monkeypatch.setattr("time.perf_counter", lambda: time.now)
    monkeypatch.setattr(step_clock, "ThreadPoolExecutor", lambda *a, **k: time)
    return time


def test_the_first_tick_starts_the_clock_and_a_pause_is_no_part_of_a_lap(time):
    clock = StepClock()
    time.now = 100.0
    clock.tick(1)
    assert clock.lap(1) is None
    time.now = 110.0
    clock.tick(6)
    assert clock.lap(6) == Lap(steps=5, seconds=10.0, waited=0.0)
    clock.stop()
    assert clock.lap(6) is None
    time.now = 500.0
    clock.tick(7)
    time.now = 504.0
    assert clock.lap(9) == Lap(steps=2, seconds=4.0, waited=0.0)


def test_waiting_counts_while_the_devices_are_free(time):
    clock = StepClock()
    clock.tick(1)
    clock.busy_until("outputs of step 2")
    with clock.waiting():
        time.now = 10.0
    clock.busy_until("outputs of step 3")
    with clock.waiting():
        time.now = 15.0
        time.free.set_result(12.0)
    assert clock.lap(3) == Lap(steps=2, seconds=15.0, waited=3.0)
    with clock.waiting():
        time.now = 19.0
    assert clock.lap(4) == Lap(steps=1, seconds=4.0, waited=4.0)


def test_waiting_before_the_start_does_not_count(time):
    clock = StepClock()
    with clock.waiting():
        time.now = 5.0
    clock.busy_until("outputs of step 1")
    time.free.set_result(6.0)
    with clock.waiting():
        time.now = 8.0
    clock.tick(1)
    time.now = 9.0
    assert clock.lap(2).waited == 0.0


def test_the_time_left_counts_pauses_and_only_the_steps_of_this_process(time):
    clock = StepClock()
    clock.tick(1001)
    time.now = 10.0
    clock.lap(1011)
    clock.stop()
    time.now = 20.0
    assert clock.left(1011, steps=1031) == datetime.timedelta(seconds=40)


def test_what_a_device_raises_is_not_swallowed(time):
    clock = StepClock()
    clock.busy_until("outputs")
    time.free.set_exception(RuntimeError("a chip is lost"))
    with pytest.raises(RuntimeError, match="a chip is lost"), clock.waiting():
        pass
