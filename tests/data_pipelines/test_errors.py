"""Errors of all kinds in one line."""

import errno
import os

import pytest

from data_pipelines.errors import InputError, one_line, printable, warn

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


def test_control_characters_never_reach_the_terminal(capsys):
    name = "a\x1b[2J\r\n\x9b\u202ecod.nii\udcfcö\u3000\u200b"
    escaped = r"a\x1b[2J\r\n\x9b\u202ecod.nii\udcfc" + "ö\u3000" + r"\u200b"
    assert printable(name) == str(InputError(name)) == escaped
    assert one_line(InputError("x\x1b[2J\u202e.nii")) == r"x\x1b[2J\u202e.nii"
    warn(name)
    warn(name)
    assert capsys.readouterr().err == f"warning: {escaped}\n"
