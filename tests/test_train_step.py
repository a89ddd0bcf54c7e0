"""The train step: what moves, sharded equal to unsharded, cached equal to plain, golden steps."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctclip_jax import train_step
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.sharding import make_mesh
from ctclip_jax.trees import flatten
from tests.tiny_run import tiny_config

MODEL = CTCLIPConfig(
    image=CTViTConfig(
        dim=16,
        image_size=(8, 8),
        patch_size=(4, 4),
        frames=4,
        temporal_patch_size=2,
        spatial_depth=1,
        temporal_depth=1,
        heads=2,
        dim_head=8,
        codebook_size=16,
    ),
    text=BertConfig(
        vocab_size=30,
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=16,
        max_positions=8,
        dropout=0.3,
    ),
    dim_latent=8,
)
VOLUMES = 16


def learner(devices: int = 8, model: CTCLIPConfig = MODEL, **changes) -> train_step.Learner:
    defaults = {
        "data.texts": 1,
        "data.max_length": 8,
        "batch_size": VOLUMES,
        "loss.name": "softmax",
    }
    defaults |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0, "quantize_ramp": (0, 0)}
    config = tiny_config(Path("shards"), **(defaults | changes))
    config = dataclasses.replace(config, model=model)
    return train_step.make_learner(config, make_mesh(config.mesh, devices=jax.devices()[:devices]))


def volumes(texts: int = 1, seed: int = 0) -> dict[str, np.ndarray]:
    """A batch of noise with two twins and four normal volumes."""
    rng = np.random.default_rng(seed)
    tokens = (VOLUMES, texts, 8) if texts > 1 else (VOLUMES, 8)
    scan = np.arange(VOLUMES, dtype=np.int32)
    scan[9] = 2
    return {
        "image": rng.integers(-16000, 16000, (VOLUMES, 4, 8, 8), dtype=np.int16),
        "input_ids": rng.integers(0, 30, tokens, dtype=np.int32),
        "attention_mask": np.ones(tokens, np.int32),
        "scan": scan,
        "report": scan,
        "normal": np.arange(VOLUMES) % 4 == 1,
        "seed": rng.integers(2**31, size=VOLUMES, dtype=np.int32),
    }


def parts(batch: dict[str, np.ndarray], count: int) -> list[dict[str, np.ndarray]]:
    size = VOLUMES // count
    return [{n: each[i * size : (i + 1) * size] for n, each in batch.items()} for i in range(count)]


@functools.cache
def variables(model: CTCLIPConfig = MODEL) -> dict:
    return jax.jit(train_step.CTCLIP(model).init)(jax.random.key(0))


# Its state is the gradient, and the parameters stay: what the real optimizer would have been given.
GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def run(learner: train_step.Learner, count: int = 1, batches=()):
    """(state, metrics, gradient norms) after `count` steps, on the host."""
    config = learner.config
    state = train_step.new_state(learner, jax.device_get(variables(config.model)))
    step = train_step.make_train_step(learner)
    for number in range(count):
        batch = batches[number] if batches else volumes(config.data.texts, seed=number)
        state, metrics, norms = step(state, parts(batch, config.micro_batches))
    return jax.device_get((state, metrics, norms))


def assert_same(found, expected, *, rtol=1e-5, atol=1e-6):
    """Every array, relative to the largest entry of its tensor."""
    found, expected = flatten({"": found}), flatten({"": expected})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        scale = np.abs(value).max(initial=0)
        np.testing.assert_allclose(
            found[name], value, rtol=0, atol=rtol * scale + atol, err_msg=name
        )


def moved(after: dict, before: dict) -> dict[str, bool]:
    """Which arrays are not the same to the bit."""
    before = flatten(jax.device_get(before))
    return {name: not np.array_equal(leaf, before[name]) for name, leaf in flatten(after).items()}


def test_a_step_moves_parameters_codebook_and_count():
    state, metrics, norms = run(learner(), 2)
    assert state["step"] == 2
    assert all(moved(state["codebook"], variables()["codebook"]).values())
    assert all(moved(state["params"], variables()["params"]).values())
    assert norms.keys() == flatten(variables()["params"]).keys()
    assert {"loss", "gradient_norm", "learning_rate", "temperature", "skipped_steps"} <= set(
        metrics
    )
    assert 1 < metrics["codebook_perplexity"] <= 16


CASES = {
    "softmax": {},
    "several texts": {"loss.name": "text_to_image", "data.texts": 3},
    "decoupled": {"loss.name": "decoupled", "mesh.fsdp": 8},
    "sigmoid": {"loss.name": "sigmoid", "model.logit_bias": -2.0, "mesh.fsdp": 4},
    "twins, normals, ring": {
        "loss.mask_twins": True,
        "loss.normal_share": 0.3,
        "loss.rows": 1,
        "mesh.fsdp": 2,
    },
    "remat": {"model.remat": True, "mesh.fsdp": 2},
    "locked text": {"optim.rules": (("^text/", 0.0),), "mesh.fsdp": 2},
    "unquantized": {"quantize_ramp": (5, 10)},
}


@pytest.mark.parametrize("case", CASES)
def test_sharded_and_cached_is_plain(case):
    """The gradients, the codebook and the metrics, dropout on."""
    changes = dict(CASES[case])
    fsdp = changes.pop("mesh.fsdp", 1)
    model = {n.removeprefix("model."): changes.pop(n) for n in [*changes] if n.startswith("model.")}
    changes["model"] = dataclasses.replace(MODEL, **model)
    plain = learner(devices=1, **changes)
    sharded = learner(**changes, **{"mesh.fsdp": fsdp})
    cached = learner(**changes, **{"mesh.fsdp": fsdp, "micro_batch_size": 8})
    found = [
        run(dataclasses.replace(each, optimizer=GRADIENT)) for each in (plain, sharded, cached)
    ]
    for state, metrics, _ in found[1:]:
        assert_same(state["opt"], found[0][0]["opt"])
        assert_same(state["codebook"], found[0][0]["codebook"])
        assert_same(metrics, found[0][1])
