"""The train step: what moves, sharded equal to unsharded, cached equal to plain, golden steps."""

import dataclasses
import functools
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctclip_jax.common.sharding import batch_sharding, make_mesh
from ctclip_jax.common.trees import flatten
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training import step as train_step
from ctclip_jax.training.losses import LOSSES
from tests.fake_clip import FakeCLIP, fake_batch
from tests.models.test_ct_clip import ADAM
from tests.tiny_run import tiny_config

VOLUMES = 16
FAKE_PROMPTS = {
    "input_ids": np.random.default_rng(0).normal(size=(36, 4)).astype(np.float32),
    "attention_mask": np.ones((36, 4), np.int32),
}
CLASSIFIER = {"model.num_labels": 18, "model.classifier_dropout": 0.3}


def learner(model=None, devices: int = 8, **changes) -> train_step.Learner:
    """Of the fake model unless another is given."""
    defaults = {"loss.name": "softmax", "data.texts": 1, "batch_size": VOLUMES}
    defaults |= {"optim.learning_rate": 1e-2, "optim.warmup_steps": 0, "quantize_ramp": (0, 0)}
    config = tiny_config(Path("shards"), **(defaults | changes))
    mesh = make_mesh(config.mesh, devices=jax.devices()[:devices])
    made = train_step.make_learner(config, mesh)
    sizes = config.model
    fake = FakeCLIP(sizes.logit_bias, sizes.num_labels, sizes.num_report_labels)
    if made.prompts:
        made = dataclasses.replace(made, prompts=FAKE_PROMPTS)
    return dataclasses.replace(made, model=model or fake)


def run(learner: train_step.Learner, *batches: dict[str, np.ndarray], variables=None):
    """(state, metrics, gradient norms) after a step on each of `batches`, on the host."""
    count = learner.config.micro_batches
    state = train_step.new_state(learner, jax.device_get(variables or learner.model.init()))
    step = train_step.make_train_step(learner, abstract_part(learner, batches[0]))
    for batch in batches:
        split = {name: np.split(each, count) for name, each in batch.items()}
        parts = [{name: each[i] for name, each in split.items()} for i in range(count)]
        state, metrics, norms = step(state, iter(parts))
    return jax.device_get((state, metrics, norms))


def abstract_part(learner: train_step.Learner, batch: dict[str, np.ndarray]) -> dict:
    """Shapes and shardings of a micro-batch."""
    count, sharding = learner.config.micro_batches, batch_sharding(learner.mesh)
    return {
        name: jax.ShapeDtypeStruct(
            (len(each) // count, *each.shape[1:]), each.dtype, sharding=sharding
        )
        for name, each in batch.items()
    }


def moved(after: dict, before: dict) -> set[str]:
    """The arrays that are not the same to the bit."""
    before = flatten(jax.device_get(before))
    return {n for n, leaf in flatten(after).items() if not np.array_equal(leaf, before[n])}


def assert_same(found, expected):
    """Every array, to 1e-5 of its largest entry.

    What is zero but for rounding, as the gradient of a bias that a softmax ignores, to 1e-6.
    """
    found, expected = flatten({"": found}), flatten({"": expected})
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        tolerance = 1e-5 * max(np.abs(value).max(initial=0), 0.1)
        np.testing.assert_allclose(found[name], value, rtol=0, atol=tolerance, err_msg=name)


# Its state is the gradient, and the parameters stay: what the real optimizer would have been given.
GRADIENT = optax.GradientTransformation(
    init=lambda params: jax.tree.map(jnp.zeros_like, params),
    update=lambda grads, state, params: (jax.tree.map(jnp.zeros_like, grads), grads),
)


def gradients(learner: train_step.Learner, batch, variables=None) -> dict:
    """The gradient of every parameter, the codebook after the step, and the metrics."""
    keeping = dataclasses.replace(learner, optimizer=GRADIENT)
    state, metrics, _ = run(keeping, batch, variables=variables)
    return {"gradient": state["opt"], "codebook": state["codebook"], "metrics": metrics}


def test_a_step_moves_parameters_codebook_and_count():
    state, metrics, norms = run(learner(), *(fake_batch(VOLUMES, seed=seed) for seed in (0, 1)))
    before = FakeCLIP().init()
    assert state["step"] == 2
    assert moved(state["codebook"], before["codebook"]) == {"embed", "cluster_size"}
    assert moved(state["params"], before["params"]) == set(norms)
    assert norms.keys() == flatten(before["params"]).keys()
    assert {"loss", "gradient_norm", "learning_rate", "temperature"} <= set(metrics)
    assert 1 < metrics["codebook_perplexity"] <= 16


def test_a_frozen_image_tower_is_frozen_with_its_codebook():
    state, metrics, norms = run(learner(**{"optim.rules": (("^image", 0.0),)}), fake_batch(VOLUMES))
    before = FakeCLIP().init()
    assert moved(state["params"], before["params"]) == {"text/kernel", "temperature"}
    assert not moved(state["codebook"], before["codebook"])
    assert norms.keys() == {"text/kernel", "temperature"}
    squares = sum(float(norm) ** 2 for norm in norms.values())
    assert float(metrics["gradient_norm"]) == pytest.approx(squares**0.5, rel=1e-5)


def test_a_locked_text_tower_has_no_dropout():
    locked = learner(**{"optim.rules": (("^text/", 0.0),)})
    batch = fake_batch(VOLUMES)
    other = batch | {"seed": batch["seed"] + 1}
    loss_of = lambda learner, batch: run(learner, batch)[1]["loss"]  # noqa: E731
    assert loss_of(locked, batch) == loss_of(locked, other)
    assert loss_of(learner(), batch) != loss_of(learner(), other)


def test_what_is_born_sharded_stays_so():
    sharded = learner(**{"mesh.fsdp": 2})
    state = train_step.new_state(sharded, sharded.model.init())
    wanted = jax.tree.map(lambda leaf: leaf.sharding, train_step.abstract_state(sharded))
    assert not wanted["params"]["image_projection"]["kernel"].is_fully_replicated
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == wanted
    batch = fake_batch(VOLUMES)
    step = train_step.make_train_step(sharded, abstract_part(sharded, batch))
    state, _, _ = step(state, iter([batch]))
    assert jax.tree.map(lambda leaf: leaf.sharding, state) == wanted


def test_the_temperature_stops_at_its_largest():
    free, _, _ = run(learner(), fake_batch(VOLUMES))
    limit = float(np.exp(free["params"]["temperature"])) - 1e-3
    held, _, _ = run(learner(**{"loss.max_temperature": limit}), fake_batch(VOLUMES))
    assert np.exp(held["params"]["temperature"]) == pytest.approx(limit, rel=1e-6)


def test_averaged_weights_are_what_is_evaluated():
    batches = [fake_batch(VOLUMES, seed=seed) for seed in range(3)]
    changes = {"optim.ema": 0.9, "optim.rules": (("^text", 0.0),)}
    trail = [run(learner(**changes), *batches[: n + 1])[0] for n in range(3)]
    expected = FakeCLIP().init()["params"]["temperature"]
    for step, state in enumerate(trail):
        keep = (1 + step) / (10 + step)
        expected = keep * expected + (1 - keep) * state["params"]["temperature"]
    averaged = train_step.variables_of(trail[-1])
    np.testing.assert_allclose(averaged["params"]["temperature"], expected, rtol=1e-6)
    assert "text" not in trail[-1]["ema"]
    np.testing.assert_array_equal(
        averaged["params"]["text"]["kernel"], trail[-1]["params"]["text"]["kernel"]
    )


@pytest.mark.parametrize("micro_batch_size", [0, 8])
def test_a_step_that_is_not_finite_is_skipped_and_counted(micro_batch_size):
    good, bad = fake_batch(VOLUMES), fake_batch(VOLUMES, seed=1)
    bad["image"][3] = np.nan
    options = {"max_skipped": 2, "optim.ema": 0.9, "micro_batch_size": micro_batch_size}
    skipping = learner(**options)
    state, metrics, _ = run(skipping, good, bad)
    before, _, _ = run(skipping, good)
    assert not np.isfinite(metrics["loss"]) and metrics["skipped_steps"] == 1
    assert moved(state, before) == {"step", "skipped"}


CASES = {
    "softmax": {},
    "several texts": {"loss.name": "text_to_image", "data.texts": 3, "mesh.fsdp": 2},
    "decoupled, twins, normals, ring": {
        "loss.name": "decoupled",
        "loss.mask_twins": True,
        "loss.normal_share": 0.3,
        "loss.rows": 1,
        "mesh.fsdp": 4,
    },
    "several texts, normals, ring": {
        "loss.name": "text_to_image",
        "data.texts": 3,
        "loss.normal_share": 0.3,
        "loss.rows": 2,
    },
    "locked text": {"optim.rules": (("^text/", 0.0),), "mesh.fsdp": 2},
    "frozen image, fixed temperature": {
        "optim.rules": (("^image", 0.0), ("^temperature", 0.0)),
        "mesh.fsdp": 8,
    },
    "half quantized": {"quantize_ramp": (0, 10), "mesh.fsdp": 2},
    "labels": CLASSIFIER
    | {"loss.name": "labels", "loss.positive_weights": tuple(range(1, 19)), "mesh.fsdp": 4},
    "labels beside texts": CLASSIFIER | {"loss.label_weight": 0.5, "mesh.fsdp": 2},
    "prompts": {"loss.name": "prompts", "mesh.fsdp": 4},
    "report labels": {"model.report_labels": 18, "loss.name": "report_labels", "mesh.fsdp": 2},
    "adapters": {"lora.rank": 2, "optim.rules": (("^lora/", 1.0), ("", 0.0)), "mesh.fsdp": 2},
    "prompts, locked text": {"loss.name": "prompts", "optim.rules": (("^text/", 0.0),)},
}


@functools.cache
def plain_gradients(name: str) -> dict:
    return gradients(learner(devices=1, **of_loss(name)), fake_batch(VOLUMES))


def of_loss(name: str) -> dict:
    """A loss with everything that it can count apart."""
    bias = {"model.logit_bias": -2.0} if name == "sigmoid" else {}
    return {"loss.name": name, "loss.mask_twins": True, "loss.normal_share": 0.3, **bias}


@pytest.mark.parametrize("fsdp", [1, 2, 4, 8])
@pytest.mark.parametrize("name", LOSSES)
def test_every_loss_on_every_mesh_is_plain(name, fsdp):
    """Gradients, codebook and metrics, with the whole batch at once and with the gradient cache."""
    sharded = of_loss(name) | {"mesh.fsdp": fsdp}
    batch = fake_batch(VOLUMES)
    assert_same(gradients(learner(**sharded), batch), plain_gradients(name))
    assert_same(gradients(learner(**sharded, micro_batch_size=8), batch), plain_gradients(name))


@pytest.mark.parametrize("case", CASES)
def test_sharded_and_cached_is_plain(case):
    """Gradients, codebook and metrics, dropout on."""
    changes = CASES[case]
    batch = fake_batch(VOLUMES, changes.get("data.texts", 1))
    if changes.get("loss.name") == "report_labels":
        del batch["image"]
    plain = gradients(learner(devices=1, **changes | {"mesh.fsdp": 1}), batch)
    assert_same(gradients(learner(**changes), batch), plain)
    assert_same(gradients(learner(**changes, micro_batch_size=8), batch), plain)
    one_device = {"devices": 1, "mesh.fsdp": 1, "micro_batch_size": 2}
    assert_same(gradients(learner(**changes | one_device), batch), plain)


def test_a_linear_probe_moves_the_classifier_alone():
    rules = {"optim.rules": (("^classifier", 1.0), ("", 0.0)), "loss.name": "labels"}
    probe, batch = learner(**CLASSIFIER, **rules), fake_batch(VOLUMES)
    del batch["input_ids"]
    state, _, norms = run(probe, batch, batch)
    before = FakeCLIP(num_labels=18).init()
    assert moved(state["params"], before["params"]) == set(norms)
    assert set(norms) == {"classifier/kernel", "classifier/bias"}
    assert not moved(state["codebook"], before["codebook"])


def test_frozen_latents_stand_for_their_volumes():
    rules = {"optim.rules": (("^classifier", 1.0), ("", 0.0)), "loss.name": "labels"}
    probe, batch = learner(**CLASSIFIER, **rules), fake_batch(VOLUMES)
    latents, _ = probe.model.encode(probe.model.init(), batch, text_dropout_keys=None, quantize=1.0)
    frozen = {name: each for name, each in batch.items() if name not in ("image", "input_ids")}
    frozen["latent"] = np.asarray(latents["image"])
    assert_same(gradients(probe, frozen)["gradient"], gradients(probe, batch)["gradient"])


def test_prompts_are_encoded_with_dropout_only_if_the_text_tower_learns():
    prompts = {"loss.name": "prompts"}
    loss_of = lambda learner, *batches: run(learner, *batches)[1]["loss"]  # noqa: E731
    batch, still = fake_batch(VOLUMES), {"optim.rules": (("", 0.0),)}
    # Nothing moves: two steps differ by what is drawn in them.
    locked = learner(**prompts, **still)
    assert loss_of(locked, batch) == loss_of(locked, batch, batch)
    slow = learner(
        **prompts, **{"optim.rules": (("^image", 0.0), ("^temperature", 0.0), ("", 1e-12))}
    )
    assert loss_of(slow, batch) != pytest.approx(loss_of(slow, batch, batch), rel=1e-6)


def test_several_cached_steps_are_plain_steps():
    """The optimizer, the averages and the codebook, over steps."""
    batches = [fake_batch(VOLUMES, seed=seed) for seed in range(5)]
    options = {"optim.ema": 0.9, "optim.weight_decay": 0.1}
    plain, *_ = run(learner(devices=1, **options), *batches)
    cached, *_ = run(learner(**options, **{"mesh.fsdp": 4, "micro_batch_size": 8}), *batches)
    for name in ("params", "codebook", "ema"):
        assert_same(cached[name], plain[name])


@pytest.fixture(scope="module")
def real(tiny):
    """The tiny published model with dropout, and a batch of eight volumes for it."""
    model, variables, batch = tiny
    text = dataclasses.replace(model.config.text, dropout=0.3)
    many = {name: np.concatenate([each] * 3)[:8] for name, each in batch.items()}
    # Volumes that differ well: of two alike, rounding would say which is the nearest.
    many["image"] = np.random.default_rng(0).uniform(-1, 1, many["image"].shape).astype("float32")
    return CTCLIP(dataclasses.replace(model.config, text=text)), variables, many | seeds(many)


def seeds(batch) -> dict[str, np.ndarray]:
    return {"seed": np.arange(len(batch["image"]), dtype=np.int32)}


def test_the_real_model_cached_remat_and_sharded_is_plain(real):
    model, variables, batch = real
    remat = CTCLIP(dataclasses.replace(model.config, remat="full"))
    plain = learner(model, devices=1, batch_size=8)
    cached = learner(remat, devices=4, batch_size=8, micro_batch_size=4, **{"mesh.fsdp": 2})
    expected = gradients(plain, batch, variables)
    assert_same(gradients(cached, batch, variables), expected)


def test_the_real_model_in_bfloat16_cached_and_sharded_is_no_further_from_float32(real):
    """Unquantized: a token between two codes takes either. Errors of one size, not one rounding."""
    model, variables, batch = real
    half = CTCLIP(dataclasses.replace(model.config, dtype="bfloat16"))
    options = {"batch_size": 8, "quantize_ramp": (5, 10)}
    exact = gradients(learner(model, devices=1, **options), batch, variables)["gradient"]

    def error(learner) -> float:
        found = gradients(learner, batch, variables)["gradient"]
        return optax.tree.norm(jax.tree.map(np.subtract, found, exact)) / optax.tree.norm(exact)

    plain = error(learner(half, devices=1, **options))
    options |= {"micro_batch_size": 4, "mesh.fsdp": 2}
    cached = error(learner(half, devices=4, **options))
    assert 2**-12 < cached < 1.2 * plain


def test_five_steps_on_three_devices_are_those_of_the_original(tiny, golden):
    model, variables, batch = tiny
    changes = {f"optim.{name}": value for name, value in dataclasses.asdict(ADAM).items()}
    published = learner(model, devices=3, batch_size=len(batch["image"]), **changes)
    state = train_step.new_state(published, variables)
    batch = batch | seeds(batch)
    step = train_step.make_train_step(published, abstract_part(published, batch))
    for loss, norm in zip(
        golden["steps/losses"], golden["steps/grad_norms_before_clip"], strict=True
    ):
        state, metrics, _ = step(state, iter([batch]))
        assert float(metrics["loss"]) == pytest.approx(float(loss), abs=2e-6)
        assert float(metrics["gradient_norm"]) == pytest.approx(float(norm), rel=1e-4)
    codes = golden["steps/after5/visual_transformer.vq._codebook.embed"][0]
    np.testing.assert_allclose(state["codebook"]["embed"], codes, atol=2e-5)


def test_the_quantizer_ramps_up():
    weights = [float(train_step.quantizer_weight((10, 20), step)) for step in (0, 10, 15, 20, 99)]
    assert weights == [0.0, 0.0, 0.5, 1.0, 1.0]
    assert float(train_step.quantizer_weight((0, 0), 0)) == 1.0
