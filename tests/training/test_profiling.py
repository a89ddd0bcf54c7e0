"""Profile window: the traced steps, and traces that Perfetto and XProf can read."""

import gzip
import json

import jax
import jax.numpy as jnp
import pytest

from ctclip_jax.training.profiling import ProfileWindow


@jax.jit
def double(x):
    with jax.named_scope("doubling"):
        return jnp.sin(x) * 2.0


def run(folder, window, *, steps=range(1, 7)) -> list[str]:
    """Takes `steps` with a window; returns the calls of `pause`."""
    paused, state = [], jnp.ones(8)
    with ProfileWindow(window, folder, pause=lambda: paused.append("pause")) as profile:
        for step in steps:
            profile.start(step, state)
            with jax.profiler.StepTraceAnnotation("train", step_num=step):
                state = double(state)
            profile.stop(step, state)
    return paused


def traced_steps(folder) -> list[int]:
    (path,) = folder.rglob("perfetto_trace.json.gz")
    trace = json.loads(gzip.decompress(path.read_bytes()))
    assert "metadata" not in trace, "Perfetto rejects it"
    events = [event for event in trace["traceEvents"] if event.get("name") == "train"]
    assert all(event["ph"] == "X" and event["dur"] > 0 for event in events)
    return sorted(int(event["args"]["step_num"]) for event in events)


def test_only_the_steps_of_the_window_are_traced(tmp_path):
    assert run(tmp_path, (3, 4)) == ["pause"]
    assert traced_steps(tmp_path) == [3, 4]
    (path,) = tmp_path.rglob("*.xplane.pb")
    assert b"doubling" in path.read_bytes(), "operations carry the names of their scopes"


@pytest.mark.parametrize("steps", [range(1, 4), range(4, 7)])
def test_run_that_starts_or_ends_inside_the_window_traces_its_steps(tmp_path, steps):
    run(tmp_path, (2, 5), steps=steps)
    assert traced_steps(tmp_path) == [step for step in steps if 2 <= step <= 5]


def test_trace_is_written_after_an_error(tmp_path):
    with pytest.raises(FloatingPointError), ProfileWindow((1, 9), tmp_path, pause=list) as profile:
        profile.start(1, None)
        raise FloatingPointError
    assert traced_steps(tmp_path) == []


@pytest.mark.parametrize(("window", "steps"), [((0, 0), range(1, 4)), ((2, 3), range(4, 7))])
def test_no_window_or_a_past_one_writes_no_trace(tmp_path, window, steps):
    assert run(tmp_path / "profile", window, steps=steps) == []
    assert not (tmp_path / "profile").exists()
