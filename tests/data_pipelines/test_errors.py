"""Errors of all kinds in one line."""

import errno
import os
import re
import subprocess
import sys

import pytest

from data_pipelines.errors import InputError, one_line, parse_slice, printable, warn

TRACEBACK = "Error:\nTraceback (most recent call last):\n  File x, line 1\nValueError: no: such\n"


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "/a/file"), "No space left on device"),
        (OSError("no number"), "no number"),
        (KeyError("'learning_rat' is unknown"), "'learning_rat' is unknown"),
        (ValueError("two\n  lines"), "two lines"),
        (ValueError(""), "ValueError"),
        (ValueError(TRACEBACK), "no: such"),
        (ValueError("word " * 100), "word " * 59 + "[...]"),
        (InputError("word " * 100 + "end"), "word " * 100 + "end"),
    ],
)
def test_one_line(error, line):
    assert one_line(error) == line


@pytest.mark.parametrize(
    "after",
    [
        "[os_error_code='27']",
        """[tensorstore_spec='{\\"create\\":true,\\"path\\":\\"k5/\\"}'] [os_error_code='27']""",
        """[os_error_code='27'] [tensorstore_spec='{\\"create\\":true}']""",
    ],
)
def test_cause_in_an_error_of_tensorstore(after):
    message = f'OUT_OF_RANGE: Error opening "zarr" driver: Failed to write: File too large {after}'
    assert one_line(ValueError(message)) == "File too large"


def test_parse_slice():
    assert parse_slice("2/3") == (2, 3)
    for text in ("3/3", "-1/3", "1", "a/b", ""):
        with pytest.raises(InputError, match="--task: got"):
            parse_slice(text)


PROGRAM = """
from ml_collections import config_flags
from data_pipelines.errors import run_main
config_flags.DEFINE_config_file("config", lock_config=True)
run_main(lambda: None)
"""


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ("--config.optim.learning_rat=1", "error: .*learning_rat"),
        ("--config.optim.learning_rate=fast", "error: flag .*learning_rate=fast"),
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


def test_control_characters_never_reach_the_terminal(capsys):
    name = "a\x1b[2J\r\n\x9b\u202ecod.nii\udcfcö\u3000\u200b"
    escaped = r"a\x1b[2J\r\n\x9b\u202ecod.nii\udcfc" + "ö\u3000" + r"\u200b"
    assert printable(name) == str(InputError(name)) == escaped
    assert one_line(InputError("x\x1b[2J\u202e.nii")) == r"x\x1b[2J\u202e.nii"
    warn(name)
    warn(name)
    assert capsys.readouterr().err == f"warning: {escaped}\n"
