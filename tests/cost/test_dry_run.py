"""What `main.py --dry_run` prints, and its exit status."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import pytest

from ctclip_jax.cost import dry_run
from ctclip_jax.cost.step_report import DoesNotFit
from tests.cost.test_step_report import GIB, SMALL, fake_report
from tests.tiny_run import tiny_config

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "main.py", "--config=configs/phantoms.py:smoke"]
CONFIG = tiny_config(Path("absent"), **SMALL)


def test_the_table_has_a_column_for_each_program():
    report = fake_report()
    other = dataclasses.replace(report.programs["step"], runs=1, collectives=())
    both = dataclasses.replace(report, programs=report.programs | {"update": other})
    lines = dry_run.table(both).splitlines()
    assert lines[0].split() == ["step", "update"]
    assert lines[1].split() == ["runs", "of", "a", "step", "2", "1"]
    assert [line.split()[0] for line in lines[2:8]] == list(dry_run.MEMORY)
    assert lines[7].split() == ["needs", "2.75", "GiB", "2.75", "GiB"]
    assert lines[-1].split() == ["all-reduce", "3", "x,", "0.000", "GB", "sent", "-"]


def test_the_prediction_states_its_arithmetic():
    words = dry_run.prediction(fake_report(), CONFIG)
    assert words.startswith("mesh data=8 fsdp=1; a device computes 0.00 TFLOP a step")
    assert "arithmetic 6.000 s" in words and "memory 4.000 s" in words
    assert "10.000 s a step, 0.8 volumes/s at best, 40% of it in collectives" in words
    unknown = dry_run.prediction(fake_report(accelerator=None), CONFIG)
    assert unknown.endswith("no peaks known of this device: no prediction")
    program = dataclasses.replace(fake_report().programs["step"], traffic=math.nan, collectives=())
    unread = dataclasses.replace(fake_report(), programs={"step": program})
    told = dry_run.prediction(unread, CONFIG)
    assert told.endswith("the compiled program cannot be read: no collectives, no prediction")
    assert "nan GB" in dry_run.table(unread)


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [
        (3.0 * GIB, "It fits: needs 2.75 GiB of 3.00 GiB."),
        (2.0 * GIB, "It does not fit: needs 2.75 GiB of 2.00 GiB; take a smaller config.batch"),
        (None, "It needs 2.75 GiB of each device, whose memory is not known."),
    ],
)
def test_the_verdict_is_a_sentence(memory, sentence):
    assert dry_run.verdict(fake_report(memory=memory)).startswith(sentence)


def test_what_the_compiler_refuses_is_a_sentence(monkeypatch, capsys):
    def refuse(config, *, topology):
        raise DoesNotFit("needs 20.00 GiB of 15.75 GiB")

    monkeypatch.setattr(dry_run, "step_report", refuse)
    assert not dry_run.dry_run(CONFIG)
    told = capsys.readouterr().out
    assert told.startswith("It does not fit: needs 20.00 GiB of 15.75 GiB; take a smaller config.")
    assert "config.micro_batch_size" in told and len(told.splitlines()) == 1


def test_a_dry_run_needs_no_data():
    ran = subprocess.run([*COMMAND, "--dry_run"], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 0, ran.stderr
    assert ran.stdout.split()[0] == "train_step"
    assert ran.stdout.splitlines()[-1].startswith("It needs ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:4x4"], "error: --topology: only with --dry_run"),
        ([], "error: --workdir: missing"),
        (["--workdir=gs://bucket/run"], "error: --workdir=gs://bucket/run: mount it, a folder"),
        (["--dry_run", "--config.mesh.fsdp=3"], "error: config.mesh: data=2 x fsdp=3 does not"),
    ],
)
def test_a_wrong_command_line_is_one_clear_line(arguments, message):
    ran = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert ran.returncode == 2
    assert ran.stderr.splitlines()[-1].startswith(message)
