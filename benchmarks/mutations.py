"""Mutation testing: of small faults put into the code, one at a time, how many do the tests notice?

    pip install cosmic-ray
    python -m benchmarks.mutations --count=200

Cosmic Ray's operators change a comparison, a number, an `and`, ...; COUNT mutants are drawn from
all that it finds in the modules of TESTS. Each is tried in a copy of the working tree, so that the
files here stay as they are. Survivors that change nothing are explained in docs/development.md.
"""

import ast
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from absl import flags

from benchmarks import measure
from data_pipelines import command_line
from data_pipelines.errors import InputError

ROOT = Path(__file__).parents[1]
SEED, TIMEOUT_S = 0, 600
_METRICS = "evaluation/metrics evaluation/test_detection.py evaluation/test_retrieval.py"
METRIC_MODULES = (
    "bootstrap",
    "classification",
    "delong",
    "label_overlap",
    "ranking",
    "reliability",
)
_LOSSES = "training/test_losses.py training/test_step.py"
_PREPARATION = "data_pipelines/test_geometry.py data_pipelines/test_hounsfield.py"
TESTS = {
    "ctclip_jax/training/losses.py": _LOSSES,
    "ctclip_jax/training/pairwise.py": _LOSSES,
    "ctclip_jax/training/step.py": "training/test_step.py training/test_train.py",
    "ctclip_jax/training/gradient_cache.py": "training/test_step.py",
    **{f"ctclip_jax/evaluation/metrics/{name}.py": _METRICS for name in METRIC_MODULES},
    "data_pipelines/hounsfield.py": _PREPARATION,
    "data_pipelines/geometry.py": _PREPARATION,
    "data_pipelines/loader.py": "data_pipelines/test_loader.py",
    "data_pipelines/resample.py": "data_pipelines/test_resample.py data_pipelines/test_prepare.py",
}
"""Modules, and the tests below tests/ that hold them, quick ones first."""

_COUNT = flags.DEFINE_integer("count", 200, "Mutants to try.", lower_bound=1)
_MODULES = flags.DEFINE_list("modules", list(TESTS), "Of TESTS.")


def find_candidates(module: str) -> list[tuple[str, str, int]]:
    """(module, operator, occurrence) of every place that an operator could change."""
    try:
        from cosmic_ray.ast import ast_nodes, get_ast
        from cosmic_ray.plugins import get_operator, operator_names
    except ImportError:
        raise InputError("cosmic-ray is missing; pip install cosmic-ray") from None
    nodes, candidates = list(ast_nodes(get_ast((ROOT / module).read_text()))), []
    for name in operator_names():
        if not get_operator(name).arguments():  # else it does nothing without a configuration
            positions = (get_operator(name)().mutation_positions(node) for node in nodes)
            count = sum(1 for of_node in positions for _ in of_node)
            candidates += [(module, name, occurrence) for occurrence in range(count)]
    return candidates


def mutate(module: str, operator: str, occurrence: int) -> str:
    """The source with one mutation; "" if that is no Python, or differs in annotations only."""
    from cosmic_ray.mutating import mutate_code
    from cosmic_ray.plugins import get_operator

    source = (ROOT / module).read_text()
    mutant = mutate_code(source, get_operator(operator)(), occurrence) or ""
    return mutant if _without_annotations(mutant) not in ("", _without_annotations(source)) else ""


def _without_annotations(source: str) -> str:
    """The syntax tree without type annotations, which change nothing at run time; "" of no Python,
    such as another sign in place of the `*` of a signature."""
    try:
        tree = ast.parse(source)
    except SyntaxError:
        return ""
    for node in ast.walk(tree):
        if isinstance(node, ast.arg | ast.AnnAssign):
            node.annotation = ast.Constant(None)
        elif isinstance(node, ast.FunctionDef):
            node.returns = None
    return ast.dump(tree)


def _changed_line(before: str, after: str) -> str:
    lines = zip(before.splitlines(), after.splitlines(), strict=False)
    return next((f"{a.strip()} -> {b.strip()}" for a, b in lines if a != b), "")


def is_killed(copy: Path, module: str, mutant: str) -> bool:
    """Whether a test fails, or takes too long, with `mutant` in place of the module."""
    original = (copy / module).read_text()
    (copy / module).write_text(mutant)
    tests = [f"tests/{name}" for name in TESTS[module].split()]
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", *tests]
    # Compiled programs are shared by all mutants that do not change them.
    environment = os.environ | {
        "PYTHONPATH": str(copy),
        "JAX_COMPILATION_CACHE_DIR": str(copy / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0.2",
    }
    try:
        run = subprocess.run(
            command, cwd=copy, env=environment, capture_output=True, timeout=TIMEOUT_S
        )
    except subprocess.TimeoutExpired:
        return True
    finally:
        (copy / module).write_text(original)
    return run.returncode != 0


def main() -> None:
    if unknown := [name for name in _MODULES.value if name not in TESTS]:
        raise InputError(f"--modules: unknown module {unknown[0]}; choose from {', '.join(TESTS)}")
    candidates = [place for name in _MODULES.value for place in find_candidates(name)]
    random.Random(SEED).shuffle(candidates)
    tried, survivors = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", "shared")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for module in _MODULES.value:
            if is_killed(copy, module, (copy / module).read_text()):
                raise InputError(f"{module}: its tests fail without any mutation")
        for module, operator, occurrence in candidates:
            if not (mutant := mutate(module, operator, occurrence)):
                continue
            tried[module] += 1
            if not is_killed(copy, module, mutant):
                change = _changed_line((ROOT / module).read_text(), mutant)
                survivors.append(f"{module}: {change}")
                print(f"survived: {survivors[-1]}")
            print(f"{tried.total()} tried, {len(survivors)} survived", flush=True)
            if tried.total() == _COUNT.value:
                break
    measure.save(
        "mutations",
        {
            "tried": dict(tried),
            "killed_percent": round(100 * (1 - len(survivors) / tried.total()), 1),
            "survivors": survivors,
        },
    )


if __name__ == "__main__":
    command_line.run(main)
