"""Config flags: files by path or by name, from any folder, with overrides."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PROGRAM = """
from data_pipelines import command_line, config_files

def define_flags():
    config_files.define("config", {default!r}, help="")

command_line.parse(__name__, define_flags)

def main():
    config = config_files.read("config")
    print(config.get("steps"), config.get("folds"))

command_line.run(main)
"""


def read(folder: Path, *arguments: str, default: str | None = "evaluation") -> str:
    """`steps` and `folds` of the config that a program in another folder reads, or its error."""
    command = [sys.executable, "-c", PROGRAM.format(default=default), *arguments]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=environment)
    return (result.stdout + result.stderr).strip()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "None 5"),
        (["--config.folds=3"], "None 3"),
        (["--config=evaluation:report", "--config.folds=3"], "None 3"),
        (["--config=ct_clip"], "100001 None"),
        (["--config=ct_clip:smoke"], "4 None"),
        (["--config=lora:smoke", "--config.steps=7"], "7 None"),
        (["--config=configs/phantoms.py"], "4200 None"),
        ([f"--config={ROOT / 'configs' / 'phantoms.py'}:smoke"], "4 None"),
    ],
)
def test_config_by_path_and_by_name(arguments, expected, tmp_path):
    assert read(tmp_path, *arguments) == expected


OWN = """
from configs import {base}

def get_config():
    config = {base}.get_config()
    config.steps += 1
    return config
"""


def test_own_config_builds_on_ours_and_on_its_neighbors(tmp_path):
    (tmp_path / "a.py").write_text(OWN.format(base="phantoms"))
    (tmp_path / "b.py").write_text(OWN.format(base="a"))
    assert read(tmp_path, "--config=b.py") == "4202 None"


def test_a_name_is_never_a_file_of_the_working_directory(tmp_path):
    (tmp_path / "evaluation").write_text("raise SystemExit('executed')")
    assert read(tmp_path) == "None 5"


def test_missing_config(tmp_path):
    message = read(tmp_path, default=None)
    assert message.startswith("error: --config: missing; expected a file or one of class_fine, ")


@pytest.mark.parametrize("name", ["ct_clp", "configs/absent.py", "absent.py"])
def test_absent_config(name, tmp_path):
    message = read(tmp_path, f"--config={name}")
    assert message.startswith(f"error: --config={name}: no such file")
    assert "one of class_fine, ct_clip, " in message and "\n" not in message
