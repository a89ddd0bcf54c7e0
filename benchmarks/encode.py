"""Encoding speed: volumes/s, TFLOP/s, share of the matmul peak, memory, time by block.

    python -m benchmarks.encode
    python -m benchmarks.encode --size=full --dtype=bfloat16 --batch=8   # on a GPU
    python -m benchmarks.encode --only=ours ...   # one model, quickly; printed, not saved

Our CT-ViT, our ViT and a plain PyTorch model with the same weights are timed in turns, on a batch
that is on the device and on batches that come from the host, the next one while one is computed.
"""

import jax
import numpy as np

from benchmarks import measure, speed
from ctclip_jax.common.shapes import Variables
from ctclip_jax.cost.flops import search_flops, volume_flops
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from data_pipelines import command_line


class Encoder:
    """The image tower of a model with new weights, compiled for a batch."""

    def __init__(self, config: TrainConfig, patches: np.ndarray):
        model = CTCLIP(config.model)
        self.variables: Variables = jax.jit(model.init)(jax.random.key(0))
        self.compiled = jax.jit(model.encode_image).lower(self.variables, patches).compile()
        self.flops = len(patches) * (volume_flops(config.model) + search_flops(config.model))
        self._patches = patches

    def latents(self) -> np.ndarray:
        return np.asarray(self.compiled(self.variables, self._patches))

    def on_device(self, steps: int) -> float:
        """Seconds a batch that stays on the device."""
        patches = jax.device_put(self._patches)
        encode = lambda: self.compiled(self.variables, patches)  # noqa: E731
        return measure.seconds_per_step(encode, steps, lead=speed.NUM_WARM_UPS)

    def from_host(self, steps: int) -> float:
        """Seconds a batch that is put while the one before is computed."""
        encode = lambda: self.compiled(self.variables, jax.device_put(self._patches))  # noqa: E731
        return measure.seconds_per_step(encode, steps, lead=speed.NUM_WARM_UPS)


def main() -> None:
    config = speed.train_config()
    encoders = {
        name: Encoder(tower, speed.random_batch(tower)["image"])
        for name, tower in speed.towers(config).items()
    }
    models = {name: speed.Runs(e.on_device, e.from_host) for name, e in encoders.items()}
    rivals = speed.rivals(config, lambda: encoders[speed.OURS].variables, gradient=False)
    results = speed.compare(
        models | rivals.models,
        volumes=config.batch_size,
        flops={name: encoder.flops for name, encoder in encoders.items()},
        compiled={name: encoder.compiled for name, encoder in encoders.items()},
        blocks=rivals.blocks,
    )
    if rivals.baselines:
        latents, volumes = encoders[speed.OURS].latents(), speed.random_volumes(config)
        results["largest_difference"] = {
            name: float(np.abs(latents - x.encode(volumes)).max())
            for name, x in rivals.baselines.items()
        }
    settings = speed.settings(rivals.baselines)
    measure.save("encode", settings | results, is_complete=not speed.ONLY.value)


if __name__ == "__main__":
    command_line.run(main)
