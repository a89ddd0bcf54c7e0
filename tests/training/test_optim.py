"""Optimizer: equal to PyTorch's AdamW; freezing, learning rates and decay by rules."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctclip_jax.training.optim import (
    OptimConfig,
    average_weights,
    clip_by_global_norm,
    learning_rate,
    make_optimizer,
    trainable_params,
    weight_decays,
)

CONFIG = OptimConfig(
    learning_rate=0.1,
    schedule="constant",
    warmup_steps=0,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.5,
    rules=(),
)


def config(**changes) -> OptimConfig:
    return dataclasses.replace(CONFIG, **changes)


def run(config: OptimConfig, params: dict, grads: list[dict]) -> dict:
    """The parameters after one step for each of `grads`."""
    optimizer = make_optimizer(config, len(grads))
    state = optimizer.init(params)
    for grad in grads:
        updates, state = optimizer.update(grad, state, params)
        params = optax.apply_updates(params, updates)
    return params


def some_params(seed: int = 0) -> dict:
    rng = np.random.default_rng(seed)
    draw = lambda *shape: jnp.asarray(rng.normal(size=shape), jnp.float32)  # noqa: E731
    return {"dense": {"kernel": draw(3, 4), "bias": draw(4)}, "blocks": {"norm": draw(2, 4)}}


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_steps_equal_those_of_torch(decay):
    torch = pytest.importorskip("torch")
    params, grads = some_params(), [some_params(seed) for seed in (1, 2, 3)]
    ours = run(config(weight_decay=decay), params, grads)

    theirs = jax.tree.map(lambda leaf: torch.nn.Parameter(torch.tensor(np.array(leaf))), params)
    decayed = [theirs["dense"]["kernel"]]
    plain = [theirs["dense"]["bias"], theirs["blocks"]["norm"]]
    adam = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": decay}, {"params": plain, "weight_decay": 0.0}],
        lr=0.1,
        betas=(0.9, 0.99),
        eps=1e-8,
    )
    for grad in grads:
        for leaf, value in zip(jax.tree.leaves(theirs), jax.tree.leaves(grad), strict=True):
            leaf.grad = torch.tensor(np.array(value))
        torch.nn.utils.clip_grad_norm_(decayed + plain, 0.5)
        adam.step()
    for mine, leaf in zip(jax.tree.leaves(ours), jax.tree.leaves(theirs), strict=True):
        np.testing.assert_allclose(mine, leaf.detach().numpy(), atol=2e-6)


def test_clipping_leaves_small_gradients_alone():
    grads = {"a": jnp.array([0.3, 0.4])}
    np.testing.assert_array_equal(clip_by_global_norm(grads, 1.0)["a"], grads["a"])
    clipped = clip_by_global_norm(grads, 0.1)["a"]
    np.testing.assert_allclose(jnp.linalg.norm(clipped), 0.1, rtol=1e-4)


def test_frozen_parameters_have_no_state_and_no_part_in_the_norm():
    params = some_params()
    frozen_bias = config(rules=(("bias$", 0.0),))
    trained = trainable_params(params, frozen_bias)
    assert set(trained) == set(params) and set(trained["dense"]) == {"kernel"}
    assert "bias" not in make_optimizer(frozen_bias, 1).init(trained)["mu"]["dense"]


def test_first_matching_rule_sets_the_learning_rate():
    params, grads = some_params(), [some_params(1)]
    full = run(config(), params, grads)
    slow = run(config(rules=(("dense/kernel", 0.1), ("dense", 0.5))), params, grads)

    def change(after: dict, name: str) -> jax.Array:
        return after["dense"][name] - params["dense"][name]

    np.testing.assert_allclose(change(slow, "kernel"), 0.1 * change(full, "kernel"), atol=1e-6)
    np.testing.assert_allclose(change(slow, "bias"), 0.5 * change(full, "bias"), atol=1e-6)


def test_stacked_biases_do_not_decay():
    params = {
        "blocks": {"bias": jnp.ones((2, 3)), "kernel": jnp.ones((2, 3, 3))},
        "norm": {"scale": jnp.ones(3)},
        "kernel": jnp.ones((3, 3)),
    }
    expected = {
        "blocks": {"bias": 0.0, "kernel": 0.5},
        "norm": {"scale": 0.0},
        "kernel": 0.5,
    }
    assert weight_decays(params, config(weight_decay=0.5)) == expected


def test_first_matching_rule_sets_the_weight_decay():
    rules = (("dense/kernel", 0.25), ("dense", 9.0))
    decays = weight_decays(some_params(), config(weight_decay=0.4, decay_rules=rules))
    assert decays == {"dense": {"kernel": 0.1, "bias": 0.0}, "blocks": {"norm": 0.0}}


def test_decay_of_the_weight_average_rises_to_its_value():
    average = {"w": jnp.zeros(())}
    for step in range(3):
        average = average_weights(average, {"w": jnp.ones(())}, decay=0.2, step=step)
    decays = np.minimum(0.2, (1 + np.arange(3)) / (10 + np.arange(3)))
    np.testing.assert_allclose(average["w"], 1 - np.prod(decays), rtol=1e-6)


def test_schedules_warm_up_and_decay():
    cosine = learning_rate(config(schedule="cosine", warmup_steps=10), 110)
    np.testing.assert_allclose([cosine(0), cosine(9), cosine(60)], [0.01, 0.1, 0.05], rtol=1e-5)
    assert cosine(110) == pytest.approx(0.0, abs=1e-8)
    constant = learning_rate(config(), 110)
    assert float(constant(0)) == float(constant(109)) == pytest.approx(0.1)
