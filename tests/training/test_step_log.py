"""Step log: metrics one step late, throughput, norms by tower, non-finite steps, step times."""

import datetime
import json
import types
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from ctclip_jax.training import step_log
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.step_log import (
    Lap,
    StepClock,
    StepLog,
    non_finite_names,
    norms_by_tower,
    peak_memory,
)

FINITE = {"loss": np.float32(1.0), "gradient_norm": np.float32(1.0)}
NON_FINITE = {"loss": np.float32(np.nan), "gradient_norm": np.float32(1.0)}


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_log(folder, *, log_every=1, num_steps=9, **options) -> StepLog:
    writer = MetricWriter(folder, step=0)
    return StepLog(
        writer, name="step", unit="volumes", num_steps=num_steps, batch_size=8, log_every=log_every,
        **options
    )  # fmt: skip


class IdleExecutor:
    """Watches devices that are always idle."""

    def submit(self, function, outputs):
        future = Future()
        future.set_result(function(outputs))
        return future


@pytest.fixture
def now(monkeypatch):
    """[time in seconds], which a test moves."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(step_log, "ThreadPoolExecutor", lambda *args, **names: IdleExecutor())
    return now


def test_metrics_are_logged_one_step_late(tmp_path, capsys):
    log = make_log(tmp_path, num_steps=4, log_every=2)
    for step in (1, 2, 3, 4):
        log.add(step, {**FINITE, "loss": np.float32(step)}, {})
        assert [line["step"] for line in lines(tmp_path)] == ([2] if step > 2 else [])
    log.flush()
    assert [line["loss"] for line in lines(tmp_path)] == [2.0, 4.0]
    assert capsys.readouterr().out.startswith("step 2/4  loss 2.0000")


def test_throughput_in_volumes_and_model_flops(tmp_path):
    peak = 1e12
    log = make_log(tmp_path, step_flops=4e12, peak_flops=peak)
    for step in (1, 2):
        log.add(step, FINITE, {})
    log.flush()
    first, second = lines(tmp_path)
    assert set(first) == {"step", *FINITE}, "no speed before there is a lap"
    rate = second["volumes_per_second"] / 8  # steps per second
    per_device = 4e12 * rate / jax.device_count()
    assert second["tflops_per_second_per_device"] == pytest.approx(per_device / 1e12)
    assert second["mfu"] == pytest.approx(per_device / peak)
    assert second["data_wait"] == 0.0


def test_unknown_peak_flops_has_no_mfu(tmp_path):
    log = make_log(tmp_path, step_flops=4e12)
    for step in (1, 2):
        log.add(step, FINITE, {})
    log.flush()
    assert "tflops_per_second_per_device" in lines(tmp_path)[1]
    assert "mfu" not in lines(tmp_path)[1]


def test_timed_batches_are_not_prefetched(tmp_path):
    source = iter(range(9))
    timed = make_log(tmp_path).timed(source)
    assert [next(timed), next(timed)] == [0, 1]
    assert next(source) == 2, "a prefetched batch would be lost by a checkpoint"


def test_printed_line(tmp_path, capsys, now):
    log = make_log(tmp_path, num_steps=100, step_flops=4e12, peak_flops=1e12)
    log.add(1, FINITE, {})
    log.add(2, FINITE, {})
    now[0] = 2.0
    log.add(3, {**FINITE, "skipped_steps": np.float32(2.0)}, {})
    now[0] = 4.0
    log.flush()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/100  loss 1.0000",
        "step 2/100  loss 1.0000  4.0 volumes/s  mfu 25%  0:03:16 left",
        "step 3/100  loss 1.0000  2 skipped  4.0 volumes/s  mfu 25%  0:03:14 left",
    ]


def test_data_wait_is_logged_and_printed(tmp_path, capsys, now):
    def slow():
        while True:
            now[0] += 1.0
            yield

    log = make_log(tmp_path)
    timed = log.timed(slow())
    for step in (1, 2, 3, 4):
        next(timed)
        now[0] += 3.0
        log.add(step, FINITE, {})
    assert [line.get("data_wait") for line in lines(tmp_path)] == [None, 0.25, 0.25]
    assert "volumes/s  25% waiting for data  0:00:" in capsys.readouterr().out


def test_norms_by_tower():
    norms = {"image/a/kernel": 3.0, "image/b": 4.0, "image_projection/kernel": 2.0}
    assert norms_by_tower({**norms, "temperature": 1.0}) == {
        "gradient_norm/image": 5.0,
        "gradient_norm/image_projection": 2.0,
        "gradient_norm/temperature": 1.0,
    }


def test_peak_memory_of_the_fullest_device(monkeypatch):
    assert peak_memory() == {}, "CPU devices have no memory statistics"
    peaks = [1 * 2**30, 3 * 2**30, 2 * 2**30]
    devices = [
        types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak})
        for peak in peaks
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory() == {"peak_memory_gib": 3.0}


def test_non_finite_metrics_and_gradients_are_named():
    norms = {"a/kernel": np.float32(1.0), "b/kernel": np.float32(np.nan)}
    assert non_finite_names({"loss": 1.0, "gradient_norm": 1.0}, norms) == []
    scalars = {"loss": np.inf, "gradient_norm": 1.0}
    assert non_finite_names(scalars, norms) == ["loss", "gradient of b/kernel"]


def test_first_non_finite_step_stops_the_run(tmp_path):
    log = make_log(tmp_path)
    log.add(3, NON_FINITE, {"a/kernel": np.float32(np.nan)})
    with pytest.raises(FloatingPointError, match="^step 3: not finite: loss, gradient of a/kernel"):
        log.flush()
    assert lines(tmp_path) == []


def test_many_non_finite_gradients_are_the_first_and_a_count(tmp_path):
    log = make_log(tmp_path)
    norms = {f"image/{name}/kernel": np.float32(np.nan) for name in "abcd"}
    log.add(3, NON_FINITE, norms | {"text/kernel": np.float32(1.0)})
    with pytest.raises(FloatingPointError) as error:
        log.flush()
    expected = "step 3: not finite: loss, gradient of image/a/kernel and 3 more of 5 gradients"
    assert str(error.value) == expected


def test_max_skipped_limits_consecutive_non_finite_steps(tmp_path):
    log = make_log(tmp_path, max_skipped=2)
    for step, metrics in enumerate(
        (NON_FINITE, NON_FINITE, FINITE, NON_FINITE, NON_FINITE, NON_FINITE), start=1
    ):
        log.add(step, metrics, {})
    assert [line["loss"] for line in lines(tmp_path)] == [None, None, 1.0, None, None]
    with pytest.raises(FloatingPointError, match=r"^step 6: not finite: loss \(3 steps in a row"):
        log.flush()


class FakeTime:
    """A clock that a test moves, and the times at which the devices become free."""

    def __init__(self):
        self.now = 0.0
        self.free = Future()

    def submit(self, function, outputs):
        self.free = Future()
        return self.free


@pytest.fixture
def time(monkeypatch):
    time = FakeTime()
    monkeypatch.setattr("time.perf_counter", lambda: time.now)
    monkeypatch.setattr(step_log, "ThreadPoolExecutor", lambda *a, **k: time)
    return time


def test_lap_excludes_pauses_and_the_time_before_the_start(time):
    clock = StepClock()
    time.now = 100.0
    clock.start(1)
    assert clock.lap(1) is None
    time.now = 110.0
    clock.start(6)
    assert clock.lap(6) == Lap(num_steps=5, seconds=10.0, data_wait_seconds=0.0)
    clock.stop()
    assert clock.lap(6) is None
    time.now = 500.0
    clock.start(7)
    time.now = 504.0
    assert clock.lap(9) == Lap(num_steps=2, seconds=4.0, data_wait_seconds=0.0)


def test_data_wait_counts_only_while_devices_are_idle(time):
    clock = StepClock()
    clock.start(1)
    clock.busy_until("outputs of step 2")
    with clock.waiting_for_data():
        time.now = 10.0
    clock.busy_until("outputs of step 3")
    with clock.waiting_for_data():
        time.now = 15.0
        time.free.set_result(12.0)
    assert clock.lap(3) == Lap(num_steps=2, seconds=15.0, data_wait_seconds=3.0)
    with clock.waiting_for_data():
        time.now = 19.0
    assert clock.lap(4) == Lap(num_steps=1, seconds=4.0, data_wait_seconds=4.0)


def test_data_wait_before_the_start_does_not_count(time):
    clock = StepClock()
    with clock.waiting_for_data():
        time.now = 5.0
    clock.busy_until("outputs of step 1")
    time.free.set_result(6.0)
    with clock.waiting_for_data():
        time.now = 8.0
    clock.start(1)
    time.now = 9.0
    assert clock.lap(2).data_wait_seconds == 0.0


def test_time_left_includes_pauses_and_only_steps_of_this_process(time):
    clock = StepClock()
    clock.start(1001)
    time.now = 10.0
    clock.lap(1011)
    clock.stop()
    time.now = 20.0
    assert clock.time_left(1011, num_steps=1031) == datetime.timedelta(seconds=40)


def test_device_errors_are_raised(time):
    clock = StepClock()
    clock.busy_until("outputs")
    time.free.set_exception(RuntimeError("a chip is lost"))
    with pytest.raises(RuntimeError, match="a chip is lost"), clock.waiting_for_data():
        pass
