"""Volumes to latents: volumes/s, TFLOP/s, share of the matmul peak, memory, and time by block,
beside our ViT and a plain PyTorch model with the same weights, in turns.

    python -m benchmarks.encode
    python -m benchmarks.encode --size=full --dtype=bfloat16 --batch=8   # on a GPU
"""

import jax
import numpy as np

from benchmarks import blocks, measure, speed
from benchmarks.torch_rivals import rivals
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
    others = rivals(config, variables, compiled=speed.COMPILE.value)
    functions = {name: lambda e=e: e(batch["image"]) for name, e in encoders.items()}
    functions |= {name: lambda o=o: o.encode(batch["image"]) for name, o in others.items()}
    seconds = speed.in_turns(functions)
    runs = speed.compared(seconds, config.batch_size)
    latents = {name: np.asarray(function()) for name, function in functions.items()}
    peak = speed.matmul_peak()
    by_block = {"ours": blocks.ours(config.model, variables, batch, gradient=False)}
    by_block |= {n: blocks.theirs(o, batch, gradient=False) for n, o in others.items()}
    measure.save(
        "encode",
        speed.settings(others)
        | {
            "runs": runs,
            "utilization": {
                name: speed.utilization(e.flops, runs[name]["seconds"], peak)
                for name, e in encoders.items()
            },
            "memory": {name: speed.memory(e.compiled) for name, e in encoders.items()},
            "largest_difference": {
                n: float(np.abs(latents["ours"] - latents[n]).max()) for n in others
            },
            "block_milliseconds": {
                name: speed.milliseconds(speed.in_turns(each)) for name, each in by_block.items()
            },
        },
    )


if __name__ == "__main__":
    run_main(main)
