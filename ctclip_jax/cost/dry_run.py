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

REMEDY = (
    "use a smaller config.batch_size or config.micro_batch_size, config.model.remat='full',"
    " or a larger config.mesh.fsdp"
)
MEMORY_ROWS = ("arguments", "outputs", "aliased", "temporaries", "resident", "needs")


def dry_run(
    config: TrainConfig, *, topology: str = "", program: Kind = "train", by_scope: bool = False
) -> bool:
    """Prints the report of `step_report`; returns whether the step fits.

    With `by_scope`, also the estimated time of each part of the model and the float32 products.
    """
    try:
        report = step_report(config, topology=topology, program=program)
    except DoesNotFit as error:
        print(f"It does not fit: {error}; {REMEDY}.")
        return False
    if by_scope and report.kernels and report.accelerator:
        table = estimate.table(report.kernels, report.accelerator)
        print(table.to_string(float_format="{:.3f}".format), end="\n\n")
    print(format_table(report))
    print(format_time(report))
    if config.model.dtype == "bfloat16":
        print(format_float32_products(report, is_list=by_scope))
    print(format_verdict(report))
    return report.fits


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
    """Formats the mesh, FLOPs, lower bound of the step time, and the estimate by kernel."""
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    flops = report.total("flops")
    head = (
        f"mesh {mesh}; a device computes {flops / 1e12:.2f} TFLOP per step,"
        f" {report.model_flops / 1e12:.2f} of them model FLOPs"
    )
    time, peaks = report.time, report.accelerator
    if peaks is None:
        return f"{head}\nno peaks of this device in cost/accelerators.py: no time"
    if time is None:
        return f"{head}\njax cannot read the compiled program: no kernels, no collectives, no time"
    return (
        f"{head}\n"
        f"{peaks.name} at its peaks: arithmetic {time.arithmetic:.3f} s"
        f" ({flops / 1e12:.2f} TFLOP / {peaks.bf16_flops / 1e12:.0f} TFLOP/s),"
        f" memory {report.total('traffic') / peaks.memory_bandwidth:.3f} s"
        f" ({report.total('traffic') / 1e9:.2f} GB / {peaks.memory_bandwidth / 1e9:.0f} GB/s),"
        f" collectives {time.interconnect:.3f} s"
        f" ({report.total('sent') / 1e9:.2f} GB / {peaks.link_bandwidth / 1e9:.0f} GB/s)\n"
        f"at least {time.seconds:.3f} s per step,"
        f" at most {time.interconnect / time.seconds:.0%} of it in collectives\n"
        f"{estimate.format_estimate(report.kernels, peaks)}"
    )


def format_float32_products(report: StepReport, *, is_list: bool) -> str:
    """Formats count and FLOPs of the large float32 products of a device, or also each of them."""
    products = [
        product._replace(flops=product.flops / report.mesh.size)
        for program in report.programs.values()
        for product in program.float32_products
    ]
    flops = sum(product.runs * product.flops for product in products)
    lines = [
        f"float32 products above {LARGE_PRODUCT / 1e9:.0f} GFLOP:"
        f" {sum(product.runs for product in products)}, {flops / 1e12:.2f} TFLOP"
    ]
    if is_list:
        lines += [
            f"  {product.runs} x {product.flops / 1e9:.1f} GFLOP  {product.operands}"
            f"  {product.op_name}"
            for product in products
        ]
    return "\n".join(lines)


def format_verdict(report: StepReport) -> str:
    """Returns one sentence: whether the step fits."""
    needs = f"needs {report.needs / GIB:.2f} GiB"
    if report.memory is None:
        return f"It {needs} of each device, whose memory is unknown."
    needs += f" of {report.memory / GIB:.2f} GiB"
    return f"It fits: {needs}." if report.fits else f"It does not fit: {needs}; {REMEDY}."
