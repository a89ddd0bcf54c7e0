"""Parity with the published model: outputs, gradients and steps of the golden tiny model.

Tolerances are those of float32 in another order of operations. If a number moves, the model has
changed: fix the model, never the tolerance.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from ctclip_jax.checkpoints.torch_convert import export_weights
from ctclip_jax.common.trees import flatten
from ctclip_jax.models import bert
from ctclip_jax.models.bert import BertConfig
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.kernels.attention import attention
from ctclip_jax.models.layers import REMAT
from ctclip_jax.training.losses import LossConfig, make_loss
from ctclip_jax.training.optim import OptimConfig, make_optimizer
from data_pipelines.patches import patchify

LATENT = 2e-6
softmax_loss = make_loss(LossConfig("softmax"))
ADAM = OptimConfig(
    learning_rate=2e-4,
    schedule="constant",
    warmup_steps=0,
    b1=0.9,
    b2=0.99,
    eps=1e-8,
    weight_decay=0.0,
    clip_norm=0.5,
    rules=(),
)


def assert_close(actual, expected, tolerance, what=""):
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance, err_msg=what)


def to_torch(model, params, codebook):
    return export_weights({"params": params, "codebook": codebook}, config=model.config)


def evaluate(model, variables, batch):
    """Outputs as in evaluation: hard codes, no dropout."""
    latents = {
        "image": model.encode_image(variables, batch["image"]),
        "text": model.encode_text(variables, batch["input_ids"], batch["attention_mask"]),
    }
    return model.outputs(variables["params"], latents)


@pytest.fixture(scope="module")
def step(tiny):
    """One jitted training step: (params, codebook) -> loss, gradients, next codebook."""
    model, _, batch = tiny

    @jax.jit
    def step(params, codebook):
        def loss(params):
            variables = {"params": params, "codebook": codebook}
            latents, statistics = model.encode(variables, batch)
            updated = model.update_codebook(codebook, statistics)
            return softmax_loss(model.outputs(params, latents), batch)[0], updated

        (value, updated), grads = jax.value_and_grad(loss, has_aux=True)(params)
        return value, grads, updated

    return step


@pytest.fixture(scope="module")
def first_step(tiny, step):
    return step(tiny[1]["params"], tiny[1]["codebook"])


def test_latents_logits_and_loss(tiny, golden):
    model, variables, batch = tiny
    outputs = jax.jit(evaluate, static_argnums=0)(model, variables, batch)
    assert_close(outputs["text"], golden["out/text_latents"], LATENT)
    assert_close(outputs["image"], golden["out/image_latents"], LATENT)
    similarity = outputs["temperature"] * (outputs["text"] @ outputs["image"].T)
    assert_close(similarity, golden["out/sim_text_image_times_temp"], LATENT)
    assert_close(jnp.diagonal(similarity), golden["out/logits_pairs"], LATENT)
    assert_close(softmax_loss(outputs, batch)[0], golden["out/loss"], LATENT)


def test_zero_shot_probabilities(tiny, golden):
    model, variables, batch = tiny
    image = jax.jit(model.encode_image)(variables, batch["image"][1:2])
    prompts = batch["input_ids"][:2], batch["attention_mask"][:2]
    text = jax.jit(model.encode_text)(variables, *prompts)
    logits = jnp.exp(variables["params"]["temperature"]) * (text @ image[0])
    assert_close(logits, golden["out/zeroshot_logits_2prompts_vol1"], LATENT)
    assert_close(jax.nn.softmax(logits), golden["out/zeroshot_softmax"], LATENT)


def test_a_codebook_off_the_unit_sphere_is_not_renormalized(tiny, golden):
    model, variables, batch = tiny
    codebook = variables["codebook"] | {"embed": golden["extra/nonunit_codebook"][0]}
    latents = jax.jit(model.encode_image)(variables | {"codebook": codebook}, batch["image"])
    assert_close(latents, golden["extra/nonunit_image_latents"], LATENT)


def test_gradients(tiny, golden, first_step):
    model, variables, _ = tiny
    loss, grads, codebook = first_step
    assert_close(loss, golden["train/loss"], LATENT)
    exported = to_torch(model, grads, codebook)
    trained = set(to_torch(model, variables["params"], codebook))
    names = [name[5:] for name in golden if name.startswith("grad/")]
    assert len(names) > 80 and set(names) <= trained
    for name in names:
        expected = golden[f"grad/{name}"]
        tolerance = max(1e-4 * np.abs(expected).max(initial=0), 1e-6)
        assert_close(exported[name], expected, tolerance, what=name)


def test_gradient_norm(golden, first_step):
    norm = optax.tree.norm(first_step[1])
    np.testing.assert_allclose(norm, golden["train/grad_global_norm"], rtol=1e-5)


def test_the_image_tower_has_no_gradient_in_evaluation(tiny, golden):
    model, variables, batch = tiny

    def loss(params):
        return softmax_loss(evaluate(model, variables | {"params": params}, batch), batch)[0]

    grads = jax.jit(jax.grad(loss))(variables["params"])
    assert all(not leaf.any() for leaf in jax.tree.leaves(grads["image"]))
    expected = golden["extra/evalgrad_to_visual_latent.weight"]
    assert_close(grads["image_projection"]["kernel"].T, expected, 1e-4 * np.abs(expected).max())


def test_codebook_after_a_step(golden, first_step):
    codebook = first_step[2]
    assert_close(codebook["embed"], golden["train/codebook_embed_after"][0], LATENT)
    assert_close(codebook["cluster_size"], golden["train/codebook_cluster_size_after"][0], LATENT)


def test_five_adam_steps(tiny, golden, step):
    model, variables, _ = tiny
    params, codebook = jax.tree.map(jnp.asarray, (variables["params"], variables["codebook"]))
    optimizer = make_optimizer(ADAM, 5)
    state = optimizer.init(params)
    for i in range(5):
        loss, grads, codebook = step(params, codebook)
        assert_close(loss, golden["steps/losses"][i], LATENT, what=f"loss of step {i}")
        norm = golden["steps/grad_norms_before_clip"][i]
        np.testing.assert_allclose(optax.tree.norm(grads), norm, rtol=1e-4)
        updates, state = optimizer.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    exported = to_torch(model, params, codebook)
    for name in (name for name in golden if name.startswith("steps/after5/")):
        assert_close(exported[name[len("steps/after5/") :]], golden[name], 2e-5, what=name)


@pytest.fixture(scope="module")
def uneven():
    """A model with three different grid axes, non-square slices and other head counts."""
    image = CTViTConfig(
        dim=24,
        image_size=(12, 20),
        patch_size=(4, 5),
        frames=10,
        temporal_patch_size=5,
        spatial_depth=1,
        temporal_depth=2,
        heads=3,
        dim_head=8,
        codebook_size=16,
    )
    text = BertConfig(
        vocab_size=50,
        hidden_size=24,
        num_layers=1,
        num_heads=4,
        intermediate_size=32,
        max_positions=16,
        dropout=0.5,
    )
    return CTCLIP(CTCLIPConfig(image=image, text=text, dim_latent=8, logit_bias=-10.0))


@pytest.fixture(scope="module")
def variables(uneven):
    return jax.jit(uneven.init)(jax.random.key(0))


@pytest.fixture(scope="module")
def encode(uneven):
    """Compiled `encode`: (variables, batch, text_dropout_keys, quantize) -> latents."""

    @jax.jit
    def encode(variables, batch, keys=None, quantize=1.0):
        return uneven.encode(variables, batch, text_dropout_keys=keys, quantize=quantize)[0]

    return encode


@pytest.fixture(scope="module")
def uneven_batch():
    rng = np.random.default_rng(0)
    return {
        "image": rng.integers(-16_000, 16_001, (2, 10, 12, 20), dtype=np.int16),
        "input_ids": rng.integers(0, 50, (2, 16), dtype=np.int32),
        "attention_mask": np.ones((2, 16), np.int32),
    }


def loss_and_grads(model, variables, batch):
    def loss(params):
        latents, _ = model.encode(variables | {"params": params}, batch)
        return jnp.sum(latents["image"] * latents["text"])

    return jax.jit(jax.value_and_grad(loss))(variables["params"])


@pytest.fixture(scope="module")
def plain_gradients(uneven, variables, uneven_batch):
    return loss_and_grads(uneven, variables, uneven_batch)


EXECUTIONS = [{"remat": remat} for remat in REMAT if remat != "none"] + [{"scan_layers": True}]


@pytest.mark.parametrize("options", EXECUTIONS, ids=str)
def test_execution_changes_no_number(uneven, variables, uneven_batch, plain_gradients, options):
    model = CTCLIP(dataclasses.replace(uneven.config, **options))
    gradients = loss_and_grads(model, variables, uneven_batch)
    for a, b in zip(jax.tree.leaves(plain_gradients), jax.tree.leaves(gradients), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_bfloat16_is_near_float32_with_float32_parameters(uneven, variables, uneven_batch):
    half = CTCLIP(dataclasses.replace(uneven.config, dtype="bfloat16"))
    _, grads = loss_and_grads(half, variables, uneven_batch)
    assert {leaf.dtype for leaf in jax.tree.leaves(grads)} == {jnp.dtype("float32")}
    arguments = (uneven_batch["input_ids"], uneven_batch["attention_mask"])
    exact, rough = (jax.jit(model.encode_text)(variables, *arguments) for model in (uneven, half))
    assert 0 < jnp.abs(exact - rough).max() < 0.05


def test_integer_volumes_are_fixed_point_hu(uneven, variables, uneven_batch):
    fixed = uneven_batch["image"]
    real = fixed.astype(np.float32) / 16_000
    encode_image = jax.jit(uneven.encode_image)
    assert_close(encode_image(variables, fixed), encode_image(variables, real), 1e-6)


def test_patches_are_encoded_like_volumes(uneven, variables, uneven_batch, encode):
    """What the loader has cut already, in evaluation and in training."""
    patches = patchify(uneven_batch["image"], uneven.config.image.patch)
    encode_image = jax.jit(uneven.encode_image)
    latents = encode_image(variables, uneven_batch["image"])
    np.testing.assert_array_equal(encode_image(variables, patches), latents)
    in_training = encode(variables, uneven_batch)["image"]
    np.testing.assert_array_equal(
        encode(variables, uneven_batch | {"image": patches})["image"], in_training
    )


def test_attention_dropout_is_that_of_the_weights_alone(
    uneven, variables, uneven_batch, encode, monkeypatch
):
    weights_dropped = []

    def recorded(*args, dropout, **options):
        weights_dropped.append(dropout is not None)
        return attention(*args, dropout=dropout, **options)

    monkeypatch.setattr(bert, "attention", recorded)
    text = dataclasses.replace(uneven.config.text, attention_dropout=0.0)
    model = CTCLIP(dataclasses.replace(uneven.config, text=text))
    keys = jax.random.split(jax.random.key(1), 2)
    texts = uneven_batch["input_ids"], uneven_batch["attention_mask"]
    dropped, all_dropped, plain = (
        model.encode_text(variables, *texts, dropout_keys=keys),
        uneven.encode_text(variables, *texts, dropout_keys=keys),
        uneven.encode_text(variables, *texts),
    )
    assert weights_dropped == [False, True, False]  # one layer each
    assert jnp.abs(dropped - all_dropped).max() > 1e-3
    assert jnp.abs(dropped - plain).max() > 1e-3


def test_text_dropout_acts_in_training_and_only_on_text(uneven, variables, uneven_batch, encode):
    plain = encode(variables, uneven_batch)
    keys = jax.random.split(jax.random.key(1), 2)
    dropped = encode(variables, uneven_batch, keys)
    evaluated = jax.jit(evaluate, static_argnums=0)(uneven, variables, uneven_batch)
    assert jnp.abs(plain["text"] - dropped["text"]).max() > 1e-3
    assert_close(plain["text"], evaluated["text"], 1e-6)
    assert_close(plain["image"], dropped["image"], 1e-6)
    swapped = {name: each[::-1] for name, each in uneven_batch.items()}
    again = encode(variables, swapped, keys[::-1])
    assert_close(again["text"][::-1], dropped["text"], 1e-6)


def test_several_texts_of_a_volume_are_adjacent(variables, uneven_batch, encode):
    texts = {name: uneven_batch[name] for name in ("input_ids", "attention_mask")}
    stacked = {name: np.stack([ids, ids[::-1]], axis=1) for name, ids in texts.items()}
    alone, paired = (encode(variables, batch)["text"] for batch in (texts, stacked))
    np.testing.assert_allclose(paired[::2], alone, atol=1e-6)
    np.testing.assert_allclose(paired[1::2], alone[::-1], atol=1e-6)


def test_quantizer_weight_0_passes_the_tokens(uneven, variables, uneven_batch, encode):
    other = variables | {"codebook": jax.jit(uneven.init)(jax.random.key(1))["codebook"]}

    def image(variables, weight):
        batch = {"image": uneven_batch["image"]}
        return encode(variables, batch, None, weight)["image"]

    assert_close(image(variables, 0.0), image(other, 0.0), 1e-6)
    assert jnp.abs(image(variables, 1.0) - image(other, 1.0)).max() > 1e-3


def test_a_logit_bias_is_optional(variables, tiny):
    assert float(variables["params"]["logit_bias"]) == -10.0
    assert "logit_bias" not in tiny[0].abstract_variables()["params"]


def test_the_full_size_model_has_the_published_parameter_counts():
    variables = CTCLIP(CTCLIPConfig()).abstract_variables()
    params = variables["params"]

    def count(tree):
        return sum(leaf.size for leaf in flatten({"": tree}).values())

    pooler = 768 * 768 + 768
    reconstruction = (400 + 4000) * 512 + 4400 + 400 * 2 + 400 * 512 + 512 * 3
    context_norms = 8 * 512
    assert count(params["image_projection"]) == 294_912 * 512
    assert count(params["text"]) + pooler == 109_482_240
    assert round((count(params["image"]) + reconstruction + context_norms) / 1e6, 1) == 25.9
    assert round(count(variables["codebook"]["embed"]) / 1e6, 1) == 4.2
