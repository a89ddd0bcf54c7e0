"""The command `ctclip`: lists and starts programs, completes them and their flags."""

import resource
import subprocess
import sys

import pytest

from data_pipelines import command_line

PROGRAMS = command_line.programs()
CTCLIP = [sys.executable, "-m", "ctclip_jax"]


def run(*arguments: str) -> subprocess.CompletedProcess:
    return subprocess.run([*CTCLIP, *arguments], capture_output=True, text=True)


def test_help_lists_all_programs():
    result = run("--help")
    assert result.returncode == 0
    lines = [line.split(maxsplit=1) for line in result.stdout.splitlines() if line.strip()]
    summaries = dict(words for words in lines if words[0] in PROGRAMS)
    assert summaries == {name: program.summary for name, program in PROGRAMS.items()}
    assert len(PROGRAMS) == 15 and all(text.endswith(".") for text in summaries.values())


def test_help_imports_nothing_slow():
    command = [sys.executable, "-X", "importtime", *CTCLIP[1:], "--help"]
    lines = subprocess.run(command, capture_output=True, text=True).stderr.splitlines()
    modules = {line.rpartition("|")[2].strip() for line in lines}
    assert "ctclip_jax" in modules and not modules & {"jax", "numpy", "orbax", "ml_collections"}


def test_help_takes_little_of_a_cpu():
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert run("-h").returncode == 0
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime < 0.7  # seconds


@pytest.mark.parametrize("name", ["predict", "prepare", "demo", "phantoms"])
def test_program_runs_as_with_python(name):
    command = [sys.executable, "-m", PROGRAMS[name].module, "--nonsuch"]
    expected = subprocess.run(command, capture_output=True, text=True)
    result = run(name, "--nonsuch")
    assert (result.returncode, result.stderr) == (expected.returncode, expected.stderr)


def test_unknown_program():
    result = run("predcit", "scan.nii.gz")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr == "error: predcit: unknown program; did you mean predict?\n"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["pre"], ["predict", "prepare"]),
        (["predict", "--he"], ["--heatmaps", "--help"]),
        (["train", "--dry"], ["--dry_run"]),
        (["train", "--config.steps", "3", "--c"], ["--config"]),
        (["predict", "--model", ""], []),  # files
        (["predict", "pre"], []),
    ],
)
def test_completion(words, expected):
    script = f"""{run("--completion").stdout}
    COMP_WORDS=(ctclip {" ".join(words)}) COMP_CWORD={len(words)}
    _ctclip
    printf "%s\\n" "${{COMPREPLY[@]}}"
    """
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True)
    assert result.stdout.split() == expected
