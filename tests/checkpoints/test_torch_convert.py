"""PyTorch state dicts: round trips are bit for bit, and every wrong key is an error."""

import dataclasses
import json

import jax
import ml_dtypes
import numpy as np
import pytest

from ctclip_jax.checkpoints.tensor_files import read_tensors, write_tensors
from ctclip_jax.checkpoints.torch_convert import export_weights, import_weights
from ctclip_jax.checkpoints.torch_geometry import Geometry
from ctclip_jax.checkpoints.torch_names import Depths, unused_keys, unused_tensors, used_keys
from ctclip_jax.common.trees import flatten
from ctclip_jax.models.ct_clip import CTCLIP, CTCLIPConfig
from data_pipelines.errors import InputError

TINY = Geometry(image_size=40, patch_size=10, frames=20, text_heads=2)
IMAGE = "visual_transformer."
NORM_IN = f"{IMAGE}to_patch_emb.1.weight"
SCALE = f"{IMAGE}enc_spatial_transformer.layers.1.1.q_scale"
BETA = f"{IMAGE}enc_temporal_transformer.norm_out.beta"
NULL = f"{IMAGE}enc_spatial_transformer.layers.0.1.null_kv"


@pytest.fixture(scope="module")
def state(golden_dir):
    with np.load(golden_dir / "tiny.npz") as golden:
        return {name[6:]: golden[name] for name in golden.files if name.startswith("state/")}


def assert_same(actual, expected):
    assert actual.keys() == expected.keys()
    for key, value in expected.items():
        assert actual[key].dtype == value.dtype and actual[key].shape == value.shape, key
        assert actual[key].tobytes() == value.tobytes(), key


def tiny(state):
    return import_weights(state, source="tiny.pt", geometry=TINY)


def ones(config):
    """The variables of a model that was never a PyTorch one."""
    abstract = CTCLIP(config).abstract_variables()
    return jax.tree.map(lambda leaf: np.ones(leaf.shape, leaf.dtype), abstract)


def test_reads_the_config_from_the_shapes(state, golden_dir):
    golden = json.loads((golden_dir / "tiny.json").read_text())["config"]
    config = tiny(state).config
    for name in ("dim", "heads", "dim_head", "temporal_patch_size", "codebook_size"):
        assert getattr(config.image, name) == golden[name]
    assert config.text.vocab_size == golden["vocab"]
    assert config.text.intermediate_size == golden["bert_inter"]
    assert config.dim_latent == golden["dim_latent"]


def test_export_of_an_import_is_the_same_state_dict(state):
    imported = tiny(state)
    exported = export_weights(imported.variables, config=imported.config, unused=imported.unused)
    assert_same(exported, state)


def test_imported_variables_fit_the_model(state):
    imported = tiny(state)
    expected = flatten(CTCLIP(imported.config).abstract_variables())
    actual = flatten(imported.variables)
    assert {name: leaf.shape for name, leaf in actual.items()} == {
        name: leaf.shape for name, leaf in expected.items()
    }
    assert imported.provenance["parameters"]["total"] == sum(x.size for x in expected.values())


def test_export_of_a_model_trained_here_has_every_published_key(state):
    config = tiny(state).config
    exported = export_weights(ones(config), config=config)
    assert {key: value.shape for key, value in exported.items()} == {
        key: value.shape for key, value in state.items()
    }
    gamma = f"{IMAGE}enc_spatial_transformer.layers.0.1.context_norm.gamma"
    assert np.all(exported[gamma] == 1) and not np.any(exported[BETA])


def test_a_logit_bias_has_no_published_key(state):
    config = dataclasses.replace(tiny(state).config, logit_bias=-10.0)
    with pytest.raises(InputError, match="logit_bias"):
        export_weights(ones(config), config=config)


def test_full_size_has_the_published_keys_and_counts():
    config, depths = CTCLIPConfig(), Depths(4, 4, 12)
    unused = unused_tensors(config, depths)
    keys = used_keys(depths, classifier=False)
    assert len(keys) == 312 and unused.keys() == unused_keys(depths).keys()
    never_trained = sum(
        tensor.size for key, tensor in unused.items() if not key.endswith((".beta", "initted"))
    )
    assert round(never_trained / 1e6, 1) == 154.4


@pytest.mark.parametrize("prefix", ["module.", "trained_model.", "module.trained_model."])
def test_removes_prefixes_of_wrappers(state, prefix):
    wrapped = {prefix + key: value for key, value in state.items()}
    assert_same(flatten(tiny(wrapped).variables), flatten(tiny(state).variables))


def test_imports_and_exports_a_classifier(state):
    weight = np.arange(18 * 16, dtype=np.float32).reshape(18, 16)
    probe = {"classifier.weight": weight, "classifier.bias": np.zeros(18, np.float32)}
    wrapped = {f"trained_model.{key}": value for key, value in state.items()}
    imported = tiny(wrapped | probe)
    np.testing.assert_array_equal(imported.variables["params"]["classifier"]["kernel"], weight.T)
    assert imported.provenance["classifier"]
    exported = export_weights(imported.variables, config=imported.config, unused=imported.unused)
    assert_same(exported, state | probe)
    with pytest.raises(InputError, match=r"classifier.weight of shape \(18, 15\)"):
        tiny(state | probe | {"classifier.weight": weight[:, :15]})


def test_drops_unused_keys_by_name(state):
    leftovers = {
        "text_transformer.embeddings.position_ids": np.arange(64)[None],
        f"{IMAGE}vq._codebook.embed_avg": np.zeros((1, 64, 32), np.float32),
        f"{IMAGE}discr.0.weight": np.zeros(3, np.float32),
        "vgg.0.weight": np.zeros(3, np.float32),
    }
    imported = tiny(state | leftovers)
    assert imported.provenance["dropped"] == sorted(leftovers)
    assert_same(flatten(imported.variables), flatten(tiny(state).variables))


def test_null_key_values_are_empty_or_absent(state):
    without = {key: value for key, value in state.items() if not key.endswith("null_kv")}
    assert_same(flatten(tiny(without).variables), flatten(tiny(state).variables))
    with pytest.raises(InputError, match="null_kv of shape"):
        tiny(state | {NULL: np.zeros((2, 2, 16), np.float32)})


def test_a_bare_image_encoder_is_the_image_tower_alone(state):
    bare = {key.removeprefix(IMAGE): value for key, value in state.items() if key.startswith(IMAGE)}
    imported = tiny(bare)
    whole = tiny(state).variables
    assert imported.variables.keys() == whole.keys()
    assert imported.variables["params"].keys() == {"image"}
    assert_same(flatten(imported.variables["params"]), flatten({"image": whole["params"]["image"]}))


def test_lists_every_wrong_key_in_one_line(state):
    wrong = dict(state)
    del wrong["temperature"], wrong[SCALE]
    wrong["foo.weight"] = np.zeros(3, np.float32)
    wrong["module.to_text_latent.weight"] = state["to_text_latent.weight"]
    wrong["to_visual_latent.weight"] = np.zeros((16, 511), np.float32)
    wrong["text_transformer.embeddings.LayerNorm.bias"] = np.zeros(32, np.int64)
    wrong[BETA] = np.full(32, 1e-3, np.float32)
    with pytest.raises(InputError) as error:
        tiny(wrong)
    message = str(error.value)
    for problem in (
        "missing temperature",
        f"missing {SCALE}",
        "unexpected foo.weight",
        "duplicate to_text_latent.weight",
        "to_visual_latent.weight of shape (16, 511) instead of (16, 512)",
        "text_transformer.embeddings.LayerNorm.bias of dtype int64",
        f"nonzero {BETA}",
    ):
        assert problem in message
    assert message.startswith("tiny.pt: ") and "\n" not in message


def test_a_key_of_the_geometry_may_be_missing_or_of_another_rank(state):
    without = {key: value for key, value in state.items() if key != NORM_IN}
    with pytest.raises(InputError, match=f"missing {NORM_IN}"):
        tiny(without)
    with pytest.raises(InputError, match=rf"{NORM_IN} of shape \(1, 500\)"):
        tiny(state | {NORM_IN: state[NORM_IN][None]})


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("others", ["all", "some", "none"])
def test_rejects_version_1_whatever_else_is_wrong(state, prefix, others):
    wrong = {"all": state, "some": dict(list(state.items())[::3]), "none": {}}[others]
    patch = {NORM_IN: np.zeros(13_500, np.float32)}
    with pytest.raises(InputError, match="version 1") as error:
        tiny({prefix + key: value for key, value in (wrong | patch).items()})
    assert "missing" not in str(error.value) and "unexpected" not in str(error.value)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_rejects_weights_that_are_not_finite(state, value):
    damaged = state["to_text_latent.weight"].copy()
    damaged[1, 2:4] = value
    message = rf"tiny.pt: to_text_latent.weight: 2 of {damaged.size} numbers are NaN or infinite"
    with pytest.raises(InputError, match=message):
        tiny(state | {"to_text_latent.weight": damaged})
    with pytest.raises(InputError, match=message):
        tiny(state | {"to_text_latent.weight": damaged.astype(ml_dtypes.bfloat16)})


def test_rejects_other_weights():
    with pytest.raises(InputError, match="not CT-CLIP weights"):
        import_weights({"conv.weight": np.zeros(3)}, source="other.pt")


def test_names_the_geometry_that_shapes_do_not_determine(state):
    with pytest.raises(InputError, match="--image_size, --patch_size, --frames, --text_heads"):
        import_weights(state, source="tiny.pt")


@pytest.mark.parametrize(
    "change, problem",
    [
        ({"frames": 21}, "frames 21"),
        ({"image_size": (45, 40)}, "image height 45"),
        ({"image_size": (40, 80)}, "to_visual_latent.weight of shape"),
        ({"patch_size": (5, 10)}, "to_patch_emb.1.weight of shape"),
        ({"text_heads": 3}, "text hidden size 32"),
    ],
)
def test_rejects_a_wrong_geometry(state, change, problem):
    with pytest.raises(InputError, match=problem):
        import_weights(state, source="tiny.pt", geometry=dataclasses.replace(TINY, **change))


def test_reads_half_precision_as_float32(state, tmp_path):
    low = {key: value.astype(ml_dtypes.bfloat16) for key, value in state.items()}
    write_tensors(tmp_path / "low.safetensors", low)
    imported = tiny(read_tensors(tmp_path / "low.safetensors"))
    assert all(leaf.dtype == np.float32 for leaf in flatten(imported.variables).values())
    assert imported.provenance["converted_to_float32"] == {
        "bfloat16": len(state) - len(imported.unused)
    }


def test_safetensors_are_bit_exact(state, tmp_path):
    name = "tiny.safetensors"
    transposed = state | {
        "to_text_latent.weight": np.asfortranarray(state["to_text_latent.weight"])
    }
    write_tensors(tmp_path / name, transposed)
    assert_same(read_tensors(tmp_path / name), state)


def test_an_absent_or_unknown_file_is_one_line(tmp_path):
    with pytest.raises(InputError, match="no such file"):
        read_tensors(tmp_path / "absent.pt")
    (tmp_path / "model.onnx").touch()
    with pytest.raises(InputError, match="model.onnx: unknown ending"):
        read_tensors(tmp_path / "model.onnx")


def test_torch_loads_the_export_strictly(state):
    torch = pytest.importorskip("torch")
    config = tiny(state).config
    exported = export_weights(ones(config), config=config)

    class Holder(torch.nn.Module):
        def __init__(self):
            super().__init__()
            for key, value in state.items():
                self.register_buffer(key.replace(".", "/"), torch.from_numpy(value.copy()))

    tensors = {key.replace(".", "/"): torch.from_numpy(np.array(v)) for key, v in exported.items()}
    assert Holder().load_state_dict(tensors, strict=True)
