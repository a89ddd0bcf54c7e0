"""Dry run (`main.py --dry_run`): prints what a compiled program needs, and its estimated time."""

import pandas as pd

from ctclip_jax.cost import estimate
from ctclip_jax.cost.accelerators import BINARY, with_unit
from ctclip_jax.cost.step_report import (
    LARGE_PRODUCT,
    DoesNotFit,
    Kind,
    StepReport,
    step_report,
)
from ctclip_jax.training.config import TrainConfig

REMEDIES: dict[Kind, str] = {
    "train": "use a smaller config.batch_size or config.micro_batch_size,"
    " config.model.remat='full', or a larger config.mesh.fsdp",
    "encode": "use a smaller config.batch_size or a larger config.mesh.fsdp",
}
MEMORY_ROWS = ("arguments", "outputs", "aliased", "temporaries", "resident", "needs")


def dry_run(
    config: TrainConfig, *, topology: str = "", program: Kind = "train", scopes: bool = False
) -> bool:
    """Prints the report of `step_report`, its verdict first; returns whether the step fits.

    With `scopes`, also the estimated time of each part of the model and the float32 products.
    """
    try:
        report = step_report(config, topology=topology, program=program)
    except DoesNotFit as error:
        print(f"It does not fit: {error}; {REMEDIES[program]}.")
        return False
    print(format_verdict(report, remedy=REMEDIES[program]), end="\n\n")
    if scopes:
        print(format_scopes(report), end="\n\n")
    print(format_table(report))
    print(format_time(report))
    if config.model.dtype == "bfloat16":
        print(format_float32_products(report, with_list=scopes))
    return report.fits


def format_scopes(report: StepReport) -> str:
    """Formats the estimated time of each part of the model, or why there is none."""
    if unknown := _unknown(report):
        return f"--scopes: no table: {unknown}"
    table = estimate.table(report.kernels, report.accelerator)
    return table.to_string(float_format="{:.3f}".format)


def format_table(report: StepReport) -> str:
    """Returns a row for each quantity of one device and a column for each program."""
    columns = {}
    for name, program in report.programs.items():
        memory = {row: with_unit(getattr(program, row), "B", BINARY) for row in MEMORY_ROWS}
        collectives = {
            x.kind: f"{x.count} x, {with_unit(x.bytes, 'B')} sent"
            for x in program.collectives or ()
        }
        traffic = {}
        if program.kernels is not None:
            num_kernels = sum(kernel.runs for kernel in program.kernels)
            traffic = {"kernels": num_kernels, "traffic": with_unit(program.traffic, "B")}
        columns[name] = {
            "runs per step": program.runs,
            **memory,
            "arithmetic": with_unit(program.flops, "FLOP"),
            **traffic,
            **collectives,
        }
    return pd.DataFrame(columns).fillna("-").to_string()


def format_time(report: StepReport) -> str:
    """Formats the mesh, FLOPs, seconds at the peaks of the device, and the estimate by kernel."""
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    flops, peaks = report.total("flops"), report.accelerator
    head = (
        f"mesh {mesh}; a device computes {with_unit(flops, 'FLOP')} per step,"
        f" {with_unit(report.model_flops, 'FLOP')} of it the model's"
    )
    if unknown := _unknown(report):
        return f"{head}\nno time: {unknown}"
    return (
        f"{head}\n"
        f"{peaks.name} at its peaks: arithmetic {with_unit(flops / peaks.bf16_flops, 's')},"
        f" memory {with_unit(report.total('traffic') / peaks.memory_bandwidth, 's')},"
        f" collectives {with_unit(report.total('sent') / peaks.link_bandwidth, 's')}\n"
        f"{estimate.format_estimate(report.kernels, peaks)}"
    )


def _unknown(report: StepReport) -> str:
    """What an estimate of the time lacks, if anything."""
    if report.accelerator is None:
        return "no peaks of this device in cost/accelerators.py"
    return "jax cannot read the compiled program" if report.kernels is None else ""


def format_float32_products(report: StepReport, *, with_list: bool) -> str:
    """Formats count and FLOPs of the large float32 products of a device, or also each of them."""
    products = [x for program in report.programs.values() for x in program.float32_products]
    flops = sum(x.runs * x.flops for x in products) / report.mesh.size
    lines = [
        f"float32 products above {LARGE_PRODUCT / 1e9:.0f} GFLOP:"
        f" {sum(x.runs for x in products)}, {with_unit(flops, 'FLOP')}"
    ]
    if with_list:
        lines += [f"  {x.runs} x {x.operands}  {x.op_name}" for x in products]
    return "\n".join(lines)


def format_verdict(report: StepReport, *, remedy: str) -> str:
    """Returns one sentence: whether the step fits, and what it takes at least."""
    needs = f"needs {with_unit(report.needs, 'B', BINARY)}"
    if report.memory is None:
        return f"It {needs} of each device, whose memory is unknown."
    needs += f" of the {with_unit(report.memory, 'B', BINARY)} of each device"
    if not report.fits:
        return f"It does not fit: {needs}; {remedy}."
    if _unknown(report):
        return f"It fits: {needs}."
    seconds = estimate.total_seconds(report.kernels, report.accelerator)
    return f"It fits: {needs}, and is estimated at {with_unit(seconds, 's')} a step."
