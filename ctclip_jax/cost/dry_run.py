"""`main.py --dry_run`: does the step of a config fit, and how fast can it be?

Nothing is read from disk and no memory of a device is taken. With a topology the compiler is
libtpu's, and no TPU is needed.
"""

from ctclip_jax.cost.accelerators import GIB
from ctclip_jax.cost.flops import step_flops
from ctclip_jax.cost.step_report import DoesNotFit, StepReport, step_report
from ctclip_jax.training.config import TrainConfig

REMEDY = (
    "take a smaller config.batch_size or config.micro_batch_size, config.model.remat='full',"
    " or a larger config.mesh.fsdp"
)
MEMORY = ("arguments", "outputs", "aliased", "temporaries", "resident", "needs")


def dry_run(config: TrainConfig, *, topology: str = "") -> bool:
    """Prints the programs of a step, what they need and how fast they can be; returns whether they
    fit.

    Raises:
      InputError: a config that cannot be trained, an unknown topology, or no libtpu.
    """
    try:
        report = step_report(config, topology=topology)
    except DoesNotFit as shortage:
        print(f"It does not fit: {shortage}; {REMEDY}.")
        return False
    print(table(report))
    print(prediction(report, config))
    print(verdict(report))
    return report.fits


def table(report: StepReport) -> str:
    """Returns a row for each quantity of one device and a column for each program."""
    programs = report.programs
    rows = [("", *programs), ("runs of a step", *(str(each.runs) for each in programs.values()))]
    for name in MEMORY:
        sizes = [getattr(each, name) / GIB for each in programs.values()]
        rows.append((name, *(f"{size:.2f} GiB" for size in sizes)))
    rows.append(("FLOPs", *(f"{each.flops / 1e12:.2f} T" for each in programs.values())))
    rows.append(("memory traffic", *(f"{each.traffic / 1e9:.2f} GB" for each in programs.values())))
    kinds = sorted({one.kind for each in programs.values() for one in each.collectives})
    for kind in kinds:
        rows.append((kind, *(_collective(each.collectives, kind) for each in programs.values())))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join(
        "  ".join([row[0].ljust(widths[0]), *map(str.rjust, row[1:], widths[1:])]).rstrip()
        for row in rows
    )


def _collective(collectives, kind: str) -> str:
    found = [each for each in collectives if each.kind == kind]
    return f"{found[0].count} x, {found[0].bytes / 1e9:.3f} GB sent" if found else "-"


def prediction(report: StepReport, config: TrainConfig) -> str:
    """Returns the arithmetic of the roofline in words."""
    mesh = " ".join(f"{name}={size}" for name, size in report.mesh.shape.items())
    model = step_flops(config) / report.mesh.size
    computed = report.total("flops")
    lines = [
        f"mesh {mesh}; a device computes {computed / 1e12:.2f} TFLOP a step,"
        f" of which the model asks for {model / 1e12:.2f}"
    ]
    roofline, peaks = report.roofline, report.accelerator
    if peaks is None:
        return lines[0] + "\nno peaks known of this device: no prediction"
    if roofline is None:
        return lines[0] + "\nthe compiled program cannot be read: no collectives, no prediction"
    lines += [
        f"{peaks.name} at its peaks: arithmetic {roofline.arithmetic:.3f} s"
        f" ({computed / 1e12:.2f} TFLOP / {peaks.bf16_flops / 1e12:.0f} TFLOP/s),"
        f" memory {roofline.memory:.3f} s"
        f" ({report.total('traffic') / 1e9:.1f} GB / {peaks.memory_bandwidth / 1e9:.0f} GB/s),"
        f" collectives {roofline.interconnect:.3f} s"
        f" ({report.total('sent') / 1e9:.2f} GB / {peaks.link_bandwidth / 1e9:.0f} GB/s)",
        f"the larger of the first two and the third: {roofline.seconds:.3f} s a step,"
        f" {config.batch_size / roofline.seconds:.1f} volumes/s at best,"
        f" {roofline.collective_share:.0%} of it in collectives,"
        f" model FLOP utilization {model / peaks.bf16_flops / roofline.seconds:.0%}",
    ]
    return "\n".join(lines)


def verdict(report: StepReport) -> str:
    """Returns one sentence: whether the step fits."""
    needs = f"needs {report.needs / GIB:.2f} GiB"
    if report.memory is None:
        return f"It {needs} of each device, whose memory is not known."
    needs += f" of {report.memory / GIB:.2f} GiB"
    return f"It fits: {needs}." if report.fits else f"It does not fit: {needs}; {REMEDY}."
