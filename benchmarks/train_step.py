"""Training steps: volumes/s, TFLOP/s, share of the matmul peak, memory, and time by block (forward
and backward), beside our ViT, which leaves out half of the patches, and a plain PyTorch model of
the same start, in turns.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --size=full --dtype=bfloat16 --batch=8 --remat=dots  # on a GPU
"""

import jax

from benchmarks import blocks, measure, speed
from benchmarks.torch_rivals import rivals
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from data_pipelines.errors import run_main


class OurSteps:
    """One step of our training after the other, on the same batch."""

    def __init__(self, config: TrainConfig):
        mesh, model = make_mesh(config.mesh), CTCLIP(config.model)
        train_step = make_train_step(config, model, mesh)
        self.variables: Variables = jax.jit(model.init)(jax.random.key(config.seed))
        self._state = train_step.init(jax.tree.map(jax.numpy.copy, self.variables))
        self._step = train_step.step
        traced = train_step.trace(abstract_batch(config, mesh))["train_step"]
        self.compiled = traced.lower().compile()

    def __call__(self, batch: dict) -> float:
        self._state, metrics, _ = self._step(self._state, iter([batch]))
        return float(metrics["loss"])


def main() -> None:
    config = speed.train_config()
    batch, towers = speed.random_batch(config), {"ours": config, speed.VIT: speed.with_vit(config)}
    steps = {name: OurSteps(tower) for name, tower in towers.items()}
    variables = steps["ours"].variables
    others = rivals(config, variables, compiled=speed.COMPILE.value)
    functions = {name: lambda s=s: s(batch) for name, s in steps.items()}
    functions |= {name: lambda o=o: o.step(batch) for name, o in others.items()}
    runs = speed.compared(speed.in_turns(functions), config.batch_size)
    peak = speed.matmul_peak()
    by_block = {"ours": blocks.ours(config.model, variables, batch, gradient=True)}
    by_block |= {name: blocks.theirs(o, batch, gradient=True) for name, o in others.items()}
    measure.save(
        "train_step",
        speed.settings(others)
        | {
            "runs": runs,
            "utilization": {
                name: speed.utilization(step_flops(tower), runs[name]["seconds"], peak)
                for name, tower in towers.items()
            },
            "memory": {name: speed.memory(step.compiled) for name, step in steps.items()},
            "block_milliseconds": {
                name: speed.milliseconds(speed.in_turns(each)) for name, each in by_block.items()
            },
        },
    )


if __name__ == "__main__":
    run_main(main)
