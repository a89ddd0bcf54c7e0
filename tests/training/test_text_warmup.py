"""Text warm-up: the pairs become closer, and only the text tower changes."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ctclip_jax.common.sharding import MeshConfig, make_mesh
from ctclip_jax.training import text_warmup
from ctclip_jax.training.processes import Preemption
from tests.tiny_run import tiny_config

WORDS, LENGTH = 16, 4


@dataclasses.dataclass(frozen=True)
class BagOfWords:
    """The text tower's interface with a mean of word embeddings behind it."""

    dropout: float = 0.0

    def encode_text(self, variables, input_ids, attention_mask, *, dropout_keys):
        embedding = variables["params"]["text"]["embed"]["word"]["embedding"]
        words = embedding[input_ids] * attention_mask[..., None]
        if self.dropout:
            shape = words.shape[1:]
            kept = jax.vmap(lambda key: jax.random.bernoulli(key, 1 - self.dropout, shape))
            words *= kept(dropout_keys)
        latents = words.mean(axis=1) @ variables["params"]["text_projection"]["kernel"]
        return latents / jnp.linalg.norm(latents, axis=-1, keepdims=True)


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


def mesh():
    return make_mesh(MeshConfig(data=-1, fsdp=1))


def test_warmup_trains_only_the_text_tower(tmp_path, monkeypatch):
    batches = (pairs() for _ in range(40))
    monkeypatch.setattr(text_warmup, "text_pair_loader", lambda *_, **__: batches)
    warmup = {"steps": 40, "batch_size": 8, "learning_rate": 0.1, "temperature": 12.0}
    changes = {f"text_warmup.{name}": value for name, value in warmup.items()}
    before = variables()
    after = text_warmup.warm_up_text(
        before,
        tiny_config(tmp_path, log_every=10, **changes),
        model=BagOfWords(),
        mesh=mesh(),
        tokenizer=None,
        workdir=tmp_path,
        preemption=Preemption(),
    )
    metrics = (tmp_path / "text_warmup" / "metrics.jsonl").read_text().splitlines()
    lines = [json.loads(line) for line in metrics]
    assert [line["step"] for line in lines] == [10, 20, 30, 40]
    assert lines[-1]["accuracy"] == 1.0 and lines[-1]["loss"] < 0.1
    assert jax.tree.structure(after) == jax.tree.structure(before)
    for name in ("image_projection", "temperature"):
        assert after["params"][name] is before["params"][name]
    assert after["codebook"] is before["codebook"]
    for name in text_warmup.TRAINABLE:
        pairs_of_arrays = zip(
            *(jax.tree.leaves(side["params"][name]) for side in (before, after)), strict=True
        )
        assert not all(np.allclose(a, b, rtol=0.05) for a, b in pairs_of_arrays), name
    jax.tree.map(np.testing.assert_array_equal, before, variables())


def test_dropout_of_the_warmup_changes_with_the_step():
    """Nothing is trained, so that two steps differ only by their dropout."""
    model = BagOfWords(dropout=0.5)
    losses = frozen_losses(model, counts=(0, 0, 1))
    assert losses[0] == losses[1] != losses[2]


def test_the_text_tower_knows_the_mesh(monkeypatch):
    """Which decides its kernels."""
    meshes, encode_text = [], BagOfWords.encode_text

    def spy(*args, **kwargs):
        meshes.append(jax.sharding.get_abstract_mesh())
        return encode_text(*args, **kwargs)

    monkeypatch.setattr(BagOfWords, "encode_text", spy)
    frozen_losses(BagOfWords(), counts=(0,))
    assert meshes == [mesh().abstract_mesh]


def frozen_losses(model, *, counts):
    """The losses of steps with these counts, which train nothing."""
    key = jax.random.key(0)
    step = text_warmup.make_warmup_step(model, optax.set_to_zero(), key, mesh())
    trainable = {name: variables()["params"][name] for name in text_warmup.TRAINABLE}
    trainable["log_scale"] = jnp.float32(1.0)
    batch = {name: jnp.asarray(column) for name, column in pairs().items()}
    opts = ({"count": jnp.int32(count)} for count in counts)
    return [float(step(trainable, opt, batch)[2]["loss"]) for opt in opts]
