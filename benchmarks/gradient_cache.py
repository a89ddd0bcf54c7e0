"""Gradient cache: memory of a step on 256 volumes in micro-batches of 4, compared to a step on 4.

    python -m benchmarks.gradient_cache [--topology=v5p:2x2x1]

The published model at full size, compiled and not run: in float32 for one device, or in bfloat16
for the TPUs of a topology. Memory as `main.py --dry_run` reports it: arguments, temporaries and
results of the programs, Adam's moments, and the next micro-batch in transfer.
"""

import jax
from absl import flags

from benchmarks import measure
from configs import ct_clip
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost.accelerators import GIB
from ctclip_jax.cost.step_report import StepReport, step_report
from ctclip_jax.cost.topologies import topology_devices
from ctclip_jax.training.config import TrainConfig
from data_pipelines import command_line

BATCH, MICRO_BATCH = 256, 4  # per device
TOPOLOGY = flags.DEFINE_string("topology", "", "TPUs to compile for; default: the CPU.")


def report(batch_size: int, micro_batch_size: int, *, topology: str) -> StepReport:
    """The compiled step of configs/ct_clip.py; sizes are per device."""
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
            "cached_gib": {n: round(p.needs / GIB, 3) for n, p in cached.programs.items()},
            "ratio": round(cached.needs / plain.needs, 3),
        },
    )


if __name__ == "__main__":
    command_line.run(main)
