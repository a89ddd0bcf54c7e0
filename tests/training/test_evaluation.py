"""Evaluation inside a run: the figures of the exported model, whatever the devices, on a subset."""

import dataclasses
import json

import jax
import numpy as np
import pytest

import ctclip_jax
from configs import evaluation
from ctclip_jax.checkpoints.exports import save_export
from ctclip_jax.common.configs import from_dict
from ctclip_jax.common.sharding import MeshConfig, make_mesh, state_shardings
from ctclip_jax.evaluate import Inputs, evaluate
from ctclip_jax.evaluation.estimates import named_estimates
from ctclip_jax.evaluation.protocol import ProtocolConfig
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.evaluation import Evaluation, spread
from ctclip_jax.training.metric_writer import MetricWriter
from data_pipelines.tokenizers import load_tokenizer
from tests.tiny_run import tiny_config, write_tiny_shards

SHAPE = (24, 48, 48)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=SHAPE)


@pytest.fixture(scope="module")
def variables(folder):
    return CTCLIP(settings(folder).model).init(jax.random.key(0))


def settings(folder, **changes):
    return tiny_config(
        folder, **{"evaluation.every": 1, "evaluation.split": "train", "evaluation.batch_size": 8}
        | changes
    )  # fmt: skip


def measure(folder, variables, workdir, *, devices=8, fsdp=1, **changes):
    config = settings(folder, **changes)
    mesh = make_mesh(MeshConfig(data=-1, fsdp=fsdp), devices=jax.devices()[:devices])
    run = Evaluation(
        config,
        model=CTCLIP(config.model),
        mesh=mesh,
        tokenizer=load_tokenizer(config.data.tokenizer_path),
        label_informed=False,
    )
    writer = MetricWriter(workdir, step=0)
    run(jax.device_put(variables, state_shardings(variables, mesh)), step=3, writer=writer)
    writer.close()
    (line,) = (workdir / "metrics.jsonl").read_text().splitlines()
    found = json.loads(line)
    assert found.pop("step") == 3
    return found


def test_figures_are_those_of_the_exported_model(folder, variables, tmp_path):
    found = measure(folder, variables, tmp_path)
    config = settings(folder)
    save_export(
        tmp_path / "export",
        variables,
        config={"model": dataclasses.asdict(config.model), "max_length": 24}
        | {
            "report": config.evaluation.report_format,
            "pool_sentences": config.evaluation.pool_sentences,
        },
        tokenizer=config.data.tokenizer_path,
    )
    inputs = Inputs(model=str(tmp_path / "export"), shards=str(folder), split="train")
    protocol = evaluation.get_config().to_dict() | {"resamples": 0}
    metrics = evaluate(inputs, tmp_path / "out", protocol=from_dict(ProtocolConfig, protocol))
    expected = {
        f"evaluation/{name}": figure["value"]
        for part in ("detection", "retrieval")
        for name, figure in named_estimates(metrics[part], part)
        if figure["value"] is not None
    }
    assert found == pytest.approx(expected, abs=1e-6)
    assert ctclip_jax.load(tmp_path / "export").pool_sentences
    assert "evaluation/retrieval/report_to_volume/recall/5" in found


@pytest.mark.parametrize("devices", [{"devices": 1}, {"devices": 8, "fsdp": 4}])
def test_figures_do_not_depend_on_the_devices(folder, variables, tmp_path, devices):
    expected = measure(folder, variables, tmp_path / "a")
    assert measure(folder, variables, tmp_path / "b", **devices) == pytest.approx(
        expected, abs=1e-6
    )


def test_a_subset_is_spread_over_the_split(folder, variables, tmp_path, capsys):
    assert spread(10, 0) == spread(10, 99) == list(range(10))
    assert spread(10, 4) == [0, 3, 6, 9]
    found = measure(folder, variables, tmp_path, **{"evaluation.volumes": 6})
    assert "evaluation/retrieval/report_to_volume/recall/5" in found
    assert "evaluation/retrieval/report_to_volume/recall/10" not in found, "six volumes"
    assert capsys.readouterr().out.startswith("step 3: mean AUROC ")
    assert np.isfinite(list(found.values())).all()
