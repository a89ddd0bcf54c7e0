"""The floors of the house: an import only points down, and every library keeps to its rooms."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path
    for pattern in ("main.py", "configs/**/*.py", "ctclip_jax/**/*.py", "data_pipelines/**/*.py")
    for path in ROOT.glob(pattern)
}
FLOORS = [  # top first; the rooms of one floor do not import each other
    "ctclip_jax.demo",
    "main ctclip_jax.evaluate ctclip_jax.compare ctclip_jax.convert ctclip_jax.predict "
    "ctclip_jax.label_reports ctclip_jax.calibrate ctclip_jax.index ctclip_jax.search "
    "ctclip_jax.export ctclip_jax.reference",
    "ctclip_jax.case_search",
    "ctclip_jax.scans ctclip_jax.heatmaps ctclip_jax.detector",
    "ctclip_jax.train ctclip_jax.dry_run",
    "ctclip_jax.step_report ctclip_jax.start",
    "ctclip_jax.reporting ctclip_jax.run ctclip_jax.frozen_latents",
    "ctclip_jax.checks",
    "ctclip_jax.text_warmup ctclip_jax.evaluators ctclip_jax.config_flag",
    "ctclip_jax",
    "ctclip_jax.api ctclip_jax.train_step",
    "ctclip_jax.model",
    "ctclip_jax.export_folder",
    "ctclip_jax.calibration ctclip_jax.reference_tokens ctclip_jax.attribution "
    "ctclip_jax.local_devices",
    "ctclip_jax.torch_weights ctclip_jax.checkpoints ctclip_jax.gradient_cache ctclip_jax.flops",
    "ctclip_jax.config ctclip_jax.objective",
    "ctclip_jax.models.ct_clip ctclip_jax.losses ctclip_jax.metrics ctclip_jax.sharding "
    "ctclip_jax.optim ctclip_jax.step_log ctclip_jax.profiling ctclip_jax.preemption",
    "ctclip_jax.metric_writer ctclip_jax.step_clock ctclip_jax.lora",
    "ctclip_jax.wandb_run",
    "ctclip_jax.models.ct_vit ctclip_jax.models.vit ctclip_jax.models.bert ctclip_jax.similarities "
    "ctclip_jax.label_losses",
    "ctclip_jax.models.vector_quantizer ctclip_jax.models.patches",
    "ctclip_jax.models.layers",
    "ctclip_jax.models.seam",
    "ctclip_jax.trees ctclip_jax.shapes ctclip_jax.accelerators ctclip_jax.distributed "
    "ctclip_jax.hlo ctclip_jax.version",
    "data_pipelines.prepare",
    "data_pipelines.pool data_pipelines.beam data_pipelines.text_pairs "
    "data_pipelines.train_tokenizer",
    "data_pipelines.preparation data_pipelines.loader",
    "data_pipelines.batches",
    "data_pipelines.shards data_pipelines.sources data_pipelines.calibration",
    "data_pipelines.formats data_pipelines.volumes data_pipelines.texts data_pipelines.tokenizers "
    "data_pipelines.rewordings",
    "data_pipelines.reports data_pipelines.memory",
    "data_pipelines.files",
    "data_pipelines.errors",
]
FLOOR_OF = {room: floor for floor, rooms in enumerate(FLOORS) for room in rooms.split()}
BINARIES = (
    "main ctclip_jax.evaluate ctclip_jax.compare ctclip_jax.convert ctclip_jax.predict "
    "ctclip_jax.label_reports ctclip_jax.calibrate ctclip_jax.index ctclip_jax.search "
    "ctclip_jax.export ctclip_jax.reference data_pipelines.train_tokenizer "
    "data_pipelines.prepare data_pipelines.sources.phantoms.__main__ "
    "data_pipelines.sources.phantoms.montage ctclip_jax.config_flag ctclip_jax.demo.__main__"
)
ONLY_IN = {
    "flax": "ctclip_jax.models",
    "torch": "ctclip_jax.torch_weights",
    "wandb": "ctclip_jax.wandb_run",
    "faiss": "ctclip_jax.case_search.approximate",
    "starlette": "ctclip_jax.demo",
    "uvicorn": "ctclip_jax.demo",
    "absl.flags": f"{BINARIES} data_pipelines.errors",
    "absl.app": "data_pipelines.errors",
    "jax": "main ctclip_jax",
    "ctclip_jax": "main ctclip_jax",
    "data_pipelines": "main ctclip_jax data_pipelines",
    "configs": "configs",
    "tests": "",
    "importlib": "",
}


def imported(path: Path) -> Iterator[str]:
    """Full names of everything that a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: import by the full name"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def is_within(name: str, rooms: str) -> bool:
    return any(f"{name}.".startswith(f"{room}.") for room in rooms.split())


def room_of(name: str) -> str | None:
    return max((room for room in FLOOR_OF if is_within(name, room)), key=len, default=None)


@pytest.mark.parametrize("module", SOURCES)
def test_imports_point_down(module):
    here = room_of(module)
    for name in imported(SOURCES[module]):
        there = room_of(name)
        if here and there and here != there:
            assert FLOOR_OF[here] < FLOOR_OF[there], f"{module} must not import {name}"


@pytest.mark.parametrize("module", SOURCES)
def test_libraries_keep_to_their_rooms(module):
    for name in imported(SOURCES[module]):
        for library, rooms in ONLY_IN.items():
            if is_within(name, library):
                assert is_within(module, rooms), f"{module} must not import {name}"
        if is_within(module, "configs"):
            assert is_within(name, "ml_collections configs"), f"{module} must not import {name}"
