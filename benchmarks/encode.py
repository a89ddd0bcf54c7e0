"""Encoding speed: volumes/s, TFLOP/s, share of the matmul peak, memory, time by block.

    python -m benchmarks.encode
    python -m benchmarks.encode --size=full --dtype=bfloat16 --batch=8   # on a GPU

Our CT-ViT, our ViT and a plain PyTorch model with the same weights are timed in turns.
"""

import jax
import numpy as np

from benchmarks import blocks, measure, speed
from benchmarks.torch_baselines import torch_baselines
from ctclip_jax.common.shapes import Variables
from ctclip_jax.cost.flops import search_flops, volume_flops
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import run_main


class Encoder:
    """The image tower of a model with new weights, compiled for a batch."""

    def __init__(self, config: CTCLIPConfig, volumes: np.ndarray):
        model = CTCLIP(config)
        self.variables: Variables = jax.jit(model.init)(jax.random.key(0))
        self.compiled = jax.jit(model.encode_image).lower(self.variables, volumes).compile()
        self.flops = len(volumes) * (volume_flops(config) + search_flops(config))

    def __call__(self, volumes: np.ndarray) -> jax.Array:
        return self.compiled(self.variables, volumes)


def main() -> None:
    config = speed.train_config()
    batch, towers = speed.random_batch(config), {"ours": config, speed.VIT: speed.with_vit(config)}
    encoders = {name: Encoder(tower.model, batch["image"]) for name, tower in towers.items()}
    variables = encoders["ours"].variables
    others = torch_baselines(config, variables, compiled=speed.COMPILE.value)
    functions = {name: lambda e=e: e(batch["image"]) for name, e in encoders.items()}
    functions |= {name: lambda o=o: o.encode(batch["image"]) for name, o in others.items()}
    latents = {name: np.asarray(function()) for name, function in functions.items()}
    results = speed.compare(
        functions,
        volumes=config.batch_size,
        flops={name: encoder.flops for name, encoder in encoders.items()},
        compiled={name: encoder.compiled for name, encoder in encoders.items()},
        blocks=lambda: (
            {"ours": blocks.ours(config.model, variables, batch, gradient=False)}
            | {name: blocks.theirs(o, batch, gradient=False) for name, o in others.items()}
        ),
    )
    results["largest_difference"] = {
        name: float(np.abs(latents["ours"] - latents[name]).max()) for name in others
    }
    measure.save("encode", speed.settings(others) | results)


if __name__ == "__main__":
    run_main(main)
