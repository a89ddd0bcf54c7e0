"""Volumes to latents: volumes/s, TFLOP/s, share of the matmul peak, memory, and time by block,
beside a plain PyTorch model with the same weights, in turns.

    python -m benchmarks.encode
    python -m benchmarks.encode --size=full --dtype=bfloat16 --batch=8   # on a GPU
"""

from collections.abc import Sequence

import jax
import numpy as np

from benchmarks import blocks, measure, speed
from benchmarks.torch_rivals import rivals
from ctclip_jax.flops import search_flops, volume_flops
from ctclip_jax.models.ct_clip import CTCLIP
from data_pipelines.errors import run_main


def main(argv: Sequence[str]) -> None:
    del argv
    config = speed.train_config()
    model, batch = CTCLIP(config.model), speed.random_batch(config)
    variables = jax.jit(model.init)(jax.random.key(0))
    encode = jax.jit(model.encode_image).lower(variables, batch["image"]).compile()
    others = rivals(config, variables, compiled=speed.COMPILE.value)
    functions = {"ours": lambda: encode(variables, batch["image"])}
    functions |= {name: lambda o=o: o.encode(batch["image"]) for name, o in others.items()}
    seconds = speed.in_turns(functions)
    runs = speed.compared(seconds, config.batch_size)
    flops = config.batch_size * (volume_flops(config.model) + search_flops(config.model))
    latents = {name: np.asarray(function()) for name, function in functions.items()}
    by_block = {"ours": blocks.ours(config.model, variables, batch, gradient=False)}
    by_block |= {n: blocks.theirs(o, batch, gradient=False) for n, o in others.items()}
    measure.save(
        "encode",
        speed.settings(others)
        | {
            "runs": runs,
            **speed.utilization(flops, runs["ours"]["seconds"], speed.matmul_peak()),
            "memory": speed.memory(encode),
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
