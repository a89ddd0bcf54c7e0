"""Batched inference: the device is never without work while the host reads results."""

import jax
import numpy as np

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.inference.batching import ProgressBar, map_batches, one_ahead


def test_the_next_item_is_made_before_one_is_used():
    events = []

    def make():
        for item in range(3):
            events.append(f"make {item}")
            yield item

    for item in one_ahead(make()):
        events.append(f"use {item}")
    assert events == ["make 0", "make 1", "use 0", "make 2", "use 1", "use 2"]
    assert list(one_ahead([])) == []


class Result:
    """Stands for an array that a device computes; reading it is an event."""

    def __init__(self, value, events):
        self.value, self.events = value, events

    def __array__(self, dtype=None, copy=None):
        self.events.append("read")
        return np.array(self.value, dtype)


def test_batches_are_dispatched_before_the_one_before_is_read():
    """And their results are in order, without the rows that fill up the last batch."""
    events = []
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1), devices=jax.devices()[:2])

    def compute(x):
        events.append("compute")
        return {"double": Result(2 * x, events)}

    rows = np.arange(10.0).reshape(5, 2)
    result = map_batches(compute, mesh, rows, batch_size=2)
    assert events == ["compute", "compute", "read", "compute", "read", "read"]
    np.testing.assert_array_equal(result["double"], 2 * rows)


def test_a_bar_says_what_comes_before_the_first_batch(capsys):
    with ProgressBar(2, unit="scan") as bar:
        assert "reading, compiling:   0%" in capsys.readouterr().err
        bar.update()
        bar.refresh()
        line = capsys.readouterr().err.split("\r")[-1]
        assert " 50%" in line and "compiling" not in line
