"""Training speed: volumes/s, TFLOP/s, share of the matmul peak, memory, time by block.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --size=full --dtype=bfloat16 --batch=8 --remat=dots  # on a GPU

Our CT-ViT, our ViT (which drops half of the patches) and a plain PyTorch model of the same initial
weights are timed in turns; blocks forward and backward.
"""

import jax

from benchmarks import blocks, measure, speed
from benchmarks.torch_baselines import torch_baselines
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from data_pipelines.errors import run_main


class OurSteps:
    """Our training, step after step on the same batch."""

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
    others = torch_baselines(config, variables, compiled=speed.COMPILE.value)
    functions = {name: lambda s=s: s(batch) for name, s in steps.items()}
    functions |= {name: lambda o=o: o.step(batch) for name, o in others.items()}
    results = speed.compare(
        functions,
        volumes=config.batch_size,
        flops={name: step_flops(tower) for name, tower in towers.items()},
        compiled={name: step.compiled for name, step in steps.items()},
        blocks=lambda: (
            {"ours": blocks.ours(config.model, variables, batch, gradient=True)}
            | {name: blocks.theirs(o, batch, gradient=True) for name, o in others.items()}
        ),
    )
    measure.save("train_step", speed.settings(others) | results)


if __name__ == "__main__":
    run_main(main)
