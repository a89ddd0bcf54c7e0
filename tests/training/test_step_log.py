"""What is written of a step: metrics one step late, speed, norms by tower, steps not finite."""

import json
import types
from concurrent.futures import Future

import jax
import numpy as np
import pytest

from ctclip_jax.training import step_clock
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.step_log import StepLog, norms_by_tower, not_finite, peak_memory

FINE = {"loss": np.float32(1.0), "gradient_norm": np.float32(1.0)}
BAD = {"loss": np.float32(np.nan), "gradient_norm": np.float32(1.0)}


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def make_log(folder, *, log_every=1, steps=9, **options) -> StepLog:
    writer = MetricWriter(folder, step=0)
    return StepLog(
        writer, name="step", unit="volumes", steps=steps, batch_size=8, log_every=log_every,
        **options
    )  # fmt: skip


class AtOnce:
    """An executor of devices that are always done."""

    def submit(self, function, outputs):
        future = Future()
        future.set_result(function(outputs))
        return future


@pytest.fixture
def now(monkeypatch):
    """[the time in seconds], for a test to move."""
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    monkeypatch.setattr(step_clock, "ThreadPoolExecutor", lambda *args, **names: AtOnce())
    return now


def test_metrics_are_read_one_step_late(tmp_path, capsys):
    log = make_log(tmp_path, steps=4, log_every=2)
    for step in (1, 2, 3, 4):
        log.add(step, {**FINE, "loss": np.float32(step)}, {})
        assert [line["step"] for line in lines(tmp_path)] == ([2] if step > 2 else [])
    log.flush()
    assert [line["loss"] for line in lines(tmp_path)] == [2.0, 4.0]
    assert capsys.readouterr().out.startswith("step 2/4  loss 2.0000")


def test_speed_is_that_of_volumes_and_of_model_flops(tmp_path):
    peak = 1e12
    log = make_log(tmp_path, step_flops=4e12, peak_flops=peak)
    for step in (1, 2):
        log.add(step, FINE, {})
    log.flush()
    first, second = lines(tmp_path)
    assert set(first) == {"step", *FINE}, "no speed before there is a lap"
    rate = second["volumes_per_second"] / 8  # steps per second
    per_device = 4e12 * rate / jax.device_count()
    assert second["tflops_per_second_per_device"] == pytest.approx(per_device / 1e12)
    assert second["mfu"] == pytest.approx(per_device / peak)
    assert second["data_wait"] == 0.0


def test_without_a_known_peak_there_is_no_utilisation(tmp_path):
    log = make_log(tmp_path, step_flops=4e12)
    for step in (1, 2):
        log.add(step, FINE, {})
    log.flush()
    assert "tflops_per_second_per_device" in lines(tmp_path)[1]
    assert "mfu" not in lines(tmp_path)[1]


def test_batches_come_as_they_are_asked_for(tmp_path):
    source = iter(range(9))
    timed = make_log(tmp_path).timed(source)
    assert [next(timed), next(timed)] == [0, 1]
    assert next(source) == 2, "none is taken ahead: a checkpoint keeps the place of the source"


def test_the_line_on_the_terminal_is_short(tmp_path, capsys, now):
    log = make_log(tmp_path, steps=100, step_flops=4e12, peak_flops=1e12)
    log.add(1, FINE, {})
    log.add(2, FINE, {})
    now[0] = 2.0
    log.add(3, {**FINE, "skipped_steps": np.float32(2.0)}, {})
    now[0] = 4.0
    log.flush()
    assert capsys.readouterr().out.splitlines() == [
        "step 1/100  loss 1.0000",
        "step 2/100  loss 1.0000  4.0 volumes/s  mfu 25%  0:03:16 left",
        "step 3/100  loss 1.0000  2 skipped  4.0 volumes/s  mfu 25%  0:03:14 left",
    ]


def test_waiting_for_data_is_written_and_told(tmp_path, capsys, now):
    def slow():
        while True:
            now[0] += 1.0
            yield

    log = make_log(tmp_path)
    timed = log.timed(slow())
    for step in (1, 2, 3, 4):
        next(timed)
        now[0] += 3.0
        log.add(step, FINE, {})
    assert [line.get("data_wait") for line in lines(tmp_path)] == [None, 0.25, 0.25]
    assert "volumes/s  25% waiting for data  0:00:" in capsys.readouterr().out


def test_norms_are_those_of_a_tower():
    norms = {"image/a/kernel": 3.0, "image/b": 4.0, "image_projection/kernel": 2.0}
    assert norms_by_tower({**norms, "temperature": 1.0}) == {
        "gradient_norm/image": 5.0,
        "gradient_norm/image_projection": 2.0,
        "gradient_norm/temperature": 1.0,
    }


def test_memory_is_that_of_the_fullest_device(monkeypatch):
    assert peak_memory() == {}, "a CPU does not count"
    peaks = [1 * 2**30, 3 * 2**30, 2 * 2**30]
    devices = [
        types.SimpleNamespace(memory_stats=lambda peak=peak: {"peak_bytes_in_use": peak})
        for peak in peaks
    ]
    monkeypatch.setattr(jax, "local_devices", lambda: devices)
    assert peak_memory() == {"peak_memory_gib": 3.0}


def test_what_is_not_finite_is_named():
    norms = {"a/kernel": np.float32(1.0), "b/kernel": np.float32(np.nan)}
    assert not_finite({"loss": 1.0, "gradient_norm": 1.0}, norms) == []
    scalars = {"loss": np.inf, "gradient_norm": 1.0}
    assert not_finite(scalars, norms) == ["loss", "gradient of b/kernel"]


def test_the_first_step_that_is_not_finite_stops_the_run(tmp_path):
    log = make_log(tmp_path)
    log.add(3, BAD, {"a/kernel": np.float32(np.nan)})
    with pytest.raises(FloatingPointError, match="^step 3: not finite: loss, gradient of a/kernel"):
        log.flush()
    assert lines(tmp_path) == []


def test_only_so_many_steps_in_a_row_may_be_skipped(tmp_path):
    log = make_log(tmp_path, max_skipped=2)
    for step, metrics in enumerate((BAD, BAD, FINE, BAD, BAD, BAD), start=1):
        log.add(step, metrics, {})
    assert [line["loss"] for line in lines(tmp_path)] == [None, None, 1.0, None, None]
    with pytest.raises(FloatingPointError, match=r"^step 6: not finite: loss \(3 steps in a row"):
        log.flush()
