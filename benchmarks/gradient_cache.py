"""Memory of a step on a global batch of 256 in micro-batches of 4, against a step on a batch of 4.

    python -m benchmarks.gradient_cache [--topology=v5p:2x2x1]

The published model at full size, compiled and not run: here in float32 for one device, or for each
of the TPUs of a topology in bfloat16. Both are what `main.py --dry_run` says of the programs: their
arguments, temporaries and results, the moments of Adam, and the next micro-batch on its way.
"""

import jax
from absl import flags

from benchmarks import measure
from configs import ct_clip
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.accelerators import GIB
from ctclip_jax.cost.dry_run import StepReport, step_report, topology_devices
from ctclip_jax.training.config import TrainConfig
from data_pipelines.errors import run_main

BATCH, MICRO_BATCH = 256, 4  # of a device
TOPOLOGY = flags.DEFINE_string("topology", "", "TPUs that are not there; '' is the CPU.")


def report(batch_size: int, micro_batch_size: int, *, topology: str) -> StepReport:
    """Of the step of configs/ct_clip.py, the sizes being those of a device."""
    devices = len(topology_devices(topology)) if topology else jax.device_count()
    config = ct_clip.get_config()
    config.batch_size = devices * batch_size
    config.micro_batch_size = devices * micro_batch_size
    config.model.remat = "full"
    config.model.dtype = "bfloat16" if topology else "float32"
    return step_report(from_dict(TrainConfig, config.to_dict()), topology=topology)


def main() -> None:
    topology = TOPOLOGY.value
    plain = report(MICRO_BATCH, 0, topology=topology)
    cached = report(BATCH, MICRO_BATCH, topology=topology)
    suffix = f"_{topology.split(':')[0]}" if topology else ""
    measure.save(
        f"gradient_cache{suffix}",
        {
            "plain_gib": round(plain.needs / GIB, 3),
            "cached_gib": {n: round(each.needs / GIB, 3) for n, each in cached.programs.items()},
            "ratio": round(cached.needs / plain.needs, 3),
        },
    )


if __name__ == "__main__":
    run_main(main)
