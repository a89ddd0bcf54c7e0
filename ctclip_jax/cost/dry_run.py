"""Dry run (`main.py --dry_run`): prints what a compiled program needs, and its estimated time."""

import pandas as pd

from ctclip_jax.cost import estimate
from ctclip_jax.cost.accelerators import GIB
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
    """Prints the report of `step_report`; returns whether the step fits.

    With `scopes`, also the estimated time of each part of the model and the float32 products.
    """
    try:
        report = step_report(config, topology=topology, program=program)
    except DoesNotFit as error:
        print(f"It does not fit: {error}; {REMEDIES[program]}.")
        return False
    if scopes:
        print(format_scopes(report), end="\n\n")
    print(format_table(report))
    print(format_time(report))
    if config.model.dtype == "bfloat16":
        print(format_float32_products(report, with_list=scopes))
    print(format_verdict(report, remedy=REMEDIES[program]))
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
        memory = {row: f"{getattr(program, row) / GIB:.2f} GiB" for row in MEMORY_ROWS}
        collectives = {
            x.kind: f"{x.count} x, {x.bytes / 1e9:.3f} GB sent" for x in program.collectives or ()
        }
        traffic = {}
        if program.kernels is not None:
            num_kernels = sum(kernel.runs for kernel in program.kernels)
            traffic = {"kernels": num_kernels, "traffic": f"{program.traffic / 1e9:.2f} GB"}
        flops = f"{program.flops / 1e12:.2f} T"
        columns[name] = {
            "runs per step": program.runs,
            **memory,
            "FLOPs": flops,
            **traffic,
            **collectives,
        }
    return pd.DataFrame(columns).fillna("-").to_string()


def format_time(report: StepReport) -> str:
    """Formats the mesh, FLOPs, seconds at the peaks of the device, and the estimate by kernel."""
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    flops, peaks = report.total("flops"), report.accelerator
    head = (
        f"mesh {mesh}; a device computes {flops / 1e12:.2f} TFLOP per step,"
        f" {report.model_flops / 1e12:.2f} of them model FLOPs"
    )
    if unknown := _unknown(report):
        return f"{head}\nno time: {unknown}"
    return (
        f"{head}\n"
        f"{peaks.name} at its peaks: arithmetic {flops / peaks.bf16_flops:.3f} s,"
        f" memory {report.total('traffic') / peaks.memory_bandwidth:.3f} s,"
        f" collectives {report.total('sent') / peaks.link_bandwidth:.3f} s\n"
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
        f" {sum(x.runs for x in products)}, {flops / 1e12:.2f} TFLOP"
    ]
    if with_list:
        lines += [f"  {x.runs} x {x.operands}  {x.op_name}" for x in products]
    return "\n".join(lines)


def format_verdict(report: StepReport, *, remedy: str) -> str:
    """Returns one sentence: whether the step fits."""
    needs = f"needs {report.needs / GIB:.2f} GiB"
    if report.memory is None:
        return f"It {needs} of each device, whose memory is unknown."
    needs += f" of {report.memory / GIB:.2f} GiB"
    return f"It fits: {needs}." if report.fits else f"It does not fit: {needs}; {remedy}."
