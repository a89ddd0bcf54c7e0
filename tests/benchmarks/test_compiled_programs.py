"""Rows of compiled programs from several runs."""

from benchmarks.compiled_programs import merged


def row(topology: str, program: str, jax: str) -> dict:
    return {"topology": topology, "volumes": 8, "program": program, "jax": jax}


def test_a_run_replaces_its_own_rows_alone():
    old = [row("h200", program, "1") for program in ("encode", "train")]
    new = [row("h100", "train", "2"), row("h200", "train", "2")]
    assert merged(old, new) == [old[0], new[1], new[0]]
