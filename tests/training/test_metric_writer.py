"""Metric writer: metrics.jsonl and TensorBoard event files."""

import errno
import json
import math
import os
import struct

import pytest
from tensorboardX.proto.event_pb2 import Event

from ctclip_jax.training.metric_writer import MetricWriter
from data_pipelines.errors import InputError


def lines(folder) -> list[dict]:
    return [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]


def events(folder) -> list[Event]:
    """The events of a folder with one event file (records: length, crc, bytes, crc)."""
    (path,) = folder.glob("events.*")
    data, parsed = path.read_bytes(), []
    while data:
        (length,) = struct.unpack("<Q", data[:8])
        parsed.append(Event.FromString(data[12 : 12 + length]))
        data = data[16 + length :]
    return parsed


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


def test_line_is_on_disk_when_the_call_returns(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    writer.write_scalars(1, {"loss": 1.0})
    assert len(lines(tmp_path)) == 1
    writer.close()


def test_resuming_drops_lines_after_the_step(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    for step in (1, 2, 3):
        writer.write_scalars(step, {"loss": float(step)})
    writer.close()
    with (tmp_path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 4, "lo')
    MetricWriter(tmp_path, step=2).close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2]


def test_is_writer_false_writes_no_file(tmp_path):
    writer = MetricWriter(tmp_path / "run", step=0, is_writer=False)
    writer.write_hparams({"a": 1})
    writer.write_scalars(1, {"loss": 1.0})
    writer.close()
    assert not (tmp_path / "run").exists()


def test_non_finite_values_are_null(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    writer.write_scalars(1, {"loss": math.nan, "gradient_norm": math.inf, "temperature": 2.0})
    writer.close()
    (line,) = (tmp_path / "metrics.jsonl").read_text().splitlines()
    assert line == '{"step": 1, "loss": null, "gradient_norm": null, "temperature": 2.0}'


def test_repeated_evaluation_is_not_written_twice(tmp_path):
    writer = MetricWriter(tmp_path, step=0)
    for step in (1, 2):
        writer.write_scalars(step, {"loss": 1.0})
        writer.write_scalars(step, {"evaluation/auroc": 0.5})
    writer.close()
    MetricWriter(tmp_path, step=2).close()
    assert len(lines(tmp_path)) == 4
    MetricWriter(tmp_path, step=2, is_evaluated=False).close()
    assert lines(tmp_path)[-1] == {"step": 2, "loss": 1.0} and len(lines(tmp_path)) == 3


def test_full_disk_is_an_input_error(tmp_path, monkeypatch):
    class Full:
        def write(self, line: str) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    writer = MetricWriter(tmp_path, step=0)
    monkeypatch.setattr(writer, "_lines", Full())
    with pytest.raises(InputError, match="metrics not written .*No space left on device"):
        writer.write_scalars(1, {"loss": 1.0})


def test_resuming_drops_what_a_power_failure_leaves(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(
        b'{"step": 1, "loss": 1.0}\n\0\0\0\0{"step": 2, "loss": 2.0}\n{"st\n[3]\n\xff\n' + bytes(64)
    )
    writer = MetricWriter(tmp_path, step=5)
    writer.write_scalars(6, {"loss": 6.0})
    writer.close()
    assert [line["step"] for line in lines(tmp_path)] == [1, 2, 6]
