"""Train step: what it updates; sharded == unsharded, cached == plain; golden steps."""

import dataclasses
from pathlib import Path
from unittest import mock

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from jax.sharding import Mesh

from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.common.trees import flatten
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training import step as step_module
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import (
    TrainStep,
    inference_variables,
    make_train_step,
    quantizer_weight,
)
from tests.fake_clip import FakeCLIP, fake_batch
from tests.models.test_ct_clip import ADAM
from tests.tiny_run import tiny_config

VOLUMES = 16
CLASSIFIER = {"model.num_labels": 18, "model.classifier_dropout": 0.3}


@dataclasses.dataclass(frozen=True)
class Setup:
    """A config with the model and the mesh of its train step."""

    config: TrainConfig
    model: CTCLIP | FakeCLIP
    mesh: Mesh

    def train_step(self) -> TrainStep:
        return make_train_step(self.config, self.model, self.mesh, fake_tokenizer)


def fake_tokenizer(texts: list[str], max_length: int):
    """Prompts of features, as FakeCLIP reads them."""
    del max_length
    return np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32), np.ones((36, 4), int)


def setup(model=None, devices: int = 8, **changes) -> Setup:
    """The fake model unless another one is passed."""
    defaults = {"loss.name": "softmax", "data.texts_per_volume": 1, "batch_size": VOLUMES}
    defaults |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0, "vq_ramp_steps": (0, 0)}
    config = tiny_config(Path("shards"), **(defaults | changes))
    sizes = config.model
    fake = FakeCLIP(sizes.logit_bias, sizes.num_labels, sizes.num_report_labels)
    return Setup(config, model or fake, make_mesh(config.mesh, devices=jax.devices()[:devices]))


def run(setup: Setup, *batches: dict[str, np.ndarray], variables=None):
    """(state, metrics, gradient norms) after a step on each of `batches`, on the host."""
    num_parts = setup.config.num_micro_batches
    train_step = setup.train_step()
    state = train_step.init(jax.device_get(variables or setup.model.init()))
    for batch in batches:
        columns = {name: np.split(column, num_parts) for name, column in batch.items()}
        parts = [{name: column[i] for name, column in columns.items()} for i in range(num_parts)]
        state, metrics, norms = train_step.step(state, iter(parts))
    return jax.device_get((state, metrics, norms))


def changed_arrays(after: dict, before: dict) -> set[str]:
    """Names of the arrays that are not bit-identical."""
    before = flatten(jax.device_get(before))
    return {n for n, leaf in flatten(after).items() if not np.array_equal(leaf, before[n])}


def assert_same(actual, expected):
    """Every array, to 1e-5 of its largest entry.

    What is zero but for rounding, such as the gradient of a bias that a softmax ignores, to 1e-6.
    """
    actual, expected = flatten({"": actual}), flatten({"": expected})
    assert actual.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-5 * max(np.abs(value).max(initial=0), 0.1)
        np.testing.assert_allclose(actual[name], value, rtol=0, atol=tolerance, err_msg=name)


# An optimizer whose state is the gradient, and whose updates are zero.
GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def gradients(setup: Setup, batch, variables=None) -> dict:
    """The gradient of every parameter, the codebook after the step, and the metrics."""
    with mock.patch.object(step_module, "make_optimizer", lambda *_: GRADIENT):
        state, metrics, _ = run(setup, batch, variables=variables)
    return {"gradient": state["opt"], "codebook": state["codebook"], "metrics": metrics}


def test_step_updates_params_codebook_and_count():
    state, metrics, norms = run(setup(), *(fake_batch(VOLUMES, seed=seed) for seed in (0, 1)))
    before = FakeCLIP().init()
    assert state["step"] == 2
    assert changed_arrays(state["codebook"], before["codebook"]) == {"embed", "cluster_size"}
    assert changed_arrays(state["params"], before["params"]) == set(norms)
    assert norms.keys() == flatten(before["params"]).keys()
    assert {"loss", "gradient_norm", "learning_rate", "temperature"} <= set(metrics)
    assert 1 < metrics["codebook_perplexity"] <= 16


def test_frozen_image_tower_freezes_its_codebook():
    state, metrics, norms = run(setup(**{"optim.rules": (("^image", 0.0),)}), fake_batch(VOLUMES))
    before = FakeCLIP().init()
    assert changed_arrays(state["params"], before["params"]) == {"text/kernel", "temperature"}
    assert not changed_arrays(state["codebook"], before["codebook"])
    assert norms.keys() == {"text/kernel", "temperature"}
    squares = sum(float(norm) ** 2 for norm in norms.values())
    assert float(metrics["gradient_norm"]) == pytest.approx(squares**0.5, rel=1e-5)


def test_frozen_text_tower_has_no_dropout():
    locked = setup(**{"optim.rules": (("^text/", 0.0),)})
    batch = fake_batch(VOLUMES)
    other = batch | {"seed": batch["seed"] + 1}
    loss_of = lambda setup, batch: run(setup, batch)[1]["loss"]  # noqa: E731
    assert loss_of(locked, batch) == loss_of(locked, other)
    assert loss_of(setup(), batch) != loss_of(setup(), other)


def test_dropout_keys_differ_by_seed_and_by_volume():
    volumes = jnp.arange(3)
    keys = [jax.random.key_data(step_module.dropout_keys(seed, volumes)) for seed in (0, 1)]
    assert len(np.unique(np.concatenate(keys), axis=0)) == 6


def test_state_keeps_its_shardings():
    sharded = setup(**{"mesh.fsdp": 2})
    train_step = sharded.train_step()
    state = train_step.init(sharded.model.init())
    expected = jax.tree.map(lambda leaf: leaf.sharding, train_step.abstract_state)
    assert not expected["params"]["image_projection"]["kernel"].is_fully_replicated
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == expected
    state, _, _ = train_step.step(state, iter([fake_batch(VOLUMES)]))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == expected


def test_temperature_is_clipped_at_max_temperature():
    free, _, _ = run(setup(), fake_batch(VOLUMES))
    limit = float(np.exp(free["params"]["temperature"])) - 1e-3
    clipped, _, _ = run(setup(**{"loss.max_temperature": limit}), fake_batch(VOLUMES))
    assert np.exp(clipped["params"]["temperature"]) == pytest.approx(limit, rel=1e-6)


def test_inference_variables_are_the_averaged_weights():
    batches = [fake_batch(VOLUMES, seed=seed) for seed in range(3)]
    changes = {"optim.ema": 0.9, "optim.rules": (("^text", 0.0),)}
    states = [run(setup(**changes), *batches[: n + 1])[0] for n in range(3)]
    expected = FakeCLIP().init()["params"]["temperature"]
    for step, state in enumerate(states):
        decay = (1 + step) / (10 + step)
        expected = decay * expected + (1 - decay) * state["params"]["temperature"]
    averaged = inference_variables(states[-1])
    np.testing.assert_allclose(averaged["params"]["temperature"], expected, rtol=1e-6)
    assert "text" not in states[-1]["ema"]
    np.testing.assert_array_equal(
        averaged["params"]["text"]["kernel"], states[-1]["params"]["text"]["kernel"]
    )


@pytest.mark.parametrize("micro_batch_size", [0, 8])
def test_non_finite_step_is_skipped_and_counted(micro_batch_size):
    good, bad = fake_batch(VOLUMES), fake_batch(VOLUMES, seed=1)
    bad["image"][3] = np.nan
    options = {"max_skipped": 2, "optim.ema": 0.9, "micro_batch_size": micro_batch_size}
    skipping = setup(**options)
    state, metrics, _ = run(skipping, good, bad)
    before, _, _ = run(skipping, good)
    assert not np.isfinite(metrics["loss"]) and metrics["skipped_steps"] == 1
    assert changed_arrays(state, before) == {"step", "skipped"}


# Every mesh and every loss at least once; test_losses.py has every loss with all its options on
# several meshes.
MASKED = {"loss.mask_duplicates": True, "loss.normal_target_share": 0.3}
CASES = {
    "softmax": MASKED,
    "several texts": {"loss.name": "text_to_image", "data.texts_per_volume": 3, "mesh.fsdp": 2},
    "sigmoid": MASKED | {"loss.name": "sigmoid", "model.logit_bias": -2.0, "mesh.fsdp": 8},
    "decoupled, duplicates, normals, ring": {
        **MASKED,
        "loss.name": "decoupled",
        "loss.block_size": 1,
        "mesh.fsdp": 4,
    },
    "several texts, normals, ring": {
        "loss.name": "text_to_image",
        "data.texts_per_volume": 3,
        "loss.normal_target_share": 0.3,
        "loss.block_size": 2,
    },
    "locked text": {"optim.rules": (("^text/", 0.0),), "mesh.fsdp": 2},
    "frozen image, fixed temperature": {
        "optim.rules": (("^image", 0.0), ("^temperature", 0.0)),
        "mesh.fsdp": 8,
    },
    "half quantized": {"vq_ramp_steps": (0, 10), "mesh.fsdp": 2},
    "labels": CLASSIFIER
    | {"loss.name": "labels", "loss.positive_weights": tuple(range(1, 19)), "mesh.fsdp": 4},
    "labels beside texts": CLASSIFIER | {"loss.label_weight": 0.5, "mesh.fsdp": 2},
    "prompts": {"loss.name": "prompts", "mesh.fsdp": 4},
    "report labels": {"model.num_report_labels": 18, "loss.name": "report_labels", "mesh.fsdp": 2},
    "adapters": {"lora.rank": 2, "optim.rules": (("^lora/", 1.0), ("", 0.0)), "mesh.fsdp": 2},
    "prompts, locked text": {"loss.name": "prompts", "optim.rules": (("^text/", 0.0),)},
}


@pytest.mark.parametrize("case", CASES)
def test_sharded_and_cached_equal_plain(case):
    """Gradients, codebook and metrics, dropout on."""
    changes = CASES[case]
    batch = fake_batch(VOLUMES, changes.get("data.texts_per_volume", 1))
    if changes.get("loss.name") == "report_labels":
        del batch["image"]
    plain = gradients(setup(devices=1, **changes | {"mesh.fsdp": 1}), batch)
    assert_same(gradients(setup(**changes), batch), plain)
    assert_same(gradients(setup(**changes, micro_batch_size=8), batch), plain)


def test_eight_micro_batches_on_one_device_equal_plain():
    options, batch = {"devices": 1, "loss.mask_duplicates": True}, fake_batch(VOLUMES)
    cached = gradients(setup(**options, micro_batch_size=2), batch)
    assert_same(cached, gradients(setup(**options), batch))


def test_linear_probe_updates_only_the_classifier():
    rules = {"optim.rules": (("^classifier", 1.0), ("", 0.0)), "loss.name": "labels"}
    probe, batch = setup(**CLASSIFIER, **rules), fake_batch(VOLUMES)
    del batch["input_ids"]
    state, _, norms = run(probe, batch, batch)
    before = FakeCLIP(num_labels=18).init()
    assert changed_arrays(state["params"], before["params"]) == set(norms)
    assert set(norms) == {"classifier/kernel", "classifier/bias"}
    assert not changed_arrays(state["codebook"], before["codebook"])


def test_frozen_latents_equal_their_volumes():
    rules = {"optim.rules": (("^classifier", 1.0), ("", 0.0)), "loss.name": "labels"}
    probe, batch = setup(**CLASSIFIER, **rules), fake_batch(VOLUMES)
    latents, _ = probe.model.encode(probe.model.init(), batch, text_dropout_keys=None, quantize=1.0)
    frozen = {name: column for name, column in batch.items() if name not in ("image", "input_ids")}
    frozen["latent"] = np.asarray(latents["image"])
    assert_same(gradients(probe, frozen)["gradient"], gradients(probe, batch)["gradient"])


def test_prompts_have_dropout_only_if_the_text_tower_is_trained():
    prompts = {"loss.name": "prompts"}
    loss_of = lambda setup, *batches: run(setup, *batches)[1]["loss"]  # noqa: E731
    batch, frozen = fake_batch(VOLUMES), {"optim.rules": (("", 0.0),)}
    # Nothing is updated: two steps differ only by their dropout.
    locked = setup(**prompts, **frozen)
    assert loss_of(locked, batch) == loss_of(locked, batch, batch)
    nearly_frozen = setup(
        **prompts, **{"optim.rules": (("^image", 0.0), ("^temperature", 0.0), ("", 1e-12))}
    )
    assert loss_of(nearly_frozen, batch) != pytest.approx(
        loss_of(nearly_frozen, batch, batch), rel=1e-6
    )


def test_several_cached_steps_equal_plain_steps():
    """The optimizer, the averages and the codebook, over steps."""
    batches = [fake_batch(VOLUMES, seed=seed) for seed in range(5)]
    options = {"optim.ema": 0.9, "optim.weight_decay": 0.1}
    plain, *_ = run(setup(devices=1, **options), *batches)
    cached, *_ = run(setup(**options, **{"mesh.fsdp": 4, "micro_batch_size": 8}), *batches)
    for name in ("params", "codebook", "ema"):
        assert_same(cached[name], plain[name])


@pytest.fixture(scope="module")
def real_setup(tiny):
    """The tiny published model with dropout, and a batch of eight volumes for it."""
    model, variables, batch = tiny
    text = dataclasses.replace(model.config.text, dropout=0.3)
    many = {name: np.concatenate([column] * 3)[:8] for name, column in batch.items()}
    # Volumes that differ well: of two alike, rounding would say which is the nearest.
    many["image"] = np.random.default_rng(0).uniform(-1, 1, many["image"].shape).astype("float32")
    return CTCLIP(dataclasses.replace(model.config, text=text)), variables, many | seeds(many)


def seeds(batch) -> dict[str, np.ndarray]:
    return {"seed": np.arange(len(batch["image"]), dtype=np.int32)}


# Unquantized: between two codes of nearly the same distance, rounding would choose. The steps of
# the original (below) are quantized.
REAL = {"batch_size": 8, "vq_ramp_steps": (5, 10)}
CACHED = REAL | {"devices": 4, "micro_batch_size": 4, "mesh.fsdp": 2}


@pytest.fixture(scope="module")
def real_gradients(real_setup) -> dict:
    """Of the plain float32 step on one device."""
    model, variables, batch = real_setup
    return gradients(setup(model, devices=1, **REAL), batch, variables)


def test_real_model_cached_remat_and_sharded_equals_plain(real_setup, real_gradients):
    model, variables, batch = real_setup
    remat = CTCLIP(dataclasses.replace(model.config, remat="full"))
    assert_same(gradients(setup(remat, **CACHED), batch, variables), real_gradients)


def test_bfloat16_cached_and_sharded_is_no_further_from_float32(real_setup, real_gradients):
    model, variables, batch = real_setup
    half = CTCLIP(dataclasses.replace(model.config, dtype="bfloat16"))
    exact = real_gradients["gradient"]

    def error(setup: Setup) -> float:
        rounded = gradients(setup, batch, variables)["gradient"]
        return optax.tree.norm(jax.tree.map(np.subtract, rounded, exact)) / optax.tree.norm(exact)

    plain, cached = error(setup(half, devices=1, **REAL)), error(setup(half, **CACHED))
    assert 2**-12 < cached < 1.2 * plain


def test_five_steps_on_three_devices_equal_the_original(tiny, golden):
    model, variables, batch = tiny
    changes = {f"optim.{name}": value for name, value in dataclasses.asdict(ADAM).items()}
    published = setup(model, devices=3, batch_size=len(batch["image"]), **changes)
    train_step = published.train_step()
    state = train_step.init(variables)
    batch = batch | seeds(batch)
    for loss, norm in zip(
        golden["steps/losses"], golden["steps/grad_norms_before_clip"], strict=True
    ):
        state, metrics, _ = train_step.step(state, iter([batch]))
        assert float(metrics["loss"]) == pytest.approx(float(loss), abs=2e-6)
        assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    codes = golden["steps/after5/visual_transformer.vq._codebook.embed"][0]
    np.testing.assert_allclose(state["codebook"]["embed"], codes, atol=2e-5)


def test_quantizer_weight_ramps_up():
    weights = [float(quantizer_weight((10, 20), step)) for step in (0, 10, 15, 20, 99)]
    assert weights == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert float(quantizer_weight((0, 0), 0)) == 1.0
