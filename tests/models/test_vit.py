"""ViT: positions, patch dropout, and the same training on any mesh and with the gradient cache."""

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest

from ctclip_jax.checkpoints.torch_convert import export_weights
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.models import nnx_bridge, patch_embed
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from ctclip_jax.models.ct_vit import CTViTConfig
from ctclip_jax.models.layers import Execution
from ctclip_jax.models.vit import ViT, ViTConfig, position_embedding
from ctclip_jax.training.validation import validate_config
from data_pipelines.errors import InputError
from tests.tiny_run import tiny_config
from tests.training.test_step import assert_same, gradients, run, seeds, setup

CONFIG = ViTConfig(
    dim=24,
    depth=2,
    heads=2,
    image_size=(16, 16),
    patch_size=(4, 4),
    frames=8,
    temporal_patch_size=4,
    patch_dropout=0.5,
)


def make(rngs, config=CONFIG, dtype="float32"):
    return ViT(config, rngs, Execution(dtype, "none", "xla", scan=True))


@pytest.fixture(scope="module")
def params():
    return nnx_bridge.init(make, jax.random.key(0))


@pytest.fixture(scope="module")
def volumes():
    return np.random.default_rng(0).integers(-16000, 16000, (8, 8, 16, 16), dtype=np.int16)


def encode(params, volumes, keys=None):
    tower = nnx_bridge.bind(make, params)
    return jax.jit(lambda volumes: tower(volumes, patch_dropout_keys=keys))(volumes)


def keys_of(count: int):
    return jax.random.split(jax.random.key(3), count)


def test_position_embeddings_are_unique():
    positions = position_embedding((3, 4, 5), 24)
    assert positions.shape == (60, 24)
    distances = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    assert distances[~np.eye(60, dtype=bool)].min() > 0.1


def test_the_order_of_patches_matters(params, volumes):
    """Whole patches are permuted, so that only their positions differ."""
    width = CONFIG.patch_size[1]
    moved = np.roll(volumes, width, axis=3)
    assert volumes.shape[3] > width
    assert np.abs(encode(params, volumes) - encode(params, moved)).max() > 1e-3


def test_dropped_patches_have_no_gradient(params, volumes):
    """Exactly half of the patches have a gradient, different ones in every volume."""
    keys = keys_of(8)
    scaled = volumes.astype(np.float32) / 16000
    total = lambda x: encode(params, x, keys).astype(np.float32).sum()  # noqa: E731
    gradient = patch_embed.patchify(np.asarray(jax.grad(total)(scaled)), CONFIG.patch)
    seen = np.abs(gradient).max(axis=-1).reshape(8, -1) > 0
    assert CONFIG.num_visible_tokens == CONFIG.num_tokens // 2
    assert np.all(seen.sum(axis=1) == CONFIG.num_visible_tokens)
    assert len({tuple(row) for row in seen}) == 8


def test_dropped_patches_cost_nothing(params, volumes):
    def flops(keys) -> float:
        tower = nnx_bridge.bind(make, params)
        program = jax.jit(lambda volumes: tower(volumes, patch_dropout_keys=keys))
        return program.lower(volumes).compile().cost_analysis()["flops"]

    assert flops(keys_of(8)) < 0.62 * flops(None)


def test_a_volume_is_the_same_in_any_batch(params, volumes):
    keys = keys_of(8)
    whole, part = encode(params, volumes, keys), encode(params, volumes[5:7], keys[5:7])
    np.testing.assert_allclose(whole[5:7], part, rtol=0, atol=1e-5)


def test_without_keys_all_patches_are_encoded(params, volumes):
    without_dropout = dataclasses.replace(CONFIG, patch_dropout=0.0)
    tower = nnx_bridge.bind(lambda rngs: make(rngs, without_dropout), params)
    features = jax.jit(lambda x: tower(x, patch_dropout_keys=keys_of(8)))(volumes)
    np.testing.assert_allclose(features, encode(params, volumes), rtol=0, atol=1e-5)


@pytest.mark.parametrize("drops_patches", [False, True])
def test_patches_are_encoded_like_volumes(drops_patches, params, volumes):
    keys = keys_of(8) if drops_patches else None
    patches = patch_embed.patchify(volumes, CONFIG.patch)
    np.testing.assert_array_equal(encode(params, patches, keys), encode(params, volumes, keys))


@pytest.fixture(scope="module")
def model(tiny):
    text = dataclasses.replace(tiny[0].config.text, dropout=0.3)
    return CTCLIP(dataclasses.replace(tiny[0].config, image=CONFIG, text=text))


@pytest.fixture(scope="module")
def batch(tiny, volumes):
    texts = {
        name: np.concatenate([tiny[2][name]] * 3)[:8] for name in ("input_ids", "attention_mask")
    }
    return {"image": volumes, **texts, **seeds({"image": volumes})}


def test_cached_remat_and_sharded_equals_plain(model, batch):
    """Gradients and metrics, with dropout of texts and of patches."""
    remat = CTCLIP(dataclasses.replace(model.config, remat="full"))
    variables = jax.jit(model.init)(jax.random.key(0))
    expected = gradients(setup(model, devices=1, batch_size=8), batch, variables)
    assert expected["codebook"] == {}
    assert not any(name.startswith("codebook") for name in expected["metrics"])
    options = {"devices": 4, "batch_size": 8, "micro_batch_size": 4, "mesh.fsdp": 2}
    assert_same(gradients(setup(remat, **options), batch, variables), expected)


def test_it_learns(model, batch):
    variables = jax.jit(model.init)(jax.random.key(0))
    fast = setup(model, devices=1, batch_size=8, **{"optim.learning_rate": 3e-3})
    _, first, _ = run(fast, batch, variables=variables)
    _, last, _ = run(fast, *[batch] * 30, variables=variables)
    assert last["loss"] < 0.7 * first["loss"]


def test_mean_pool_is_the_mean_of_the_tokens(tiny):
    mean = CTCLIP(
        dataclasses.replace(
            tiny[0].config, image=dataclasses.replace(tiny[0].config.image, pool="mean")
        )
    )
    kernel = tiny[1]["params"]["image_projection"]["kernel"]
    dim = mean.config.image.dim
    _, h, w = mean.config.image.grid
    # Flat pooling with the same kernel at every position is a projection of the mean.
    first = np.asarray(kernel[:dim])
    flat = tiny[1]["params"] | {"image_projection": {"kernel": np.tile(first, (h * w, 1))}}
    small = tiny[1]["params"] | {"image_projection": {"kernel": first}}
    expected = tiny[0].encode_image(tiny[1] | {"params": flat}, tiny[2]["image"])
    latents = mean.encode_image(tiny[1] | {"params": small}, tiny[2]["image"])
    np.testing.assert_allclose(latents, expected, rtol=0, atol=1e-5)
    with pytest.raises(InputError, match="no published PyTorch layout"):
        export_weights(tiny[1] | {"params": small}, config=mean.config)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"patch_size": (4, 5)}, "config.model.image: "),
        ({"dim": 20}, "config.model.image.dim: "),
        ({"heads": 5}, "config.model.image.dim: "),
    ],
)
def test_rejects_sizes_that_do_not_divide(changes, message):
    config = tiny_config(Path("shards"))
    image = dataclasses.replace(CONFIG, **changes)
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, image=image))
    with pytest.raises(InputError, match=message):
        validate_config(config, tokenizer=None, mesh=make_mesh(config.mesh))


def test_from_dict_builds_the_tower_by_name():
    config = from_dict(CTCLIPConfig, {"image": {"tower": "vit", "dim": 24}})
    assert config.image == ViTConfig(dim=24)
    assert from_dict(CTCLIPConfig, {"image": {"dim": 24}}).image == CTViTConfig(dim=24)
    assert from_dict(CTCLIPConfig, dataclasses.asdict(config)) == config
    with pytest.raises(
        InputError, match=r"config.image.tower: unknown value 'swin'; choose from ct_vit, vit"
    ):
        from_dict(CTCLIPConfig, {"image": {"tower": "swin"}})
    with pytest.raises(InputError, match=r"config.image.codebook_size: unknown key"):
        from_dict(CTCLIPConfig, {"image": {"tower": "vit", "codebook_size": 8}})
    with pytest.raises(InputError, match=r"config.image.patch_dropout: got 1.0"):
        from_dict(CTCLIPConfig, {"image": {"tower": "vit", "patch_dropout": 1.0}})
