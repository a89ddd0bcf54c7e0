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
from data_pipelines.errors import InputError, run_main

ROOT = Path(__file__).parents[1]
SEED, TIMEOUT_S = 0, 600
_METRICS = "evaluation/metrics evaluation/test_detection.py evaluation/test_retrieval.py"
TESTS = {
    "ctclip_jax/training/losses.py": "training/test_losses.py training/test_step.py",
    "ctclip_jax/training/pairwise.py": "training/test_losses.py training/test_step.py",
    "ctclip_jax/training/step.py": "training/test_step.py training/test_train.py",
    "ctclip_jax/training/gradient_cache.py": "training/test_step.py",
    "ctclip_jax/evaluation/metrics/bootstrap.py": _METRICS,
    "ctclip_jax/evaluation/metrics/classification.py": _METRICS,
    "ctclip_jax/evaluation/metrics/delong.py": _METRICS,
    "ctclip_jax/evaluation/metrics/label_overlap.py": _METRICS,
    "ctclip_jax/evaluation/metrics/ranking.py": _METRICS,
    "ctclip_jax/evaluation/metrics/reliability.py": _METRICS,
    "data_pipelines/hounsfield.py": "data_pipelines/test_hounsfield.py data_pipelines/test_faults.py",
    "data_pipelines/geometry.py": "data_pipelines/test_geometry.py data_pipelines/test_hounsfield.py",
    "data_pipelines/loader.py": "data_pipelines/test_loader.py",
    "data_pipelines/resample.py": "data_pipelines/test_resample.py data_pipelines/test_prepare.py",
}
"""Modules, and the tests below tests/ that hold them, quick ones first."""

_COUNT = flags.DEFINE_integer("count", 200, "Mutants to try.", lower_bound=1)
_MODULES = flags.DEFINE_list("modules", list(TESTS), "Of TESTS.")


def all_mutants(module: str) -> list[tuple[str, str]]:
    """(line of the change, source) of every mutant that differs in more than annotations."""
    try:
        from cosmic_ray.ast import ast_nodes, get_ast
        from cosmic_ray.mutating import mutate_code
        from cosmic_ray.plugins import get_operator, operator_names
    except ImportError:
        raise InputError("cosmic-ray is missing; pip install cosmic-ray") from None
    source = (ROOT / module).read_text()
    meaning, nodes, mutants = _without_annotations(source), list(ast_nodes(get_ast(source))), []
    for name in operator_names():
        operator_class = get_operator(name)
        if operator_class.arguments():  # it has nothing to do without a configuration
            continue
        operator = operator_class()
        positions = [start for node in nodes for start, _ in operator.mutation_positions(node)]
        for occurrence, (line, _) in enumerate(positions):
            mutant = mutate_code(source, operator, occurrence)
            if mutant and _without_annotations(mutant) != meaning:
                mutants.append((f"{module}:{line} {_changed_line(source, mutant)}", mutant))
    return mutants


def _without_annotations(source: str) -> str:
    """The syntax tree without type annotations, which change nothing at run time."""
    tree = ast.parse(source)
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
    candidates = [(name, *mutant) for name in _MODULES.value for mutant in all_mutants(name)]
    drawn = random.Random(SEED).sample(candidates, min(_COUNT.value, len(candidates)))
    tried, survivors = Counter(), []
    with tempfile.TemporaryDirectory() as folder:
        copy = Path(folder) / "copy"
        ignored = shutil.ignore_patterns(".git", ".venv*", "runs", "__pycache__", "shared")
        shutil.copytree(ROOT, copy, ignore=ignored)
        for module in _MODULES.value:
            if is_killed(copy, module, (copy / module).read_text()):
                raise InputError(f"{module}: its tests fail without any mutation")
        for number, (module, change, mutant) in enumerate(drawn, start=1):
            tried[module] += 1
            if not is_killed(copy, module, mutant):
                survivors.append(change)
                print(f"survived: {change}")
            print(f"{number} of {len(drawn)} tried, {len(survivors)} survived", flush=True)
    measure.save(
        "mutations",
        {
            "candidates": len(candidates),
            "tried": dict(tried),
            "killed_percent": round(100 * (1 - len(survivors) / len(drawn)), 1),
            "survivors": survivors,
        },
    )


if __name__ == "__main__":
    run_main(main)
