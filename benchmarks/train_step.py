"""Training speed: volumes/s, TFLOP/s, share of the matmul peak, memory, time by block.

    python -m benchmarks.train_step
    python -m benchmarks.train_step --size=full --dtype=bfloat16 --batch=8 --remat=dots  # on a GPU
    python -m benchmarks.train_step --only=ours ...   # one model, quickly; printed, not saved

Our CT-ViT, our ViT (which drops half of the patches) and a plain PyTorch model of the same initial
weights are timed in turns: steps in a row on a batch that is on the device, and on batches that
come from the host, ours through the prefetch of the training loop. Blocks forward and backward.
"""

import grain
import jax

from benchmarks import measure, speed
from ctclip_jax.common.shapes import Variables
from ctclip_jax.common.sharding import make_mesh, put_batch
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from data_pipelines import command_line
from data_pipelines.batching import put_ahead


class OurSteps:
    """Our training, step after step on the same batch."""

    def __init__(self, config: TrainConfig, batch: dict):
        mesh, model = make_mesh(config.mesh), CTCLIP(config.model)
        train_step = make_train_step(config, model, mesh)
        self.variables: Variables = jax.jit(model.init)(jax.random.key(config.seed))
        self._state = train_step.init(jax.tree.map(jax.numpy.copy, self.variables))
        # The program that train_step.step calls.
        traced = train_step.trace(abstract_batch(config, mesh))["train_step"]
        self.compiled = traced.lower().compile()
        self._put = lambda batch: jax.block_until_ready(put_batch(batch, mesh))
        self._batch = batch

    def on_device(self, steps: int) -> float:
        """Seconds a step on a batch that stays on the device."""
        batch = self._put(self._batch)
        return measure.seconds_per_step(lambda: self._step(batch), steps, lead=speed.NUM_WARM_UPS)

    def from_host(self, steps: int) -> float:
        """Seconds a step on batches that are put ahead."""
        source = grain.MapDataset.source([self._batch]).repeat().to_iter_dataset()
        batches = iter(put_ahead(source, self._put))
        try:
            step = lambda: self._step(next(batches))  # noqa: E731
            return measure.seconds_per_step(step, steps, lead=speed.NUM_WARM_UPS)
        finally:
            batches.close()

    def _step(self, batch: dict) -> jax.Array:
        self._state, metrics, _ = self.compiled(self._state, batch)
        return metrics["loss"]


def main() -> None:
    config = speed.train_config()
    towers = speed.towers(config)
    steps = {name: OurSteps(tower, speed.random_batch(tower)) for name, tower in towers.items()}
    models = {name: speed.Runs(s.on_device, s.from_host) for name, s in steps.items()}
    rivals = speed.rivals(config, lambda: steps[speed.OURS].variables, gradient=True)
    results = speed.compare(
        models | rivals.models,
        volumes=config.batch_size,
        flops={name: step_flops(tower) for name, tower in towers.items()},
        compiled={name: step.compiled for name, step in steps.items()},
        blocks=rivals.blocks,
    )
    settings = speed.settings(rivals.baselines)
    measure.save("train_step", settings | results, is_complete=not speed.ONLY.value)


if __name__ == "__main__":
    command_line.run(main)
