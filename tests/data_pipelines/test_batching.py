"""Page faults of large arrays with and without tune_malloc."""

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS_OF_A_LARGE_ARRAY_THE_SECOND_TIME = """
import resource
import sys
import numpy as np
from data_pipelines.batching import LARGE_BYTES, tune_malloc

if sys.argv[1] == "keep":
    tune_malloc(LARGE_BYTES)
for _ in range(2):
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    np.empty(3 * LARGE_BYTES, np.uint8)[::4096] = 1
print(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)
"""


def faults(how):
    program = [sys.executable, "-c", FAULTS_OF_A_LARGE_ARRAY_THE_SECOND_TIME, how]
    environment = {"NUMPY_MADVISE_HUGEPAGE": "0"}
    result = subprocess.run(program, cwd=ROOT, env=environment, capture_output=True, check=True)
    return int(result.stdout)


def test_memory_of_large_arrays_is_reused():
    assert faults("keep") < 100 < 1000 < faults("give back")
