"""LoRA: new adapters change nothing; merged weights are W + a b."""

import jax
import numpy as np
import pytest

from ctclip_jax.common.trees import flatten
from ctclip_jax.models import lora
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.models.lora import LoraConfig
from ctclip_jax.training.step import inference_variables
from tests.fake_clip import FakeCLIP, fake_batch
from tests.training.test_step import VOLUMES, changed_arrays, run, setup

ONLY_ADAPTERS = {"lora.rank": 2, "optim.rules": (("^lora/", 1.0), ("", 0.0))}


def with_random_adapters(params: dict) -> dict:
    """The parameters with nonzero adapters."""
    params = lora.with_adapters(params, LoraConfig(rank=3), jax.random.key(0))
    draw = lambda leaf: 0.1 * jax.random.normal(jax.random.key(leaf.size), leaf.shape)  # noqa: E731
    return params | {"lora": jax.tree.map(draw, params["lora"])}


def test_new_adapters_change_nothing(tiny):
    params = tiny[1]["params"]
    adapted = lora.with_adapters(params, LoraConfig(rank=3), jax.random.key(0))
    assert not changed_arrays(lora.merged(adapted), params)


def test_adapts_the_kernels_of_blocks_in_both_towers(tiny):
    params = lora.with_adapters(tiny[1]["params"], LoraConfig(rank=3), jax.random.key(0))
    adapted = {name.rpartition("/")[0] for name in flatten(params["lora"])}
    kernels = {name for name in flatten(tiny[1]["params"]) if "/blocks/" in name}
    kernels = {name for name in kernels if name.endswith("kernel") and "/peg/" not in name}
    assert adapted == kernels
    assert {name.split("/")[0] for name in adapted} == {"image", "text"}


def test_merged_equals_unmerged(tiny):
    """x (W + a b) against x W + (x a) b, in every layer of every stack."""
    params = with_random_adapters(tiny[1]["params"])
    whole, adapters = flatten(lora.merged(params)), flatten(params["lora"])
    for name in {path.rpartition("/")[0] for path in adapters}:
        kernel = flatten(params)[name]
        x = jax.random.normal(jax.random.key(1), (len(kernel), 5, kernel.shape[-2]))
        with jax.default_matmul_precision("float32"):
            beside = x @ kernel + (x @ adapters[f"{name}/a"]) @ adapters[f"{name}/b"]
            merged = x @ whole[name]
        np.testing.assert_allclose(merged, beside, rtol=0, atol=1e-5 * np.abs(beside).max())


def test_only_adapters_are_trained_and_the_export_is_merged():
    adapted, batch = setup(**ONLY_ADAPTERS), fake_batch(VOLUMES)
    state, metrics, norms = run(adapted, batch, batch, batch)
    before = FakeCLIP().init()
    base = {name: tree for name, tree in state["params"].items() if name != "lora"}
    assert not changed_arrays(base, before["params"])
    assert not changed_arrays(state["codebook"], before["codebook"])
    assert set(norms) == {f"lora/image/blocks/up/kernel/{part}" for part in "ab"}
    exported = inference_variables(state)
    assert changed_arrays(exported["params"], before["params"]) == {"image/blocks/up/kernel"}
    without_dropout = setup(**{"optim.rules": (("^text", 0.0),)})
    _, again, _ = run(without_dropout, batch, variables=exported)
    _, fourth, _ = run(adapted, batch, batch, batch, batch)
    assert float(again["loss"]) == pytest.approx(float(fourth["loss"]), rel=1e-5)
    assert float(fourth["loss"]) < float(metrics["loss"])


def test_rank_0_has_no_adapters(tiny):
    params = tiny[1]["params"]
    assert lora.with_adapters(params, LoraConfig(), jax.random.key(0)) is params
    assert lora.merged(params) is params
    names = flatten(lora.abstract_params(CTCLIP(tiny[0].config).init, LoraConfig()))
    assert names.keys() == flatten(params).keys()
