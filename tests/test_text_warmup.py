"""The text tower learns alone: the pairs become closer and nothing else moves."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np

from ctclip_jax.config import TextWarmupConfig
from ctclip_jax.metric_writer import MetricWriter
from ctclip_jax.preemption import Preemption
from ctclip_jax.sharding import MeshConfig, make_mesh
from ctclip_jax.step_log import StepLog
from ctclip_jax.text_warmup import warm_up

WORDS, LENGTH = 16, 4


@dataclasses.dataclass(frozen=True)
class BagOfWords:
    """The text tower's interface with a mean of word embeddings behind it."""

    def encode_text(self, variables, input_ids, attention_mask, *, keys):
        params = variables["params"]
        words = params["text"]["embedding"][input_ids] * attention_mask[..., None]
        latents = words.mean(axis=1) @ params["text_projection"]["kernel"]
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)


def variables() -> dict:
    rng = np.random.default_rng(0)
    return {
        "params": {
            "text": {"embedding": jnp.asarray(rng.normal(size=(WORDS, 8)), jnp.float32)},
            "text_projection": {"kernel": jnp.eye(8, 6)},
            "image_projection": {"kernel": jnp.ones((4, 6))},
            "temperature": jnp.float32(1.0),
        },
        "codebook": {"embed": jnp.ones((2, 3))},
    }


def pairs() -> dict[str, np.ndarray]:
    """Report i uses word i in Findings and word i + 8 in Impressions."""
    findings = np.tile(np.arange(8)[:, None], (1, LENGTH))
    mask = np.ones((8, LENGTH), np.int32)
    return {
        "findings_ids": findings,
        "findings_mask": mask,
        "impressions_ids": findings + 8,
        "impressions_mask": mask,
    }


def test_pairs_become_closer_and_the_rest_stays(tmp_path):
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    before = variables()
    writer = MetricWriter(tmp_path, step=0)
    log = StepLog(writer, name="text warm-up", unit="reports", steps=40, batch_size=8, log_every=10)
    after = warm_up(
        before,
        itertools.repeat(pairs()),
        model=BagOfWords(),
        config=TextWarmupConfig(
            steps=40, batch_size=8, learning_rate=0.1, temperature=12.0, max_length=LENGTH
        ),
        key=jax.random.key(0),
        mesh=mesh,
        log=log,
        preemption=Preemption(),
    )
    writer.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["accuracy"] == 1.0 and lines[-1]["loss"] < 0.1

    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name in ("image_projection", "temperature"):
        assert after["params"][name] is before["params"][name]
    assert after["codebook"] is before["codebook"]
    np.testing.assert_array_equal(
        before["params"]["text"]["embedding"], variables()["params"]["text"]["embedding"]
    )
