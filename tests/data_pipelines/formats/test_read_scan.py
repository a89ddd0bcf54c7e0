"""What read_scan opens, and what it leaves alone."""

import os

import pytest

from data_pipelines.errors import InputError
from data_pipelines.formats import read_scan


def test_pipe_is_refused_and_not_waited_for(tmp_path):
    path = tmp_path / "scan.nii.gz"
    os.mkfifo(path)
    with pytest.raises(InputError, match="scan.nii.gz: not a regular file"):
        read_scan(path)
