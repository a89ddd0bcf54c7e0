"""The batches of a run: this process's stream, and what a saved position in it depends on."""

from collections.abc import Sequence

import grain
import jax
import numpy as np
from jax.sharding import Mesh

from ctclip_jax.common.sharding import local_batch_size, put_batch
from ctclip_jax.training.config import TrainConfig
from data_pipelines import loader
from data_pipelines.shards import preparation
from data_pipelines.tokenizers import Tokenizer


def train_batches(
    config: TrainConfig, mesh: Mesh, tokenizer: Tokenizer, latents: Sequence[np.ndarray] = ()
) -> grain.DatasetIterator:
    """Returns this process's endless batches; `latents` per folder replace the volumes.

    They are on the devices, PUT_AHEAD of them before they are used; micro-batches are on the host,
    because the step puts each of them twice.
    """
    data, loss = config.data, config.loss

    def put(batch: dict[str, np.ndarray]) -> dict[str, jax.Array]:
        # Waits, so that waiting for a batch in `StepLog.timed` includes its transfer.
        return jax.block_until_ready(put_batch(batch, mesh))

    return loader.train_loader(
        data.folders,
        split=data.split,
        text_sampler=data.text_sampler if loss.reads_texts else None,
        tokenizer=tokenizer,
        max_length=data.max_length,
        patch=config.model.image.patch,
        batch_size=local_batch_size(config.batch_size // config.num_micro_batches, mesh),
        seed=config.seed,
        mixture_weights=data.mixture_weights,
        one_reconstruction_per_scan=data.one_reconstruction_per_scan,
        random_shift_voxels=data.random_shift_voxels,
        with_labels=loss.reads_labels,
        with_volumes=loss.reads_volumes,
        latents=latents,
        process_index=jax.process_index(),
        process_count=jax.process_count(),
        num_workers=data.num_workers,
        ahead=config.num_micro_batches,
        put=put if config.num_micro_batches == 1 else None,
    )


def loader_layout(config: TrainConfig) -> dict[str, int | str | list]:
    """Returns what a saved loader position depends on; `checkpoints.run.check_layout` compares it.

    The position is that of one stream of examples over all processes, cut into batches of
    `batch_size`: devices, mesh and micro-batch size may change, and without workers the number of
    processes too. With workers neither processes nor micro-batches may change, because each worker
    cuts batches from its own share of its process's share of the stream.
    """
    data = config.data
    by_workers = {"micro_batch_size": config.micro_batch_size} if data.num_workers else {}
    return {
        **by_workers,
        "split": data.split,
        "cases": [preparation(folder, data.split)["cases_sha256"] for folder in data.folders],
        "weights": list(data.mixture_weights),
        "one_per_scan": data.one_reconstruction_per_scan,
        "processes": jax.process_count(),
        "workers": data.num_workers,
        "batch_size": config.batch_size,
        "seed": config.seed,
    }
