"""Training loop: resumed == uninterrupted; invalid configs are one line."""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import ctclip_jax
from ctclip_jax import train
from ctclip_jax.checkpoints.exports import is_label_informed, load_export
from ctclip_jax.checkpoints.run import Checkpointer
from ctclip_jax.common.sharding import make_mesh
from ctclip_jax.convert import to_torch
from ctclip_jax.inference import calibration
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.validation import validate_shards
from data_pipelines import shards as shard_format
from data_pipelines.errors import InputError
from data_pipelines.files import renewing_checksums
from data_pipelines.tokenizers import load_tokenizer
from tests.records import make_record, settings
from tests.tiny_run import tiny_config, write_tiny_shards

ROOT = Path(__file__).parents[2]
STEPS = 40
# One device: the steps of eight take many times longer on two cores.
XLA_FLAGS = "--xla_backend_optimization_level=0"
CHANGES = {
    "steps": STEPS,
    "checkpoint.every": 10,
    "evaluation.every": 15,
    "evaluation.split": "train",
    "text_warmup.steps": 2,
}


def has_changed(after: dict, before: dict) -> bool:
    return not jax.tree.all(jax.tree.map(np.array_equal, after, before))


def losses(workdir: Path) -> list[tuple[int, float]]:
    return [(line["step"], line["loss"]) for line in metric_lines(workdir) if "loss" in line]


def evaluations(workdir: Path) -> list[dict]:
    return [line for line in metric_lines(workdir) if "loss" not in line]


def metric_lines(workdir: Path) -> list[dict]:
    return [json.loads(line) for line in (workdir / "metrics.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def shards(tmp_path_factory) -> Path:
    return write_tiny_shards(tmp_path_factory.mktemp("shards"), shape=(24, 48, 48))


@pytest.fixture(scope="module")
def start_main(shards):
    """Starts main.py on one device."""

    def start(workdir: Path, *arguments: str, before: Sequence[str] = ()) -> subprocess.Popen:
        command = [*before, sys.executable, "main.py", f"--workdir={workdir}"]
        command += ["--config=configs/phantoms.py:smoke", f"--config.data.shards={shards}"]
        command += [f"--config.{key}={value}" for key, value in CHANGES.items()]
        pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
        environment = {**os.environ, "XLA_FLAGS": XLA_FLAGS}
        return subprocess.Popen([*command, *arguments], cwd=ROOT, env=environment, **pipes)

    return start


def finish(process: subprocess.Popen) -> str:
    """The output of a program that succeeds."""
    with process:
        output, errors = process.communicate()
    assert process.returncode == 0, errors
    return output


@pytest.fixture(scope="module")
def finished(start_main, tmp_path_factory) -> Path:
    """The workdir of an uninterrupted run."""
    workdir = tmp_path_factory.mktemp("finished")
    finish(start_main(workdir, "--config.profile=(3, 4)"))
    return workdir


def test_run_writes_metrics_config_and_a_loadable_export(finished, shards):
    assert [step for step, _ in losses(finished)] == list(range(1, STEPS + 1))
    assert [line["step"] for line in evaluations(finished)] == [15, 30, STEPS]
    assert json.loads((finished / "config.json").read_text())["data"]["shards"] == str(shards)
    variables, config = load_export(finished / "export")
    assert config["max_length"] == 24 and config["tokenizer"] == "tokenizer.model"
    assert config["report_format"] == "joined" and config["pool_sentences"]
    assert config["data_sources"] == ["unknown"]  # its shards do not say
    assert variables["params"]["temperature"].shape == ()
    checkpoint, described = load_export(finished / "checkpoints" / str(STEPS))
    assert jax.tree.all(jax.tree.map(np.array_equal, checkpoint, variables))
    assert described.pop("tokenizer") == str(shards / "tokenizer.model")
    assert described == {name: config[name] for name in described}
    assert (finished / "text_warmup" / "metrics.jsonl").exists()


def test_run_logs_throughput_and_traces_the_profile_window(finished):
    lines = [line for line in metric_lines(finished) if "loss" in line]
    assert {f"gradient_norm/{tower}" for tower in ("image", "text", "temperature")} <= set(lines[0])
    assert all(0.0 <= line["data_wait"] <= 1.0 for line in lines if "data_wait" in line)
    timed = [line["step"] for line in lines if "volumes_per_second" in line]
    assert set(range(1, STEPS + 1)) - set(timed) == {1, 5, 16, 31}, "the first after a pause"
    (trace,) = (finished / "profile").rglob("*.xplane.pb")
    for scope in (b"patch_embed", b"spatial", b"temporal", b"peg", b"quantize", b"text"):
        operation = rb"jit\([\w/()]*\b" + scope + rb"\b"
        assert re.search(operation, trace.read_bytes()), f"no operation of {scope}"


def signal_after(
    process: subprocess.Popen, number: signal.Signals, *, workdir: Path, num_lines: int
):
    """Sends a signal once metrics.jsonl of `workdir` has more than `num_lines` lines."""
    metrics = workdir / "metrics.jsonl"
    while not (metrics.exists() and metrics.read_text().count("\n") > num_lines):
        assert process.poll() is None, process.communicate()
        time.sleep(0.002)
    process.send_signal(number)


@pytest.mark.drill
def test_interrupted_and_resumed_equals_uninterrupted(finished, start_main, full_disk, tmp_path):
    """By SIGKILL, by a full disk, and by SIGTERM, which alone loses no steps."""
    with start_main(tmp_path) as process:
        signal_after(process, signal.SIGKILL, workdir=tmp_path, num_lines=10)
    assert process.returncode == -signal.SIGKILL

    with start_main(tmp_path, before=full_disk(200)) as process:
        _, errors = process.communicate()
    assert process.returncode == 2
    line = rf"^error: {tmp_path}/checkpoints/\d+: cannot be saved \(File too large\)"
    assert re.search(line, errors, re.MULTILINE), errors

    with start_main(tmp_path) as process:
        signal_after(process, signal.SIGTERM, workdir=tmp_path, num_lines=22)
        output = finish(process)
    last, step = output.splitlines()[-1], losses(tmp_path)[-1][0]
    assert last == f"stopped by SIGTERM after step {step} of {STEPS}; the same command continues"
    assert step < STEPS and (tmp_path / "checkpoints" / str(step)).exists()

    assert f"from step {step}" in finish(start_main(tmp_path))
    assert losses(tmp_path) == losses(finished)
    assert evaluations(tmp_path) == evaluations(finished)


@pytest.mark.drill
def test_of_two_runs_on_one_workdir_one_trains(finished, start_main, tmp_path):
    runs = [start_main(tmp_path) for _ in range(2)]
    errors = [run.communicate()[1] for run in runs]
    refused = [run.returncode for run in runs].index(2)
    assert runs[1 - refused].returncode == 0
    pid = runs[1 - refused].pid
    expected = rf"error: {tmp_path}: another process trains here \(host .*, pid {pid}\)\n"
    assert re.fullmatch(expected, errors[refused])
    assert losses(tmp_path) == losses(finished)


@pytest.mark.drill
def test_a_full_disk_in_an_export_is_one_line_and_leaves_the_older_one(
    finished, start_main, full_disk, tmp_path
):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    calibration.save(workdir / "export", calibration.Calibration("zero_shot", {}, "none"))
    before = {path: path.stat().st_size for path in (workdir / "export").rglob("*")}
    with start_main(workdir, "--export", before=full_disk(200)) as process:
        _, errors = process.communicate()
    assert process.returncode == 2
    assert errors == f"error: {workdir}/export: cannot be saved (File too large)\n"
    assert {path: path.stat().st_size for path in (workdir / "export").rglob("*")} == before
    load_export(workdir / "export")


@pytest.mark.drill
def test_sigterm_in_the_text_warmup_keeps_the_compilation_cache(start_main, tmp_path, monkeypatch):
    monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
    with start_main(tmp_path, "--config.text_warmup.steps=10_000") as process:
        signal_after(process, signal.SIGTERM, workdir=tmp_path / "text_warmup", num_lines=0)
        output = finish(process)
    assert output.splitlines()[-1].startswith("stopped by SIGTERM in the text warm-up")
    assert not any((tmp_path / "checkpoints").iterdir())
    assert list((tmp_path / "compiled").glob("jit_step-*")), "a restart need not compile it again"


def test_export_of_the_newest_checkpoint(finished, start_main, tmp_path):
    workdir = shutil.copytree(finished, tmp_path / "copy")
    shutil.rmtree(workdir / "export")
    output = finish(start_main(workdir, "--export"))
    assert output == f"{workdir}/checkpoints/{STEPS} -> {workdir}/export\n"
    variables, _ = load_export(workdir / "export")
    expected, _ = load_export(finished / "export")
    assert not has_changed(variables, expected)
    assert (workdir / "export" / "model.safetensors").exists()


def test_checkpoint_of_another_shape_is_an_input_error(finished, shards):
    shape = r"image_projection/kernel is \(1152, 64\) in the weights and \(1152, 32\)"
    with pytest.raises(InputError, match=f"{finished}/checkpoints/{STEPS}: .*{shape}"):
        train.train(tiny_config(shards, **CHANGES | {"model.dim_latent": 32}), finished)
    assert json.loads((finished / "config.json").read_text())["model"]["dim_latent"] == 64


def initial(config, workdir) -> dict:
    mesh = make_mesh(config.mesh)
    return train.initial_variables(config, CTCLIP(config.model), mesh)


def test_training_starts_from_init_from(finished, shards):
    config = tiny_config(shards, **{"init_from": str(finished / "export"), "text_warmup.steps": 0})
    variables = initial(config, finished)
    exported, _ = load_export(finished / "export")
    assert not has_changed(variables, exported)
    assert variables["params"]["temperature"].sharding.mesh == make_mesh(config.mesh)


def test_init_from_of_another_shape_is_an_input_error(finished, shards):
    config = tiny_config(shards, **{"init_from": str(finished / "export"), "model.dim_latent": 32})
    with pytest.raises(InputError, match="image_projection/kernel is .* in the weights"):
        initial(config, finished)


TEXT_WARMUP = {"text_warmup.steps": 2}
EVALUATED = {"evaluation.every": 1, "evaluation.split": "train"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"loss.name": "soft"}, "config.loss.name: .*text_to_image.*prompts"),
        ({"model.dtype": "half"}, "config.model.dtype: .*float32, bfloat16"),
        ({"model.remat": "some"}, "config.model.remat: .*none, full, dots"),
        ({"model.attention": "fast"}, "config.model.attention: .*xla, cudnn"),
        ({"model.attention": "cudnn"}, "config.model.attention=cudnn: .*GPU"),
        ({"model.attention": "pallas"}, "config.model.attention=pallas: .*TPU"),
        (
            {"model.attention": "pallas", "model.image.heads": 6, "model.image.dim_head": 32},
            "config.model.attention=pallas: got 6 heads of 32",
        ),
        ({"data.max_length": 25}, "config.data.max_length: .*25.* 24"),
        ({"evaluation.max_length": 200}, "config.evaluation.max_length: .*200"),
        (TEXT_WARMUP | {"text_warmup.max_length": 200}, "config.text_warmup.max_length: .*200"),
        (TEXT_WARMUP | {"text_warmup.temperature": 0.0}, "config.text_warmup.temperature"),
        (TEXT_WARMUP | {"text_warmup.batch_size": 7}, "config.text_warmup.batch_size: 7 .* 8"),
        ({"loss.name": "softmax"}, "config.data.texts_per_volume: 6 .*text_to_image"),
        ({"loss.name": "sigmoid", "data.texts_per_volume": 1}, "config.loss.name=sigmoid: .*bias"),
        ({"loss.normal_target_share": 1.5}, "config.loss.normal_target_share: .*1.5"),
        ({"loss.block_size": -1}, "config.loss.block_size: .*-1"),
        ({"loss.block_size": 4}, "config.loss.block_size: .*4.* 6 texts"),
        ({"optim.schedule": "linear"}, "config.optim.schedule: .*constant, cosine"),
        ({"optim.rules": (("^txt", 0.0),)}, "config.optim.rules: '.txt'"),
        ({"optim.decay_rules": (("x$", 0.0),)}, "config.optim.decay_rules: 'x.'"),
        ({"batch_size": 0}, "config.batch_size: .*0"),
        ({"loss.max_temperature": -1.0}, "config.loss.max_temperature: .*-1"),
        ({"optim.ema": 1.0}, "config.optim.ema: .*1"),
        ({"micro_batch_size": 4}, "config.micro_batch_size: 4 .*8 devices"),
        ({"batch_size": 24, "micro_batch_size": 16}, "config.micro_batch_size: .*16.* 24"),
        ({"data.report_format": "all"}, "config.data.report_format: .*joined, impressions"),
        ({"data.texts_per_volume": 0}, "config.data.texts_per_volume: .*0"),
        ({"data.sentences_per_text": (0, 0)}, "texts.*6"),
        ({"data.sentences_per_text": (3, 1)}, r"sentences.*\(3, 1\)"),
        ({"data.sentences_per_text": (0, 2)}, r"sentences.*\(0, 2\)"),
        ({"data.report_format": "published_training"}, "published_training.*sentences"),
        ({"data.random_shift_voxels": -1}, "config.data.random_shift_voxels: .*-1"),
        ({"evaluation.report_format": "all"}, "config.evaluation.report_format: .*joined"),
        ({"evaluation.prompts": ()}, "config.evaluation.prompts: .*pair"),
        ({"evaluation.prompts": (("Seen.", "Not {}."),)}, "prompt 'Seen.'"),
        ({"evaluation.every": 1}, "'valid' .*config.evaluation.every=0"),
        ({"evaluation.every": -1}, "config.evaluation.every: .*-1"),
        ({"evaluation.volumes": -1}, "config.evaluation.volumes: .*-1"),
        (EVALUATED | {"evaluation.batch_size": 3}, "config.evaluation.batch_size: 3 .*8 devices"),
        ({"evaluation.report_format": "published_inference"}, "config.evaluation.pool_sentences"),
        ({"steps": 0}, "config.steps: .*0"),
        ({"checkpoint.every": 0}, "config.checkpoint.every: .*0"),
        ({"checkpoint.keep": 0}, "config.checkpoint.keep: .*0"),
        ({"checkpoint.best": -1}, "config.checkpoint.best: .*-1"),
        ({"max_skipped": -1}, "config.max_skipped: .*-1"),
        ({"profile": (0, 3)}, r"config.profile: .*\(0, 3\)"),
        ({"profile": (2, 5)}, r"config.profile: .*\(2, 5\).* 4"),
        ({"vq_ramp_steps": (9, 3)}, r"config.vq_ramp_steps: .*\(9, 3\)"),
        ({"model.image.patch_size": (10, 10)}, "config.model.image: volume 24x48x48 .*8x10x10"),
        ({"model.image.frames": 16}, r"shape \(24, 48, 48\).*\(16, 48, 48\)"),
        ({"model.image.window": (-900.0, 900.0)}, r"window \(-1000.0, 1000.0\).*config.model"),
        ({"data.mixture_weights": (1.0, 2.0)}, "weights: .* 1 folders"),
        ({"model.text.vocab_size": 50}, "tokenizer.model: .*config.model.text.vocab_size"),
        ({"data.shards": "absent"}, "absent"),
    ],
)
def test_invalid_config_fails_before_anything_is_written(changes, message, shards, tmp_path):
    with pytest.raises(InputError, match=message):
        train.train(tiny_config(shards, **changes), tmp_path)
    assert not any(tmp_path.iterdir())


def test_loss_on_labels_needs_known_labels(tmp_path):
    (shard,) = shard_format.begin(tmp_path / "shards", "train", settings=settings((24, 48, 48)))
    unknown = np.full(18, -1, np.int8)
    record = make_record("train_1_a_1.nii.gz", np.zeros((24, 48, 48), np.int16), labels=unknown)
    shard_format.write_shard(shard, [record])
    shard_format.finish(tmp_path / "shards")
    changes = {
        "loss.name": "labels",
        "model.num_labels": 18,
        "model.image.spacing": (1.5, 0.75, 0.75),
    }
    with pytest.raises(InputError, match="all labels are unknown"):
        validate_shards(tiny_config(tmp_path / "shards", **changes))


@pytest.mark.parametrize("form", ["workdir", "export", "weights"])
def test_weights_trained_with_labels_mark_the_run_label_informed(shards, finished, tmp_path, form):
    """Of whatever form the weights are that a run begins with."""
    described = json.loads((finished / "export" / "config.json").read_text())
    assert not described["label_informed"] and not is_label_informed(finished)
    informed = tmp_path / "run"
    shutil.copytree(finished / "export", informed / "export")
    (informed / "checkpoints").mkdir()
    path = informed / "export" / "config.json"
    with renewing_checksums(informed / "export", path.name):
        path.write_text(json.dumps(described | {"label_informed": True}))
    to_torch(informed / "export", tmp_path / "weights.safetensors")
    start = {"workdir": informed, "export": informed / "export"}
    start = start.get(form, tmp_path / "weights.safetensors")
    config = tiny_config(shards, init_from=str(start))
    assert not config.is_label_informed and train.export_description(config)["label_informed"]
    if form == "weights":
        sizes = {"image_size": 48, "patch_size": 8, "temporal_patch_size": 8, "frames": 24}
        assert ctclip_jax.load(start, **sizes, text_heads=2).label_informed
        overridden = ctclip_jax.load(start, **sizes, text_heads=2, label_informed=False)
        assert not overridden.label_informed


def test_loader_layout_depends_on_cases_and_their_order(shards, tmp_path):
    other = write_tiny_shards(tmp_path, shape=(24, 48, 48), volumes=2, cases_sha256="others")
    folders = [str(shards), str(other)]
    layouts = [
        train.loader_layout(tiny_config(shards, **{"data.shards": ",".join(order)}))
        for order in (folders, folders[::-1])
    ]
    assert layouts[0]["cases"] == layouts[1]["cases"][::-1] != layouts[1]["cases"]


@pytest.mark.parametrize("micro_batch_size", [0, 8])
def test_a_run_that_stops_with_batches_in_flight_reads_them_again(
    micro_batch_size, shards, tmp_path
):
    config = tiny_config(shards, **{"batch_size": 16, "micro_batch_size": micro_batch_size})
    mesh, tokenizer = make_mesh(config.mesh), load_tokenizer(config.data.tokenizer_path)
    state = {"step": jnp.zeros((), jnp.int32)}

    def start() -> tuple[Checkpointer, grain.DatasetIterator]:
        checkpointer = Checkpointer(
            tmp_path,
            config.checkpoint,
            layout=train.loader_layout(config),
            run_config={},
            export_description=train.export_description(config),
        )
        return checkpointer, train.train_batches(config, mesh, tokenizer)

    checkpointer, batches = start()
    on_devices = [isinstance(next(batches)["image"], jax.Array) for _ in range(2)]
    assert on_devices == 2 * [not micro_batch_size], "micro-batches wait on the host"
    checkpointer.save(2, state, batches)  # while two more are on their way
    expected = [jax.device_get(next(batches)) for _ in range(3)]
    batches.close()
    checkpointer.close()

    checkpointer, batches = start()
    next(batches)
    checkpointer.restore(jax.eval_shape(lambda: state), batches)
    for batch in expected:
        jax.tree.map(np.testing.assert_array_equal, jax.device_get(next(batches)), batch)
    batches.close()
    checkpointer.close()
