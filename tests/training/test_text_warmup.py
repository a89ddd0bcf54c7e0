"""The text tower learns alone: the pairs become closer and nothing else moves."""

import dataclasses
import itertools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.training.config import TextWarmupConfig
from ctclip_jax.training.metric_writer import MetricWriter
from ctclip_jax.training.preemption import Preemption
from ctclip_jax.training.step_log import StepLog
from ctclip_jax.training.text_warmup import warm_up

WORDS, LENGTH = 16, 4


@dataclasses.dataclass(frozen=True)
class BagOfWords:
    """The text tower's interface with a mean of word embeddings behind it."""

    def encode_text(self, variables, input_ids, attention_mask, *, dropout_keys):
        words = self.text_hidden_states(
            variables, input_ids, attention_mask, dropout_keys=dropout_keys
        )
        latents = words.mean(axis=1) @ variables["params"]["text_projection"]["kernel"]
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)

    def text_hidden_states(self, variables, input_ids, attention_mask, *, dropout_keys):
        """Every word is read with those around it."""
        embedding = variables["params"]["text"]["embed"]["word"]["embedding"]
        words = embedding[input_ids] * attention_mask[..., None]
        return words + words.mean(axis=1, keepdims=True)


def variables() -> dict:
    rng = np.random.default_rng(0)
    return {
        "params": {
            "text": {
                "embed": {
                    "word": {"embedding": jnp.asarray(rng.normal(size=(WORDS, 8)), jnp.float32)}
                }
            },
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
        "first_ids": findings,
        "first_mask": mask,
        "second_ids": findings + 8,
        "second_mask": mask,
    }


def masked() -> dict[str, np.ndarray]:
    """The second word of each text is hidden; its neighbors are the same word."""
    texts = pairs()
    first = texts["first_ids"].copy()
    first[:, 1] = WORDS - 1
    return texts | {"first_ids": first, "second_ids": texts["first_ids"]}


@pytest.mark.parametrize(
    ("objective", "batch", "trained"),
    [
        ("matched_sentences", pairs(), ("text", "text_projection")),
        ("masked_words", masked(), ("text",)),
    ],
)
def test_the_text_tower_learns_and_the_rest_stays(objective, batch, trained, tmp_path):
    mesh = make_mesh(MeshConfig(data=-1, fsdp=1))
    before = variables()
    writer = MetricWriter(tmp_path, step=0)
    log = StepLog(writer, name="text warm-up", unit="reports", steps=40, batch_size=8, log_every=10)
    after = warm_up(
        before,
        itertools.repeat(batch),
        model=BagOfWords(),
        config=TextWarmupConfig(
            steps=40,
            batch_size=8,
            learning_rate=0.1,
            temperature=12.0,
            max_length=LENGTH,
            objective=objective,
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
    changed = {
        name
        for name in ("text", "text_projection")
        if not jax.tree.all(
            jax.tree.map(
                lambda a, b: np.allclose(a, b, rtol=0.05),
                after["params"][name],
                variables()["params"][name],
            )
        )
    }
    assert changed == set(trained)
    jax.tree.map(np.testing.assert_array_equal, before, variables())
