"""Ablation recipes: equal compute, and a recipe differs from its predecessor as declared."""

import dataclasses

import pytest

from benchmarks.ablation import RECIPES, experiment
from ctclip_jax.common import trees
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.training.validation import validate_config

VOLUMES = 18_000
PLAN = {"seed", "steps", "vq_ramp_steps", "log_every"}


def flat(config) -> dict:
    return trees.flatten(dataclasses.asdict(config))


def recipe(name: str):
    return experiment(name, 3, shards="shards", volumes=VOLUMES)


@pytest.mark.parametrize("name", RECIPES)
def test_recipe_is_valid_and_within_the_budget(name):
    config, published = recipe(name), recipe("published")
    validate_config(config, tokenizer=None, mesh=make_mesh(config.mesh))
    budget = published.steps * step_flops(published)
    assert config.steps * step_flops(config) == pytest.approx(budget, rel=2e-3)
    assert published.steps * published.batch_size == VOLUMES
    assert config.seed == 3


@pytest.mark.parametrize("name", [name for name in RECIPES if RECIPES[name].built_on])
def test_recipe_changes_only_declared_keys(name):
    config, before = flat(recipe(name)), flat(recipe(RECIPES[name].built_on))
    changed = {key for key in config | before if config.get(key) != before.get(key)} - PLAN
    declared = RECIPES[name].changes
    allowed = {key.replace("tower", "model/image").replace(".", "/") for key in declared}
    assert changed
    assert all(key.startswith(tuple(allowed)) for key in changed), changed - allowed
