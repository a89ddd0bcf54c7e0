"""metrics.jsonl, event files and the progress line."""

import json
import struct

import numpy as np
import pytest
from tensorboardX.proto.event_pb2 import Event

from ctclip_jax.metric_writer import MetricWriter, Progress, StepLog, check_finite


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder) -> list[Event]:
    """The events of a folder with one event file (records: length, crc, bytes, crc)."""
    (path,) = folder.glob("events.*")
    data, found = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        found.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return found


def test_scalars_reach_both_files(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    writer.write_hparams({"model/dim": 64, "loss": "softmax", "rules": ()})
    writer.write_scalars(1, {"loss": 0.1})
    writer.close()
    assert lines(tmp_path) == [{"step": 1, "loss": 0.1}]
    values = {value.tag: event for event in events(tmp_path) for value in event.summary.value}
    assert values["loss"].step == 1
    assert values["loss"].summary.value[0].simple_value == pytest.approx(0.1)
    assert "_hparams_/session_start_info" in values


def test_a_line_is_on_disk_when_the_call_returns(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    writer.write_scalars(1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1
    writer.close()


def test_continuing_drops_what_lies_beyond_the_step(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    MetricWriter(tmp_path, step=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_a_process_that_does_not_write_leaves_no_file(tmp_path):
    writer = MetricWriter(tmp_path / "run", step=0, writes=False)
    writer.write_hparams({"a": 1})
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_progress_line(monkeypatch):
    clock = iter([100.0, 101.0, 101.0])
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    progress = Progress("step", steps=100, batch_size=4, unit="volumes")
    progress.tick(1)
    rate = progress.lap(11)
    assert progress.line(11, loss=2.0, rate=rate) == (
        "step 11/100  loss 2.0000  40.0 volumes/s  0:00:09 left"
    )


def test_metrics_are_read_one_step_late(tmp_path, capsys):
    writer = MetricWriter(tmp_path, step=0)
    log = StepLog(writer, name="step", unit="volumes", steps=4, batch_size=8, log_every=2)
    for step in (1, 2, 3, 4):
        log.add(step, {"loss": np.float32(step), "gradient_norm": np.float32(1.0)}, {})
        assert [line["step"] for line in lines(tmp_path)] == ([2] if step > 2 else [])
    log.flush()
    assert [line["loss"] for line in lines(tmp_path)] == [2.0, 4.0]
    assert capsys.readouterr().out.startswith("step 2/4  loss 2.0000")


def test_what_is_not_finite_is_named():
    norms = {"a/kernel": np.float32(1.0), "b/kernel": np.float32(np.nan)}
    check_finite(3, {"loss": 1.0, "gradient_norm": 1.0}, norms)
    with pytest.raises(FloatingPointError, match=r"^step 3: not finite: loss, .* of b/kernel$"):
        check_finite(3, {"loss": np.inf, "gradient_norm": 1.0}, norms)
