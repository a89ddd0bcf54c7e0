"""The command line of all programs: quick help, wrong flags in one line, status 2."""

import re
import subprocess
import sys

import pytest

from data_pipelines import command_line, resample, shard_tasks
from data_pipelines.command_line import parse_slice
from data_pipelines.errors import InputError

PROGRAMS = command_line.programs()
SLOW = {"jax", "orbax", "flax", "tensorflow_datasets", "pandas", "sklearn", "scipy", "matplotlib"}
# At exit: what was imported.
RUN = f"""
import atexit, runpy, sys
sys.argv = sys.argv[1:]
atexit.register(lambda: print("imported:", *{SLOW} & set(sys.modules)))
runpy.run_module(sys.argv[0], run_name="__main__", alter_sys=True)
"""


def start(name: str, *arguments: str) -> subprocess.CompletedProcess:
    """Runs a program; the last line of its output lists the slow libraries that it imported."""
    command = [sys.executable, "-c", RUN, PROGRAMS[name].module, *arguments]
    return subprocess.run(command, capture_output=True, text=True)


@pytest.mark.parametrize("name", PROGRAMS)
def test_help_and_wrong_flags_import_nothing_slow(name):
    result = start(name, "--help")
    assert result.returncode == 0, result.stderr
    assert result.stdout.endswith("\nimported:\n")
    options = re.findall(r"^  --(\w+) ", result.stdout, re.MULTILINE)
    assert options == PROGRAMS[name].flags
    result = start(name, "--nonsuch=1")
    assert (result.returncode, result.stdout) == (2, "imported:\n")
    assert result.stderr.startswith("error: --nonsuch: unknown flag")


@pytest.mark.parametrize(
    ("command", "message"),
    [
        ("search --stroe=x", "--stroe: unknown flag; did you mean --store?"),
        (
            "search --shards=x",
            "--shards: unknown flag; --shards is a flag of calibrate, evaluate, ",
        ),
        ("search --hetmaps=1", "--hetmaps: unknown flag; --heatmaps is a flag of predict"),
        (
            "search --store=x",
            "--model: missing; expected any path that ctclip_jax.load opens; example: python -m"
            " ctclip_jax.search --store=STORE --model=EXPORT --text=",
        ),
        ("phantoms", "--out: missing; expected output folder; "),
    ],
)
def test_wrong_flag_says_what_is_expected(command, message):
    result = start(*command.split())
    assert result.returncode == 2
    assert result.stderr.startswith(f"error: {message}") and result.stderr.count("\n") == 1


def test_choices_are_those_of_the_library():
    choices = re.findall(r"<(.*?)>", start("prepare", "--help").stdout)
    assert {"|".join(resample.GRIDS), "|".join(shard_tasks.MODES)} <= set(choices)


def test_parse_slice():
    assert parse_slice("2/3") == (2, 3)
    for text in ("3/3", "-1/3", "1", "a/b", ""):
        with pytest.raises(InputError, match="--task: got"):
            parse_slice(text)


PROGRAM = """
from ml_collections import config_flags
from data_pipelines import command_line, resample, shard_tasks
config_flags.DEFINE_config_file("config", lock_config=True)
command_line.run(lambda: None)
"""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optim.learning_rat=1", "error: .*learning_rat"),
        ("--config.optim.learning_rate=fast", "error: --config.optim.learning_rate=fast: "),
        ("--wokdir=x", "error: .*wokdir"),
        ("--config.data.shift=1", "error: --config: unknown key 'shift'"),
        ("extra", "error: too many positional arguments; got extra"),
    ],
)
def test_invalid_command_line_is_one_line(argument, message):
    arguments = ["--config=configs/ct_clip.py", argument, "--config.steps=1"]
    command = [sys.executable, "-c", PROGRAM, *arguments]
    result = subprocess.run(command, capture_output=True, text=True)
    assert result.returncode == 2
    assert re.match(message, result.stderr.splitlines()[-1])
    assert "Traceback" not in result.stderr
