"""Trains a model: the program `ctclip_jax.train`, from a clone.

python main.py --config=configs/phantoms.py --workdir=WORKDIR [--config.steps=100 ...]
"""

import runpy

if __name__ == "__main__":
    runpy.run_module("ctclip_jax.train", run_name="__main__", alter_sys=True)
