"""The wheel: all programs in an empty folder, in an environment without the clone."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
import tomllib
from pathlib import Path

import pytest

from ctclip_jax.inference.model import SYNTHETIC
from data_pipelines import command_line

ROOT = Path(__file__).parents[1]
PARTS = ("ctclip_jax", "data_pipelines", "configs")
FILES = ("pyproject.toml", "requirements.txt", "README.md", "LICENSE")
TINY = "--shape=24,48,48 --spacing=12,7.5,7.5 --sentencepiece_vocab=300"
# From nothing to predictions. The model has taken four steps: only the files count.
CHAIN = f"""
phantoms --out=data --train_scans=16 --valid_scans=6
prepare --source=phantoms --data=data --out=shards {TINY}
shards verify shards
train --config=phantoms:smoke --workdir=run --config.data.shards=shards
calibrate --model=run --shards=shards --volumes=4
evaluate --model=run --shards=shards --out=evaluation --config.resamples=10
evaluate --from_latents=evaluation --out=again --config.resamples=10
compare evaluation again --config.resamples=10
phantoms --out=scans --samples=1
predict scans/*.nii.gz --model=run --out=predictions --heatmaps=1
index --model=run --shards=shards --store=store
search --model=run --store=store --text=Pneumonia. --k=2
convert --source=run/export --out=weights.safetensors
export_stablehlo --model=run --out=served --platforms=cpu
train_tokenizer --shards=shards --out=lab.model --vocab_size=300
train --config=report_labeler:smoke --workdir=labeler --config.data.shards=shards
label_reports --model=labeler --shards=shards --out=labels
"""


def test_packages_are_all_folders_with_code():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]
    files = [file for part in PARTS for file in (ROOT / part).rglob("*.py")]
    names = {".".join(file.parent.relative_to(ROOT).parts) for file in files}
    in_wheel = {f"ctclip_jax.{name}" if name.startswith("configs") else name for name in names}
    assert set(project["packages"]) == in_wheel


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> Path:
    """An environment with the wheel, and with this one's libraries, but without the clone."""
    source = tmp_path_factory.mktemp("source")
    for part in PARTS:  # a build leaves files beside what it reads
        shutil.copytree(ROOT / part, source / part, ignore=shutil.ignore_patterns("__pycache__"))
    for file in FILES:
        shutil.copy(ROOT / file, source)
    folder = tmp_path_factory.mktemp("environment")
    pip = [sys.executable, "-m", "pip", "--disable-pip-version-check", "--quiet"]
    options = ["--no-deps", "--no-index"]
    build = ["wheel", *options, "--no-build-isolation", f"--wheel-dir={source}", str(source)]
    subprocess.run([*pip, *build], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    (wheel,) = source.glob("*.whl")
    python = f"--python={folder / 'bin' / 'python'}"
    subprocess.run([*pip, python, "install", *options, str(wheel)], check=True)
    # Only the folder: the file in it that would add the clone is read in its own environment alone.
    (packages,) = folder.glob("lib/python*/site-packages")
    (packages / "libraries.pth").write_text(sysconfig.get_path("purelib"))
    return folder


@pytest.mark.slow
def test_every_program_runs_in_an_empty_folder(environment, tmp_path):
    variables = os.environ | {
        "PATH": f"{environment / 'bin'}:{os.environ['PATH']}",
        "XLA_FLAGS": "--xla_backend_optimization_level=0",  # and one device
    }
    variables.pop("PYTHONPATH", None)

    def run(line: str) -> str:
        """What a line in the shell prints, both streams."""
        command = ["bash", "-o", "pipefail", "-c", f"{line} 2>&1"]
        result = subprocess.run(
            command, cwd=tmp_path, env=variables, capture_output=True, text=True
        )
        assert result.returncode == 0, f"{line}\n{result.stdout}"
        return result.stdout

    folder = run("python -c 'import ctclip_jax.configs as c; print(*c.__path__)'").strip()
    assert Path(folder).is_relative_to(environment)
    for name in command_line.programs():
        assert run(f"ctclip {name} --help").startswith(command_line.programs()[name].summary)
    printed = {line.split()[0]: run(f"ctclip {line}") for line in CHAIN.strip().splitlines()}
    assert printed.keys() == command_line.programs().keys() - {"demo"}  # a server: tests/demo
    assert SYNTHETIC in printed["predict"]
    files = "evaluation/report.html predictions/scores.csv store/store.json weights.safetensors"
    files += " served/encode_image.exported lab.model labels/scores.csv"
    assert all((tmp_path / file).exists() for file in files.split())
    assert json.loads((tmp_path / "run" / "config.json").read_text())["steps"] == 4
