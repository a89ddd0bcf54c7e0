"""Dry run: the compiled step of tiny configs, and what main.py --dry_run prints."""

import dataclasses
import math
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from configs import report_labeler
from ctclip_jax.common.configs import from_dict
from ctclip_jax.cost import dry_run
from ctclip_jax.cost.accelerators import GIB, Accelerator
from ctclip_jax.cost.flops import Product, search_flops, step_flops, volume_flops
from ctclip_jax.cost.hlo import Collective
from ctclip_jax.cost.kernels import Kernel
from ctclip_jax.cost.step_report import (
    DoesNotFit,
    ProgramReport,
    StepReport,
    _shortage,
    step_report,
)
from ctclip_jax.models.ct_clip import CTCLIP
from ctclip_jax.training.config import TrainConfig
from ctclip_jax.training.step import abstract_batch, make_train_step
from data_pipelines.batching import PUT_AHEAD
from data_pipelines.errors import InputError
from tests.tiny_run import tiny_config

ROOT = Path(__file__).parents[2]
COMMAND = [sys.executable, "main.py", "--config=configs/phantoms.py:smoke"]
SMALL = {"model.image.frames": 8, "model.image.image_size": (16, 16), "mesh.fsdp": 2}
CONFIG = tiny_config(Path("absent"), **SMALL)
TPU = "v5e:2x2"


@pytest.fixture(scope="module")
def plain() -> StepReport:
    return step_report(CONFIG)


@pytest.fixture(scope="module")
def cached() -> StepReport:
    config = tiny_config(Path("absent"), batch_size=32, micro_batch_size=8, **SMALL)
    return step_report(config)


def test_a_device_computes_its_share_of_the_model_flops(plain):
    (program,) = plain.programs.values()
    model = step_flops(CONFIG) / 8
    # At this size the position bias is a large part of it.
    assert model < program.flops < 2 * model
    assert plain.total("flops") == program.flops


def abstract_state(mesh) -> dict:
    return make_train_step(CONFIG, CTCLIP(CONFIG.model), mesh).abstract_state


def bytes_of(tree: dict) -> int:
    """Bytes of the arrays on the first device."""
    leaves = jax.tree.leaves(tree)
    return sum(
        math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in leaves
    )


def test_memory_is_that_of_one_device(plain):
    (program,) = plain.programs.values()
    state = bytes_of(abstract_state(plain.mesh))
    batch = bytes_of(abstract_batch(CONFIG, plain.mesh))
    assert state <= program.arguments <= state + batch
    assert program.aliased > 0.99 * state, "the state must be donated"
    assert program.resident == (PUT_AHEAD + 1) * batch, "one is queued, the others are put ahead"
    assert plain.needs == program.needs > program.arguments
    assert plain.memory is None and plain.fits


def test_gradients_are_summed_over_the_devices(plain):
    (program,) = plain.programs.values()
    assert {each.kind for each in program.collectives} >= {"all-reduce", "all-gather"}
    gradients = bytes_of(abstract_state(plain.mesh)["params"])
    assert gradients < program.sent < 5 * gradients


def test_weights_are_sent_and_activations_are_not(plain):
    eight_fold = step_report(tiny_config(Path("absent"), batch_size=64, **SMALL))
    assert eight_fold.total("flops") > 6 * plain.total("flops")
    assert eight_fold.total("sent") < 1.2 * plain.total("sent")


def test_programs_of_the_gradient_cache_run_once_or_for_each_micro_batch(cached, plain):
    assert {name: each.runs for name, each in cached.programs.items()} == {
        "encode": 4,
        "loss": 1,
        "backward": 4,
        "update": 1,
    }
    encode, backward = cached.programs["encode"], cached.programs["backward"]
    assert encode.flops < backward.flops
    assert backward.resident > 0.9 * plain.programs["train_step"].arguments * 2 / 3
    assert cached.programs["update"].resident == 0
    assert cached.total("flops") > 4 * plain.total("flops")


def test_the_kernels_hold_the_products_of_a_step(plain):
    (program,) = plain.programs.values()
    flops = sum(kernel.runs * kernel.flops for kernel in plain.kernels)
    # On a CPU XLA writes some small products as loops.
    assert 0.9 < flops / program.flops < 1.1
    assert plain.total("traffic") > program.arguments


def test_encoding_is_a_program_too(cached):
    config = tiny_config(Path("absent"), batch_size=32, micro_batch_size=8, **SMALL)
    report = step_report(config, program="encode")
    assert list(report.programs) == ["encode_image"]
    model = 32 * (volume_flops(config.model) + search_flops(config.model)) / 8
    assert report.model_flops == model <= report.total("flops")
    assert report.needs < cached.needs
    without_volumes = from_dict(TrainConfig, report_labeler.get_config("smoke").to_dict())
    with pytest.raises(InputError, match="--program"):
        step_report(without_volumes, program="encode")


KERNEL = Kernel("fusion", "jit(step)/text/add", 3, 4e9, 0.0, False, None, None)


def fake_report(**changes) -> StepReport:
    program = ProgramReport(
        runs=2,
        arguments=2.0 * GIB,
        outputs=GIB,
        aliased=GIB,
        temporaries=0.5 * GIB,
        resident=0.25 * GIB,
        flops=300.0,
        float32_products=(Product("text", "f32[4,8] x f32[8,4]", 16e9, 3),),
        kernels=(KERNEL,),
        collectives=(Collective("all-reduce", 3, 4.0),),
    )
    fields = {
        "mesh": jax.make_mesh((8, 1), ("data", "fsdp")),
        "accelerator": Accelerator("X", 100.0, 3 * GIB, 16e9, 2.0),
        "memory": 3.0 * GIB,
        "model_flops": 250.0,
        "programs": {"step": program},
    }
    return StepReport(**fields | changes)


def without_text(report: StepReport) -> StepReport:
    program = dataclasses.replace(report.programs["step"], collectives=None, kernels=None)
    return dataclasses.replace(report, programs={"step": program})


@pytest.mark.parametrize(("memory", "fits"), [(3.0, True), (2.75, True), (2.5, False)])
def test_fits_if_memory_suffices(memory, fits):
    assert fake_report(memory=memory * GIB).fits == fits
    assert fake_report().needs == 2.75 * GIB


@pytest.mark.parametrize(
    ("message", "shortage"),
    [
        ("RESOURCE_EXHAUSTED: ... Used 19.51G of 15.75G hbm.", "needs 19.51 GiB of 15.75 GiB"),
        ("RESOURCE_EXHAUSTED: ... Used 1.50T of 512.00M hbm.", "needs 1536.00 GiB of 0.50 GiB"),
        (
            "the total memory (201.56G) exceeds available HBM (15.75G).",
            "needs 201.56 GiB of 15.75 GiB",
        ),
        ("RESOURCE_EXHAUSTED: Out of\n memory", "RESOURCE_EXHAUSTED: Out of memory"),
    ],
)
def test_reads_the_numbers_of_a_compiler_error(message, shortage):
    assert _shortage(message) == shortage


@pytest.fixture(scope="module")
def libtpu():
    pytest.importorskip("libtpu")


def test_compiles_for_a_tpu_that_is_not_attached(libtpu):
    report = step_report(CONFIG, topology=TPU)
    assert report.mesh.devices.size == 4 and report.accelerator.name == "TPU v5e"
    assert report.memory == 15.75 * GIB and report.fits
    assert report.total("sent") > 0
    assert any(kernel.cycles for kernel in report.kernels)


def test_a_refused_batch_has_numbers(libtpu):
    config = tiny_config(Path("absent"), batch_size=2**17, **SMALL)
    with pytest.raises(DoesNotFit, match=r"needs [\d.]+ GiB of 15.75 GiB"):
        step_report(config, topology=TPU)


def test_the_table_has_a_column_for_each_program():
    report = fake_report()
    update = dataclasses.replace(report.programs["step"], runs=1, collectives=())
    both = dataclasses.replace(report, programs=report.programs | {"update": update})
    lines = dry_run.format_table(both).splitlines()
    assert lines[0].split() == ["step", "update"]
    assert lines[1].split() == ["runs", "per", "step", "2", "1"]
    assert [line.split()[0] for line in lines[2:8]] == list(dry_run.MEMORY_ROWS)
    assert lines[7].split() == ["needs", "2.75", "GiB", "2.75", "GiB"]
    assert lines[9].split() == ["kernels", "3", "3"]
    assert lines[10].split() == ["traffic", "12", "GB", "12", "GB"]
    assert lines[-1].split() == ["all-reduce", "3", "x,", "4", "B", "sent", "-"]


def test_the_time_states_its_arithmetic():
    text = dry_run.format_time(fake_report())
    assert text.startswith("mesh data=8 fsdp=1; a device computes 600 FLOP per step, 250 FLOP of")
    assert "at its peaks: arithmetic 6 s, memory 1.5 s, collectives 4 s" in text
    assert text.splitlines()[-1].startswith("estimated 1.875 s")  # 24 GB at 80 % of 16 GB/s
    assert "no time: no peaks" in dry_run.format_time(fake_report(accelerator=None))
    unreadable = without_text(fake_report())
    assert dry_run.format_time(unreadable).endswith("no time: jax cannot read the compiled program")
    assert unreadable.kernels is None
    assert "all-reduce" not in dry_run.format_table(unreadable)


def test_float32_products_are_counted_or_listed():
    summary = "float32 products above 1 GFLOP: 3, 6 GFLOP"  # of one of eight devices
    assert dry_run.format_float32_products(fake_report(), with_list=False) == summary
    listed = dry_run.format_float32_products(fake_report(), with_list=True).splitlines()
    assert listed == [summary, "  3 x f32[4,8] x f32[8,4]  text"]


def test_parts_of_the_model_are_printed_on_request(monkeypatch, capsys):
    monkeypatch.setattr(dry_run, "step_report", lambda *_, **__: fake_report())
    assert dry_run.dry_run(CONFIG) and "fwd" not in capsys.readouterr().out
    assert dry_run.dry_run(CONFIG, scopes=True)
    row = capsys.readouterr().out.splitlines()[4].split()
    assert row == ["text", "fwd", "6", "1875.018", "24.000", "0.000"]
    for unknown in (fake_report(accelerator=None), without_text(fake_report())):
        assert dry_run.format_scopes(unknown).startswith("--scopes: no table: ")


@pytest.mark.parametrize(
    ("memory", "sentence"),
    [
        (3.0 * GIB, "It fits: needs 2.75 GiB of the 3 GiB of each device, and is estimated at 1."),
        (2.0 * GIB, "It does not fit: needs 2.75 GiB of the 2 GiB of each device; use a smaller"),
        (None, "It needs 2.75 GiB of each device, whose memory is unknown."),
    ],
)
def test_the_verdict_is_a_sentence(memory, sentence):
    remedy = dry_run.REMEDIES["train"]
    assert dry_run.format_verdict(fake_report(memory=memory), remedy=remedy).startswith(sentence)


def test_a_refused_program_is_a_sentence(monkeypatch, capsys):
    def refuse(config, *, topology, program):
        raise DoesNotFit("needs 20.00 GiB of 15.75 GiB")

    monkeypatch.setattr(dry_run, "step_report", refuse)
    assert not dry_run.dry_run(CONFIG)
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith("It does not fit: needs 20.00 GiB of 15.75 GiB; ")
    assert "config.micro_batch_size" in line
    assert not dry_run.dry_run(CONFIG, program="encode")
    assert "micro_batch_size" not in capsys.readouterr().out


def test_a_dry_run_needs_no_data():
    process = subprocess.run([*COMMAND, "--dry_run"], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 0, process.stderr
    assert process.stderr.startswith("compiling (train) for the devices here")
    verdict, _, header, *_ = process.stdout.splitlines()
    assert verdict.startswith("It needs ") and header.split() == ["train_step"]
    assert " MiB" in verdict, "a tiny step is not 0.00 GiB"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--topology=v5e:4x4"], "error: --topology: only with --dry_run"),
        (["--program=encode"], "error: --program: only with --dry_run"),
        (["--scopes"], "error: --scopes: only with --dry_run"),
        ([], "error: --workdir: missing"),
        (["--workdir=gs://bucket/run"], "error: --workdir: got gs://bucket/run"),
        (["--dry_run", "--config.mesh.fsdp=3"], "error: config.mesh: "),
        (["--dry_run", "--config.batch_size=12"], "error: config.batch_size: 12 is not divisible"),
    ],
)
def test_wrong_arguments_are_one_line(arguments, message):
    process = subprocess.run([*COMMAND, *arguments], cwd=ROOT, capture_output=True, text=True)
    assert process.returncode == 2
    (line,) = process.stderr.splitlines()
    assert line.startswith(message)
