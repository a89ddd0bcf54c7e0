"""Timing of steps in a row."""

import pytest

from benchmarks import measure


def test_seconds_per_step_leave_out_the_first_and_wait_for_the_last(monkeypatch):
    """A device that takes 3 s a step, and 100 s for each of the first two."""
    now, done_at, calls = [0.0], [0.0], []

    def step():
        calls.append(len(calls))
        done_at[0] = max(done_at[0], now[0]) + (100.0 if len(calls) <= 2 else 3.0)
        return done_at[0]

    def block_until_ready(done):
        now[0] = max(now[0], done)

    monkeypatch.setattr(measure.jax, "block_until_ready", block_until_ready)
    monkeypatch.setattr(measure.time, "perf_counter", lambda: now[0])
    assert measure.seconds_per_step(step, 5, lead=2) == pytest.approx(3.0)
    assert len(calls) == 7
