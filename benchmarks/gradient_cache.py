"""Memory of a step on a global batch of 256 in micro-batches of 4, against a step on a batch of 4.

    python -m benchmarks.gradient_cache

The published model at full size in float32 with `remat`, compiled for one device, nothing is run.
Of every program it adds what the compiler says (arguments, temporaries, results that do not take
the place of arguments) and what lies in memory beside: the moments of Adam, the gradients, the
latents of all micro-batches, and the next micro-batch on its way.
"""

import math
from collections.abc import Sequence

import jax

from benchmarks import measure
from configs import ct_clip
from ctclip_jax.config import TrainConfig, from_dict
from ctclip_jax.gradient_cache import Program
from ctclip_jax.sharding import make_mesh
from ctclip_jax.train_step import make_learner, make_train_step
from data_pipelines.errors import run_main

BATCH, MICRO_BATCH = 256, 4


def programs(batch_size: int, micro_batch_size: int) -> dict[str, Program]:
    """The programs of a step of configs/ct_clip.py."""
    config = ct_clip.get_config()
    config.update(batch_size=batch_size, micro_batch_size=micro_batch_size)
    config.model.update(remat="full")
    made = from_dict(TrainConfig, config.to_dict())
    mesh = make_mesh(made.mesh, devices=jax.devices()[:1])
    return make_train_step(make_learner(made, mesh)).programs


def bytes_of(tree) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def compiled_bytes(program: Program) -> tuple[int, int]:
    """What a program holds at its worst: (its arguments, what comes on top of them)."""
    analysis = program.function.lower(*program.arguments).compile().memory_analysis()
    new_results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return analysis.argument_size_in_bytes, analysis.temp_size_in_bytes + new_results


def main(argv: Sequence[str]) -> None:
    del argv
    plain = programs(MICRO_BATCH, 0)["train_step"]
    plain_bytes = sum(compiled_bytes(plain))
    cached = programs(BATCH, MICRO_BATCH)
    state, grads, *_ = cached["update"].arguments
    statistics, _, batch = cached["encode"].arguments
    latents = 2 * bytes_of(cached["contrast"].arguments[1])  # and their gradients
    waiting = {
        "encode": bytes_of((state, statistics, batch)) + bytes_of(batch) + latents,
        "contrast": bytes_of((state, statistics)) + latents,
        "backward": bytes_of((state, grads, statistics, batch)) + bytes_of(batch) + latents,
        "update": bytes_of((state, grads, statistics)) + latents,
    }
    peaks = {name: waiting[name] + compiled_bytes(cached[name])[1] for name in cached}
    gib = {name: round(value / 2**30, 3) for name, value in peaks.items()}
    measure.save(
        "gradient_cache",
        {
            "plain_gib": round(plain_bytes / 2**30, 3),
            "cached_gib": gib,
            "ratio": round(max(peaks.values()) / plain_bytes, 3),
        },
    )


if __name__ == "__main__":
    run_main(main)
