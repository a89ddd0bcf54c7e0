"""The compiled step of tiny configs: what is counted, and what is said of devices."""

import math
import sys
from pathlib import Path

import jax
import pytest

from ctclip_jax.cost import step_report as reports
from ctclip_jax.cost.accelerators import GIB, Accelerator
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.cost.step_report import DoesNotFit, ProgramReport, StepReport, step_report
from ctclip_jax.training.step import abstract_batch, abstract_state, make_learner
from data_pipelines.errors import InputError
from tests.tiny_run import tiny_config

SMALL = {"model.image.frames": 8, "model.image.image_size": (16, 16), "mesh.fsdp": 2}
TPU = "v5e:2x2"


@pytest.fixture(scope="module")
def plain() -> StepReport:
    return step_report(tiny_config(Path("absent"), **SMALL))


@pytest.fixture(scope="module")
def cached() -> StepReport:
    config = tiny_config(Path("absent"), batch_size=32, micro_batch_size=8, **SMALL)
    return step_report(config)


def test_a_device_computes_its_share_of_the_model(plain):
    (program,) = plain.programs.values()
    model = step_flops(tiny_config(Path("absent"), **SMALL)) / 8
    # At this size the position bias is a large part of it.
    assert model < program.flops < 2 * model
    assert plain.total("flops") == program.flops


def test_memory_is_that_of_one_device(plain):
    (program,) = plain.programs.values()
    learner = make_learner(tiny_config(Path("absent"), **SMALL), plain.mesh)
    state, batch = bytes_of(abstract_state(learner)), bytes_of(abstract_batch(learner))
    assert state <= program.arguments <= state + batch
    assert program.aliased > 0.99 * state, "the state must be donated"
    assert program.resident == batch
    assert plain.needs == program.needs > program.arguments
    assert plain.memory is None and plain.fits and plain.roofline is None


def bytes_of(tree: dict) -> int:
    """Bytes of the arrays on the first device."""
    shapes = [leaf.sharding.shard_shape(leaf.shape) for leaf in jax.tree.leaves(tree)]
    sizes = [leaf.dtype.itemsize for leaf in jax.tree.leaves(tree)]
    return sum(math.prod(shape) * size for shape, size in zip(shapes, sizes, strict=True))


def test_gradients_are_summed_over_the_devices(plain):
    (program,) = plain.programs.values()
    assert {each.kind for each in program.collectives} >= {"all-reduce", "all-gather"}
    learner = make_learner(tiny_config(Path("absent"), **SMALL), plain.mesh)
    gradients = bytes_of(abstract_state(learner)["params"])
    assert gradients < program.sent < 5 * gradients


def test_weights_travel_and_activations_do_not(plain):
    eight_fold = step_report(tiny_config(Path("absent"), batch_size=64, **SMALL))
    assert eight_fold.total("flops") > 6 * plain.total("flops")
    assert eight_fold.total("sent") < 1.2 * plain.total("sent")


def test_the_programs_of_the_gradient_cache_run_once_or_for_each_micro_batch(cached, plain):
    assert {name: each.runs for name, each in cached.programs.items()} == {
        "encode": 4,
        "contrast": 1,
        "backward": 4,
        "update": 1,
    }
    encode, backward = cached.programs["encode"], cached.programs["backward"]
    assert encode.flops < backward.flops
    assert backward.resident > 0.9 * plain.programs["train_step"].arguments * 2 / 3
    assert cached.programs["update"].resident == 0
    assert cached.total("flops") > 4 * plain.total("flops")


def fake_report(**changes) -> StepReport:
    peaks = Accelerator("X", 100.0, 3 * GIB, 10.0, 2.0)
    memory = {"arguments": 2.0 * GIB, "outputs": GIB, "aliased": GIB, "temporaries": 0.5 * GIB}
    collective = reports.hlo.Collective("all-reduce", 3, 4.0)
    program = ProgramReport(
        runs=2, **memory, resident=0.25 * GIB, flops=300.0, traffic=20.0, collectives=(collective,)
    )
    mesh = jax.make_mesh((8, 1), ("data", "fsdp"))
    given = {"mesh": mesh, "accelerator": peaks, "memory": 3.0 * GIB}
    return StepReport(**given | changes, programs={"step": program})


def test_a_roofline_is_the_slower_of_arithmetic_and_memory_and_the_collectives():
    roofline = fake_report().roofline
    assert (roofline.arithmetic, roofline.memory, roofline.interconnect) == (6.0, 4.0, 4.0)
    assert roofline.seconds == 10.0 and roofline.collective_share == 0.4


@pytest.mark.parametrize(("memory", "fits"), [(3.0, True), (2.75, True), (2.5, False)])
def test_what_fits(memory, fits):
    assert fake_report(memory=memory * GIB).fits == fits
    assert fake_report().needs == 2.75 * GIB


@pytest.mark.parametrize(
    ("message", "told"),
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
def test_what_the_compiler_says_of_memory(message, told):
    assert reports._shortage(message) == told


def test_a_topology_without_its_compiler_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match="the TPU compiler is missing: pip install"):
        reports.topology_devices(TPU)


@pytest.fixture(scope="module")
def libtpu():
    pytest.importorskip("libtpu")


def test_an_unknown_topology_is_one_line(libtpu):
    with pytest.raises(InputError, match="--topology=v5e:3x5x7: .*; wanted e.g. v5e:4x4"):
        reports.topology_devices("v5e:3x5x7")


def test_a_step_is_compiled_for_a_tpu_that_is_not_there(libtpu):
    report = step_report(tiny_config(Path("absent"), **SMALL), topology=TPU)
    assert report.mesh.devices.size == 4 and report.accelerator.name == "TPU v5e"
    assert report.memory == 15.75 * GIB and report.fits
    assert report.roofline.interconnect > 0


def test_a_batch_that_does_not_fit_is_told_with_numbers(libtpu):
    config = tiny_config(Path("absent"), batch_size=2**17, **SMALL)
    with pytest.raises(DoesNotFit, match=r"needs [\d.]+ GiB of 15.75 GiB"):
        step_report(config, topology=TPU)
