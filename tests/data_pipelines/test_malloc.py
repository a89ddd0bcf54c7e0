import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
FAULTS_OF_A_LARGE_ARRAY_THE_SECOND_TIME = """
import resource
import sys
import numpy as np
from data_pipelines.malloc import LARGE_BYTES, keep_large_blocks

if sys.argv[1] == "keep":
    keep_large_blocks()
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


def test_large_arrays_are_taken_from_memory_that_is_there():
    assert faults("keep") < 100 < 1000 < faults("give back")
