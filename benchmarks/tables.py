"""Benchmark tables in the docs, rendered from benchmarks/results.

    python -m benchmarks.tables

In every page, the lines between `<!-- table: NAME -->` and `<!-- end of table -->` are replaced by
the table of that name and its provenance. tests/benchmarks/test_tables.py fails if a page differs
from the results, or if no page shows a result.
"""

import dataclasses
import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

from benchmarks.measure import RESULTS
from ctclip_jax.cost.accelerators import GIB
from data_pipelines import command_line
from data_pipelines.errors import InputError

DOCS = Path(__file__).parents[1] / "docs"
BLOCK = re.compile(r"(<!-- table: (\w+) -->\n).*?(<!-- end of table -->\n)", re.DOTALL)

Results = dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and the results it shows, by file name without .json."""

    columns: Sequence[str]
    rows: Sequence[Sequence[object]]
    sources: Sequence[str]
    kind: Literal["Measured", "Compiled"] = "Measured"
    note: str = ""

    def to_markdown(self) -> str:
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        table = "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)
        lines = [_provenance(self.kind, name) for name in self.sources]
        return table + "\n" + "\\\n".join([*lines, *filter(None, [self.note])]) + "\n"


def _provenance(kind: str, name: str) -> str:
    """One line: measured or compiled, when, where, by which command."""
    results = load(name)
    device = "" if results["device"] == "cpu" else f"{results['device']}, "
    # Folders of that machine say nothing to others.
    command = re.sub(r" --\w+=/\S+", "", results["command"])
    place = f"{device}{results['machine']}, jax {results['jax']}"
    return f"*{kind} {results['date']} ({place}): `{command}`*"


def load(name: str) -> Results:
    return json.loads((RESULTS / f"{name}.json").read_text())


def update_page(text: str) -> str:
    """A page of the docs with its tables rendered anew."""

    def render(block: re.Match) -> str:
        begin, name, end = block.groups()
        if name not in TABLES:
            raise InputError(f"docs: unknown table {name!r}; choose from {', '.join(TABLES)}")
        return begin + TABLES[name]().to_markdown() + end

    return BLOCK.sub(render, text)


def pages() -> list[Path]:
    return sorted(DOCS.glob("*.md"))


def main() -> None:
    for page in pages():
        page.write_text(update_page(page.read_text()))


# Number formats


def seconds(value: float) -> str:
    if value < 0.1:
        return f"{1e3 * value:.0f} ms"
    if value < 100:
        return f"{value:.2f} s" if value < 1 else f"{value:.1f} s"
    return f"{value:.0f} s" if value < 300 else f"{value / 60:.1f} min"


def small(value: float) -> str:
    """`4.7e-6`"""
    return f"{value:.1e}".replace("e-0", "e-")


def gib(value: float) -> str:
    return f"{value:.2f} GiB" if value < 1 else f"{value:.1f} GiB"


# Exactness and single volumes

# Stage: (its name in the table, tolerance of the golden tests in tests/models and tests/training).
STAGES = {
    "patch_emb": ("patch embedding", "5e-5"),
    "temporal_out": ("tokens after both transformers", "1e-4"),
    "bert_last_hidden_state": ("BERT hidden states", "2e-5"),
    "image_latents": ("image latents", "2e-6"),
    "text_latents": ("text latents", "2e-6"),
    "loss": ("loss", "2e-6"),
    "gradients": ("gradients", "1e-4"),
    "codebook_after_a_step": ("codebook after a training step", "2e-6"),
    "image_latents_full_size": ("full size: image projection, batches of 1, 2 and 4", "3e-7"),
    "image_latents_between_batches": ("full size: one volume in different batches", "1e-7"),
}


def exactness() -> Table:
    differences = load("exactness")["differences"]
    rows = [
        (stage, small(differences[name]), tolerance) for name, (stage, tolerance) in STAGES.items()
    ]
    columns = ("stage", "largest difference", "tolerance of the tests")
    return Table(columns, rows, ["exactness"])


def detection() -> Table:
    results = load("full_size_detection")
    warm, once = results["seconds"], results["seconds_once"]
    published = warm["published, one label"]
    rows = [
        ("read and prepare the scan", seconds(warm["read and prepare"]), ""),
        ("encode it", seconds(warm["encode"]), f"{seconds(published)} a label"),
        ("18 probabilities from the latent", seconds(warm["18 probabilities"]), ""),
        ("**sum, from .nii.gz to 18 probabilities**", seconds(results["seconds_for_18_labels"]),
         f"{seconds(results['published_seconds_for_18_labels'])} (18 passes), "
         f"{results['times_faster']:.0f} times"),
        ("18 heatmaps", seconds(warm["18 heatmaps of them"]), ""),
        ("once: open the weights", seconds(once["open the weights"]), ""),
        ("once: encode 36 prompts", seconds(once["encode 36 prompts"]), ""),
        ("once: compile, at the first scan", seconds(once["first volume"]), ""),
        ("peak memory, both models", gib(results["peak_gib"]), ""),
        ("largest difference of a latent", small(results["largest_latent_difference"]), ""),
        ("largest difference of a heatmap's sum from its logit",
         small(results["largest_heatmap_error"]), ""),
    ]  # fmt: skip
    columns = ("full size, two CPU cores, warm", "ctclip-jax", "PyTorch, published way")
    return Table(columns, rows, ["full_size_detection"])


def weights() -> Table:
    results = load("full_size_weights")
    rows = [
        (suffix, *(f"{seconds(row[f'{way}_seconds'])}, {gib(row[f'{way}_peak_gib'])}"
                   for way in ("import", "export")),
         f"{row['equal']} of {row['tensors']}")
        for suffix, row in results.items() if suffix.startswith(".")
    ]  # fmt: skip
    columns = (f"{results['file_gib']} GiB of weights", "import", "export", "equal to the bit")
    return Table(columns, rows, ["full_size_weights"])


def serving() -> Table:
    results = load("serving")
    size = results["megabytes"]
    rows = [
        ("export", seconds(results["export_seconds"])),
        ("image encoder, weights",
         f"{size['encode_image.exported']:.1f} MB, {size['weights.safetensors']:.0f} MB"),
        ("a volume by the exported program", seconds(results["seconds_of_a_volume"]["program"])),
        ("a volume by the library", seconds(results["seconds_of_a_volume"]["library"])),
        ("largest difference of their latents", f"{results['largest_difference']:.0f}"),
    ]  # fmt: skip
    return Table(("StableHLO export, full size, two CPU cores", ""), rows, ["serving"])


# Data


def preparation() -> Table:
    results = load("preparation")
    peak = results["worker_peak_gib"]
    rows = [
        ("ctclip-jax: .nii.gz to the published grid", seconds(results["seconds"]["ours"])),
        ("nibabel float64, torch trilinear",
         f"{seconds(results['seconds']['straightforward'])}, {results['times_faster']} times"),
        ("ctclip-jax: .nii.gz to a record of a shard", seconds(results["seconds"]["to a record"])),
        *((f"peak memory of a worker, {shape.replace('x', ' x ')} voxels", gib(value))
          for shape, value in peak.items()),
    ]  # fmt: skip
    return Table(("a CT of 512 x 512 x 300, one core", ""), rows, ["preparation"])


def chest_crop() -> Table:
    results = load("chest_crop")
    shares = {
        crop: {"all": inside["all"], **inside["by_condition"]}
        for crop, inside in results["lungs_inside"].items()
    }
    rows = [
        (name, *(f"{100 * shares[crop][name]:.1f} %" for crop in shares))
        for name in results["conditions"]
    ]
    rows += [("**all**", *(f"{100 * share['all']:.1f} %" for share in shares.values()))]
    columns = (
        f"{results['phantoms']} bodies of 300 to 1,800 mm", *(f"`--crop={crop}`" for crop in shares)
    )  # fmt: skip
    return Table(columns, rows, ["chest_crop"])


def loader() -> Table:
    results = load("loader")
    rate, megabytes = results["volumes_per_second"], results["mb_per_second"]
    faster = results["times_faster_a_core"]
    names = {
        "one core": "ctclip-jax, one core",
        "two cores": "ctclip-jax, two cores",
        "published, one core": "nii.gz, float64, resampled at each use, one core",
        "published, one core, memory kept": "the same, with the memory settings of our loader",
    }
    rows = [
        (name, rate[key], f"{megabytes[key]:,}" if key in megabytes else "",
         f"{faster[key]:.0f} times" if key in faster else "")
        for key, name in names.items()
    ]  # fmt: skip
    columns = ("full size, files in the page cache", "volumes/s", "MB/s", "ours on one core")
    return Table(columns, rows, ["loader"])


def two_epochs() -> Table:
    results = load("two_epochs")
    rows = [(stage, seconds(value)) for stage, value in results["seconds"].items()]
    columns = (f"{results['scans']:,} scans, {results['volumes']:,} volumes of 24 x 48 x 48", "")
    return Table(columns, rows, ["two_epochs"])


# Evaluation and search


def evaluation() -> Table:
    results, ranks = load("evaluation"), load("retrieval")
    volumes, labels = f"{results['volumes']:,} volumes", f"{results['labels']} labels"
    rows = [
        (f"AUROC and average precision, {results['resamples']:,} resamples of patients, {volumes},"
         f" {labels}, one core", seconds(results["resamples_seconds_one_core"]), ""),
        ("the same, AUROC alone, scikit-learn one by one",
         seconds(results["scikit_learn_seconds_one_core"]), ""),
        (f"all from saved latents to the page, {volumes}, two cores",
         seconds(results["whole_run_seconds"]), gib(results["whole_run_peak_gib"])),
        *((f"{task}, {ranks['volumes']:,} volumes, two cores", seconds(ranks["seconds"][key]),
           gib(ranks["peak_gib"][key]))
          for key, task in (("find", "ranks of reports among volumes"),
                            ("nearest_labels", "label overlap of the nearest volumes"))),
    ]  # fmt: skip
    return Table(("task", "time", "peak memory"), rows, ["evaluation", "retrieval"])


def search() -> Table:
    filters = ("exact", "exact, of a label", "exact, of a stratum", "approximate")
    results, rows = load("search"), []
    for cases, row in results.items():
        if not isinstance(row, dict):
            continue
        count, _, kind = cases.partition(", ")
        rows.append((
            f"{int(count):,}" + (f", {kind}" if kind else ""),
            seconds(row["open_seconds"]),
            *(f"{row[name]['median_ms']:.0f} ms" for name in filters),
            f"{10 * row['approximate']['recall@10']:.1f} of 10",
            seconds(row["approximate_index"]["seconds"]),
            gib(row["peak_gib"]),
        ))  # fmt: skip
    columns = (
        "cases", "open the store", "exact", "label filter", "stratum filter", "approximate",
        "found by it", "build that index", "memory",
    )  # fmt: skip
    return Table(columns, rows, ["search"])


# Speed of the model

REPORT_FORMATS = {
    "ours": "ctclip-jax",
    "ours, ViT": "ctclip-jax, ViT",
    "pytorch, as published": "PyTorch as published",
    "pytorch, its best": "PyTorch at its best",
}
SPEED_RESULTS = ("encode", "train_step", "encode-NVIDIA-H200", "train_step-NVIDIA-H200")


def _device(results: Results) -> str:
    return "two CPU cores" if results["device"] == "cpu" else results["device"]


def throughput() -> Table:
    rows = []
    for name in SPEED_RESULTS:
        results = load(name)
        task = "volumes to latents" if name.startswith("encode") else "training step"
        setting = f"{results['size']} size, {results['dtype']}, {results['batch']} at a time"
        for key, place in (("runs", "from the host"), ("runs_on_device", "on the device")):
            if key in results:
                runs = results[key]
                forms = (
                    f"{runs[form]['volumes_per_second']:.3g}"
                    + (f" ({runs[form]['times_ours']:.2f})" if form != "ours" else "")
                    for form in REPORT_FORMATS
                )
                rows.append((f"{task}, {place}", _device(results), setting, *forms))
    columns = ("volumes/s", "device", "setting", *REPORT_FORMATS.values())
    return Table(columns, rows, SPEED_RESULTS)


def utilization() -> Table:
    rows = []
    for name in SPEED_RESULTS:
        results = load(name)
        task = "volumes to latents" if name.startswith("encode") else "training step"
        for form, row in results["utilization"].items():
            memory = results["memory"][form]
            rows.append((
                task, _device(results), REPORT_FORMATS[form],
                f"{row['tflops']:.3g} of {row['matmul_peak_tflops']:.3g}",
                f"{row['share_of_peak']:.0%}",
                gib(memory["arguments_gib"] + memory["temporaries_gib"]),
            ))  # fmt: skip
    columns = ("", "device", "model", "TFLOP/s of matmul peak", "share", "memory of the program")
    return Table(columns, rows, SPEED_RESULTS)


def blocks() -> Table:
    forms = [form for form in REPORT_FORMATS if form != "ours, ViT"]
    times = load("train_step-NVIDIA-H200")["block_milliseconds"]
    rows = [(block, *(times[form][block] for form in forms)) for block in times["ours"]]
    columns = ("block, forward and backward, ms", *(REPORT_FORMATS[form] for form in forms))
    return Table(columns, rows, ["train_step-NVIDIA-H200"])


def gradient_cache() -> Table:
    results = load("gradient_cache")
    rows = [
        ("plain step on 4 volumes", gib(results["plain_gib"])),
        *((f"step on 256 in micro-batches of 4: program `{program}`", gib(value))
          for program, value in results["cached_gib"].items()),
        ("largest program of the second to the first", f"{results['ratio']:.2f} times"),
    ]  # fmt: skip
    columns = ("memory, full size, float32, one device", "")
    return Table(columns, rows, ["gradient_cache"], "Compiled")


def compiled_programs() -> Table:
    rows = []
    for row in load("compiled_programs")["rows"]:
        cells = [row["topology"], f"{row['jax']}, {row['date']}", row["volumes"], row["program"]]
        cells += [f"{row['flops'] / 1e12:.2f}"]
        cells += [f"{row['float32_flops'] / 1e12:.2f}", f"{row['temporaries'] / GIB:.1f}"]
        if "estimated" not in row:
            rows.append([*cells, "", "", "", ""])
            continue
        cells += [row["kernels"], f"{row['traffic'] / 1e9:.1f}", f"{1e3 * row['estimated']:.1f}"]
        by_hand = f"{1e3 * row['pallas_estimated']:.1f} in {row['pallas_calls']}"
        rows.append([*cells, by_hand if row["pallas_calls"] else ""])
    columns = (
        "compiled for", "by jax", "volumes a chip", "program", "TFLOP", "in large float32 products",
        "temporaries, GiB", "kernels", "memory traffic, GB", "estimated ms",
        "of them by hand, Pallas calls",
    )  # fmt: skip
    return Table(columns, rows, ["compiled_programs"], "Compiled")


def fits() -> Table:
    rows = []
    for row in load("device_table")["rows"]:
        system, volumes = row["system"], row["volumes"] * row["system"]["chips"]
        rows.append((
            system["name"],
            f"{system['chips'] // system['fsdp']} x {system['fsdp']}",
            row["volumes"],
            volumes,
            f"{row['needs'] / GIB:.1f} of {row['memory'] / GIB:.1f}",
            f"{row['model_flops'] / 1e12:.1f}, {row['flops'] / 1e12:.1f}",
            f"{'~' if 'unread' in row else ''}{row['sent'] / 1e9:.2f}",
            ", ".join(f"{row['seconds'][part]:.3f}" for part in ("arithmetic", "interconnect")),
            f"{row['estimated']:.3f}" if "estimated" in row else "",
        ))  # fmt: skip
    columns = (
        "system", "mesh (data x fsdp)", "volumes a chip", "in a step", "memory a chip, GiB",
        "TFLOP a chip: model, computed", "sent by a chip, GB",
        "seconds at the peaks: arithmetic, collectives", "estimated seconds in kernels",
    )  # fmt: skip
    return Table(columns, rows, ["device_table"], "Compiled")


# Recipes


def budgets() -> Table:
    rows = []
    for row in load("recipe_table")["rows"]:
        cells = [row["budget"], f"`{row['recipe']}`", row["batch_size"]]
        if "hours" in row:
            cells += [
                row["micro_batch_size"],
                f"{row['needs_gib']} of {row['memory_gib']}",
                row["tflop_of_a_volume"],
                f"{row['steps'] * row['batch_size']:,}",
                row["hours"],
            ]
        else:
            cells += ["-", f"{row['needs_gib']} with one volume: too little", "", "", ""]
        rows.append(cells)
    columns = (
        "budget", "recipe", "batch", "micro-batch", "memory a GPU, GiB", "TFLOP a volume",
        "volumes seen", "hours",
    )  # fmt: skip
    return Table(columns, rows, ["recipe_table"], "Compiled")


def ablation() -> Table:
    rows = []
    for name, row in load("ablation")["recipes"].items():
        differences = (
            f"{value:+.3f} ({low:+.3f}, {high:+.3f})"
            for value, low, high in row["difference_by_seed"]
        )
        needs_mark = row["labels_used"] and name != "label-informed"
        rows.append((
            name + (", label-informed" if needs_mark else ""),
            row["built_on"],
            f"{row['steps']:,} x {row['batch_size']}",
            f"{row['auroc']:.3f}",
            f"{row['recall@5']:.3f}" if "recall@5" in row else "",
            ", ".join(differences),
        ))  # fmt: skip
    columns = (
        "recipe", "built on", "steps x volumes", "mean AUROC", "recall@5",
        "difference in AUROC by seed",
    )  # fmt: skip
    return Table(columns, rows, ["ablation"])


def text_warmup() -> Table:
    rows = []
    for name, row in load("text_warmup")["objectives"].items():
        by_seed = ", ".join(f"{auroc:.3f}" for auroc in row["auroc_by_seed"])
        rows.append((f"`{name}`", f"{row['auroc']:.3f}", by_seed))
    columns = ("objective", "mean AUROC of labels read in reports", "by seed")
    note = "*With commit ce5b19f, the last that had objectives other than `matched_sentences`.*"
    return Table(columns, rows, ["text_warmup"], note=note)


def heatmaps() -> Table:
    rows = [
        (
            row["label"],
            f"{row['probability']:.2f}, {row['without_it']:.2f}",
            f"{100 * row['share_of_volume']:.2f}",
            *(
                f"{row[way]['times']:.1f} ({row[way]['low']:.1f} to {row[way]['high']:.1f})"
                for way in ("alone", "against_mean", "against_same")
            ),
        )
        for row in load("heatmaps")["rows"]
    ]
    columns = (
        "sign", "probability with it, without", "region, % of the volume", "map by itself",
        "against the mean scan", "against the same chest without it",
    )  # fmt: skip
    return Table(columns, rows, ["heatmaps"])


# Robustness


def chaos() -> Table:
    results = load("chaos")
    signals = [kill["signal"] for kill in results["kills"]]
    rows = [
        (f"runs of {results['steps']} steps", results["runs"]),
        *((f"kills by {name}", signals.count(name)) for name in sorted(set(signals))),
        ("loss values or weights that differ from the run left alone", len(results["differing"])),
    ]  # fmt: skip
    return Table(("killed at random moments", ""), rows, ["chaos"])


def bit_flips() -> Table:
    results = load("bit_flips")
    rows = [
        (
            f"{results['flips']} in {part}, {way} SHA256SUMS",
            *(results[folder][way].get(outcome, 0) for outcome in ("refused", "unchanged")),
            sum(results[folder][way].values())
            - sum(results[folder][way].get(name, 0) for name in ("refused", "unchanged")),
        )
        for folder, part in (("checkpoint", "a checkpoint"), ("export", "an export"))
        for way in ("with", "without")
    ]
    columns = ("flipped bits", "refused", "loads, unchanged", "loads, changed")
    note = f"*SHA-256 reads {results['sha256_gb_per_second']:.1f} GB/s here.*"
    return Table(columns, rows, ["bit_flips"], note=note)


def fuzz() -> Table:
    results = load("fuzz")
    rows = [(name, f"{count:,}") for name, count in results["counts"].items()]
    rows += [
        ("**crashes, hangs, stray files**", results["crashes"]),
        ("slowest file", seconds(results["slowest_seconds"])),
        ("peak memory", gib(results["peak_gib"])),
    ]
    columns = (f"damaged files, {results['minutes']:.0f} minutes", f"{results['files']:,}")
    return Table(columns, rows, ["fuzz"])


TABLES: dict[str, Callable[[], Table]] = {
    function.__name__: function
    for function in (
        exactness, detection, weights, serving, preparation, chest_crop, loader, two_epochs,
        evaluation, search, throughput, utilization, blocks, gradient_cache, compiled_programs,
        fits, budgets, ablation, text_warmup, heatmaps, chaos, bit_flips, fuzz,
    )
}  # fmt: skip


if __name__ == "__main__":
    command_line.run(main)
