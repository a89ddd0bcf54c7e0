"""Checkpoints restore state and loader on any mesh; a damaged or unfinished one is skipped."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.checkpoints.run import Checkpointer
from ctclip_jax.common.sharding import MeshConfig, make_mesh, state_shardings
from ctclip_jax.train import export_description
from data_pipelines.errors import InputError, one_line
from tests.fake_clip import fake_batch
from tests.tiny_run import tiny_config
from tests.training import test_step as steps

LAYOUT = {"processes": 1, "workers": 0}


def checkpoints(folder: Path, *, layout: dict = LAYOUT, **changes) -> Checkpointer:
    config = tiny_config(Path("shards"), **changes)
    return Checkpointer(
        folder,
        config.checkpoint,
        layout=layout,
        run_config=dataclasses.asdict(config),
        export_description=export_description(config),
    )


def batches() -> grain.DatasetIterator:
    dataset = grain.MapDataset.range(20).shuffle(seed=1).repeat().batch(4, drop_remainder=True)
    return iter(dataset.to_iter_dataset())


def state(fsdp: int, *, rows: int = 8, step: int = 0) -> dict:
    kernel = step + jnp.arange(rows * 4.0).reshape(rows, 4)
    tree = {"step": jnp.int32(step), "params": {"image_projection": {"kernel": kernel}}}
    return jax.device_put(tree, state_shardings(tree, make_mesh(MeshConfig(data=-1, fsdp=fsdp))))


def abstract(tree: dict) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


def save(folder: Path, *steps: int, **changes) -> np.ndarray:
    """Saves these steps, one batch each; the batch that follows the newest."""
    checkpointer, loader = checkpoints(folder, **changes), batches()
    for step in steps:
        next(loader)
        checkpointer.save(step, state(2, step=step), loader)
    following = next(loader)
    checkpointer.close()
    return following


def restored_step(folder: Path) -> int:
    checkpointer = checkpoints(folder)
    restored = checkpointer.restore(abstract(state(2)), batches())
    checkpointer.close()
    return int(restored["step"])


def steps_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of checkpoints, and the batch that follows the newest."""
    folder = tmp_path_factory.mktemp("checkpoints")
    return folder, save(folder, 1, 2, **{"checkpoint.keep": 1})


def test_state_and_loader_resume_on_another_mesh(saved):
    folder, following = saved
    loader = batches()
    restored = checkpoints(folder).restore(abstract(state(4)), loader)
    kernel = restored["params"]["image_projection"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(kernel, 2 + np.arange(32.0).reshape(8, 4))
    np.testing.assert_array_equal(next(loader), following)


def test_metadata_have_layout_config_code_and_export(saved):
    folder, _ = saved
    metadata = json.loads((folder / "2" / "run" / "metadata").read_text())
    assert metadata["layout"] == LAYOUT
    assert metadata["config"]["checkpoint"]["keep"] == 1
    assert metadata["code"]["jax"] == jax.__version__
    assert metadata["export"]["model"] == metadata["config"]["model"]


def test_restore_without_a_checkpoint_returns_none(tmp_path):
    assert checkpoints(tmp_path).restore(abstract(state(2)), batches()) is None


def test_keeps_only_the_newest(saved):
    folder, _ = saved
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["2"]


def test_keeps_the_best_by_auroc_and_the_newest(tmp_path):
    changes = {"checkpoint.keep": 1, "checkpoint.best": 1}
    checkpointer, loader = checkpoints(tmp_path, **changes), batches()
    for step, auroc in {1: 0.6, 2: 0.7, 3: None, 4: 0.5}.items():
        checkpointer.save(step, state(2), loader)
        checkpointer.record_evaluation(step, auroc)
        assert checkpointer.is_evaluated(step)
    checkpointer.save(5, state(2), loader)
    assert not checkpointer.is_evaluated(5)
    checkpointer.close()
    assert steps_in(tmp_path) == ["2", "5"]
    save(tmp_path, 6, 7, **changes)
    assert steps_in(tmp_path) == ["2", "7"], "evaluations are read from disk"


def test_ignores_an_unfinished_save(saved):
    folder, _ = saved
    (folder / "3.orbax-checkpoint-tmp-7").mkdir()
    assert restored_step(folder) == 2


def test_rejects_another_shape(saved):
    folder, _ = saved
    message = r"/2: params/image_projection/kernel is \(8, 4\) .* \(6, 4\)"
    with pytest.raises(InputError, match=message):
        checkpoints(folder).restore(abstract(state(1, rows=6)), batches())
    assert (folder / "2").exists()


def test_rejects_another_number_of_workers(saved):
    folder, _ = saved
    with pytest.raises(InputError, match="workers=0.* 2"):
        checkpoints(folder, layout={**LAYOUT, "workers": 2}).restore(abstract(state(2)), batches())


def test_another_number_of_processes_needs_a_loader_without_workers(saved, tmp_path):
    save(tmp_path, 1, layout={"processes": 1, "workers": 2})
    with pytest.raises(InputError, match="processes=1.* 2"):
        checkpoints(tmp_path, layout={"processes": 2, "workers": 2}).restore(
            abstract(state(2)), batches()
        )
    folder, _ = saved
    loader = batches()
    checkpoints(folder, layout={"processes": 2, "workers": 0}).restore(abstract(state(2)), loader)
    assert loader.get_state() == {"next_index": 1}, "half of the two batches of one process"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints of two steps."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, 1, 2)
    return folder


@pytest.mark.parametrize(
    ("file", "damage"),
    [
        ("state/_METADATA", "truncated"),
        ("state/manifest.ocdbt", "deleted"),
        ("state/d/*", "truncated"),
        ("run/metadata", "truncated"),
        ("loader/*.json", "deleted"),
    ],
)
def test_renames_a_damaged_checkpoint_and_restores_the_previous(file, damage, two, tmp_path, capfd):
    folder = shutil.copytree(two, tmp_path / "copy")
    for path in list((folder / "2").glob(file)):
        if damage == "truncated":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()
    assert restored_step(folder) == 1
    (warning,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert warning.startswith(f"warning: {folder}/2: damaged (")
    assert "2.damaged" in warning and warning.endswith("from step 1")
    assert steps_in(folder) == ["1", "2.damaged"]


def damage_metadata(folder: Path, *steps: int) -> None:
    for step in steps:
        (folder / str(step) / "run" / "metadata").write_text("{")


def test_never_replaces_an_older_damaged_checkpoint(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "copy")
    damage_metadata(folder, 2)
    (folder / "2.damaged").mkdir()
    with pytest.raises(InputError, match="/2: damaged .*2.damaged exists"):
        restored_step(folder)
    assert steps_in(folder) == ["1", "2", "2.damaged"]


def test_without_a_readable_checkpoint_all_stay(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "copy")
    damage_metadata(folder, 1, 2)
    with pytest.raises(InputError, match="2: damaged .* no older checkpoint"):
        restored_step(folder)
    assert steps_in(folder) == ["1", "2"]


def test_a_run_on_eight_devices_resumes_on_four(tmp_path):
    eight, four = (
        steps.setup(devices=devices, **{"optim.ema": 0.9, "mesh.fsdp": fsdp})
        for devices, fsdp in ((8, 1), (4, 2))
    )
    volumes = [fake_batch(steps.VOLUMES, seed=number) for number in range(4)]
    checkpointer, loader = checkpoints(tmp_path), batches()
    train_step = eight.train_step()
    current = train_step.init(eight.model.init())
    losses = []
    for number in range(4):
        if number == 2:
            checkpointer.save(2, current, loader)
            checkpointer.close()
        current, metrics, _ = train_step.step(current, iter([volumes[number]]))
        losses.append(float(metrics["loss"]))
    train_step = four.train_step()
    current = checkpoints(tmp_path).restore(train_step.abstract_state, loader)
    for number in (2, 3):
        current, metrics, _ = train_step.step(current, iter([volumes[number]]))
        assert float(metrics["loss"]) == pytest.approx(losses[number], abs=1e-5)
    assert int(current["step"]) == 4


FULL_DISK = """
from pathlib import Path
from data_pipelines import command_line
from tests.checkpoints.test_run import batches, checkpoints, state

def main(folder, then):
    checkpointer, loader = checkpoints(Path(folder)), batches()
    checkpointer.save(2, state(1, rows=8000), loader)
    if then == "save":
        checkpointer.save(3, state(1, rows=8), loader)
    checkpointer.close()

command_line.run(main)
"""


@pytest.mark.parametrize(
    "after",
    [
        "[os_error_code='27']",
        """[tensorstore_spec='{\\"create\\":true,\\"path\\":\\"k5/\\"}'] [os_error_code='27']""",
        """[os_error_code='27'] [tensorstore_spec='{\\"create\\":true}']""",
    ],
)
def test_one_line_of_a_tensorstore_error_is_the_system_error(after):
    message = f'OUT_OF_RANGE: Error opening "zarr" driver: Failed to write: File too large {after}'
    assert one_line(ValueError(message)) == "File too large"


@pytest.mark.drill
@pytest.mark.parametrize("then", ["save", "close"])
def test_a_full_disk_is_one_line_and_leaves_older_checkpoints(then, full_disk, tmp_path):
    save(tmp_path, 1)
    command = [*full_disk(20), sys.executable, "-c", FULL_DISK, str(tmp_path), then]
    full = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert full.returncode == 2
    (error,) = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert error.startswith(f"error: {tmp_path}/2: cannot be saved (File too large)")
    assert restored_step(tmp_path) == 1
