"""Imports point down: folder against folder, and every library stays in its place."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PROGRAMS = (
    "calibrate compare convert evaluate export_stablehlo index label_reports predict search train"
)
# Lowest first. Folders of one row do not import each other.
ORDER = (
    "data_pipelines",
    "ctclip_jax/common",
    "ctclip_jax/models",
    "ctclip_jax/checkpoints",
    "ctclip_jax/inference",
    "ctclip_jax/__init__.py",
    "ctclip_jax/evaluation",
    "ctclip_jax/training",
    "ctclip_jax/cost ctclip_jax/reporting ctclip_jax/case_store",
    " ".join(f"ctclip_jax/{name}.py" for name in PROGRAMS.split()) + " ctclip_jax/demo",
    "ctclip_jax/__main__.py main.py",
)
ROW = {place: row for row, places in enumerate(ORDER) for place in places.split()}
FLAG_MODULES = (
    "data_pipelines/command_line.py",
    "data_pipelines/config_files.py",
    "ctclip_jax/__main__.py",
)
IMPORTED_ONLY_BY = {
    "flax": "ctclip_jax/models",
    "orbax": "ctclip_jax/checkpoints",
    "torch": "ctclip_jax/checkpoints/tensor_files.py",
    "wandb": "ctclip_jax/training/metric_writer.py",
    "faiss": "ctclip_jax/case_store",
    "jinja2": "ctclip_jax/reporting",
    "starlette": "ctclip_jax/demo",
    "uvicorn": "ctclip_jax/demo",
    "jax": "ctclip_jax",
    "ctclip_jax": "ctclip_jax",
    "configs": "configs",
    "tests": "",
    "benchmarks": "",
}
FILES = sorted(
    path
    for pattern in ("main.py", "configs/**/*.py", "ctclip_jax/**/*.py", "data_pipelines/**/*.py")
    for path in ROOT.glob(pattern)
)


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def place(file: str) -> str | None:
    """The row's entry that a file belongs to."""
    return next((entry for entry in ROW if f"{file}/".startswith(f"{entry}/")), None)


def imports(path: Path) -> Iterator[tuple[str, str | None]]:
    """(module, file in this repository or None) for all imports, those inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        modules = []
        if isinstance(node, ast.Import):
            modules = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name"
            modules = [f"{node.module}.{alias.name}" for alias in node.names]
        for module in modules:
            yield module, repository_file(module)


def repository_file(module: str) -> str | None:
    parts = module.split(".")
    for length in range(len(parts), 0, -1):
        base = ROOT.joinpath(*parts[:length])
        for file in (base.with_suffix(".py"), base / "__init__.py"):
            if file.exists():
                return name(file)
    return None


@pytest.mark.parametrize("path", FILES, ids=name)
def test_imports_point_down(path):
    here = place(name(path))
    if name(path).startswith("configs/"):
        allowed = ("ml_collections", "configs")
        assert all(module.split(".")[0] in allowed for module, _ in imports(path))
        return
    assert here, f"{name(path)} is in no listed place: a program, or a module of a folder?"
    for module, file in imports(path):
        there = file and place(file)
        if there and there != here and (here, there) != ("ctclip_jax/demo", "ctclip_jax/demo"):
            assert ROW[there] < ROW[here], f"{name(path)} must not import {module}"


@pytest.mark.parametrize("path", FILES, ids=name)
def test_libraries_stay_in_their_places(path):
    for module, _ in imports(path):
        for library, places in IMPORTED_ONLY_BY.items():
            if f"{module}.".startswith(f"{library}."):
                inside = any(f"{name(path)}/".startswith(f"{entry}/") for entry in places.split())
                assert inside, f"{name(path)} must not import {module}"
        flag_modules = ("absl.flags", "data_pipelines.command_line", "data_pipelines.config_files")
        if module.startswith(flag_modules):
            is_program = "\n    command_line.run(main)\n" in path.read_text()
            assert is_program or name(path) in FLAG_MODULES
