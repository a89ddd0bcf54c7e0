"""Checkpoints restore state and loader, onto any mesh; damaged and unwritten ones cost no other."""

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

from ctclip_jax.checkpoints.run import Checkpointer, one_line
from ctclip_jax.common.sharding import MeshConfig, make_mesh, state_shardings
from data_pipelines.errors import InputError
from tests.fake_clip import fake_batch
from tests.tiny_run import tiny_config
from tests.training import test_step as steps

LAYOUT = {"processes": 1, "workers": 0}


def checkpoints(folder: Path, *, layout: dict = LAYOUT, **changes) -> Checkpointer:
    config = tiny_config(Path("shards"), **changes)
    made_by = dataclasses.asdict(config)
    return Checkpointer(folder, config.checkpoint, layout=layout, made_by=made_by)


def batches() -> grain.DatasetIterator:
    dataset = grain.MapDataset.range(20).shuffle(seed=1).repeat().batch(4, drop_remainder=True)
    return iter(dataset.to_iter_dataset())


def state(fsdp: int, *, rows: int = 8, step: int = 0) -> dict:
    kernel = step + jnp.arange(rows * 4.0).reshape(rows, 4)
    made = {"step": jnp.int32(step), "params": {"image_projection": {"kernel": kernel}}}
    return jax.device_put(made, state_shardings(made, make_mesh(MeshConfig(data=-1, fsdp=fsdp))))


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


def test_state_and_loader_continue_on_another_mesh(saved):
    folder, following = saved
    loader = batches()
    restored = checkpoints(folder).restore(abstract(state(4)), loader)
    kernel = restored["params"]["image_projection"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(kernel, 2 + np.arange(32.0).reshape(8, 4))
    np.testing.assert_array_equal(next(loader), following)


def test_a_checkpoint_says_what_made_it(saved):
    folder, _ = saved
    made_by = json.loads((folder / "2" / "run" / "metadata").read_text())
    assert made_by["layout"] == LAYOUT
    assert made_by["config"]["checkpoint"]["keep"] == 1
    assert made_by["code"]["jax"] == jax.__version__


def test_without_a_checkpoint_there_is_no_state(tmp_path):
    assert checkpoints(tmp_path).restore(abstract(state(2)), batches()) is None


def test_only_the_newest_is_kept(saved):
    folder, _ = saved
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["2"]


def test_the_best_evaluated_is_kept_beside_the_newest(tmp_path):
    changes = {"checkpoint.keep": 1, "checkpoint.best": 1}
    checkpointer, loader = checkpoints(tmp_path, **changes), batches()
    for step, auroc in {1: 0.6, 2: 0.7, 3: None, 4: 0.5}.items():
        checkpointer.save(step, state(2), loader)
        checkpointer.record_evaluation(step, auroc)
        assert checkpointer.evaluated(step)
    checkpointer.save(5, state(2), loader)
    assert not checkpointer.evaluated(5)
    checkpointer.close()
    assert steps_in(tmp_path) == ["2", "5"]
    save(tmp_path, 6, 7, **changes)
    assert steps_in(tmp_path) == ["2", "7"], "figures outlive the process"


def test_an_unfinished_save_is_not_seen(saved):
    folder, _ = saved
    (folder / "3.orbax-checkpoint-tmp-7").mkdir()
    assert restored_step(folder) == 2


def test_another_shape_is_refused_in_one_line(saved):
    folder, _ = saved
    message = r"^\S+/2: params/image_projection/kernel is \(8, 4\) in the checkpoint and \(6, 4\)"
    with pytest.raises(InputError, match=message):
        checkpoints(folder).restore(abstract(state(1, rows=6)), batches())
    assert (folder / "2").exists()


def test_another_number_of_workers_is_refused(saved):
    folder, _ = saved
    with pytest.raises(InputError, match="saved with workers=0, now 2"):
        checkpoints(folder, layout={**LAYOUT, "workers": 2}).restore(abstract(state(2)), batches())


def test_other_processes_are_refused_with_workers_and_go_on_without(saved, tmp_path):
    save(tmp_path, 1, layout={"processes": 1, "workers": 2})
    with pytest.raises(InputError, match="saved with processes=1, now 2"):
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
    ("file", "harm"),
    [
        ("state/_METADATA", "torn"),
        ("state/manifest.ocdbt", "gone"),
        ("state/d/*", "torn"),
        ("run/metadata", "torn"),
        ("loader/*.json", "gone"),
    ],
)
def test_a_damaged_checkpoint_is_set_aside_for_the_one_before(file, harm, two, tmp_path, capfd):
    folder = shutil.copytree(two, tmp_path / "copy")
    for path in list((folder / "2").glob(file)):
        if harm == "torn":
            os.truncate(path, path.stat().st_size // 2)
        else:
            path.unlink()
    (folder / "2.damaged").mkdir()
    assert restored_step(folder) == 1
    (told,) = [line for line in capfd.readouterr().err.splitlines() if "warning" in line]
    assert told.startswith(f"warning: {folder}/2: damaged (")
    assert told.endswith("set aside as 2.damaged-2, continuing from step 1")
    assert steps_in(folder) == ["1", "2.damaged", "2.damaged-2"]


def test_without_a_readable_checkpoint_nothing_is_touched(two, tmp_path):
    folder = shutil.copytree(two, tmp_path / "copy")
    for step in "12":
        (folder / step / "run" / "metadata").write_text("{")
    with pytest.raises(InputError, match="2: damaged .* and no older checkpoint can be read"):
        restored_step(folder)
    assert steps_in(folder) == ["1", "2"]


def test_a_run_of_eight_devices_goes_on_on_four(tmp_path):
    eight, four = (
        steps.setup(devices=devices, **{"optim.ema": 0.9, "mesh.fsdp": fsdp})
        for devices, fsdp in ((8, 1), (4, 2))
    )
    volumes = [fake_batch(steps.VOLUMES, seed=number) for number in range(4)]
    checkpointer, loader = checkpoints(tmp_path), batches()
    train_step = eight.train_step()
    saved = train_step.init(eight.model.init())
    losses = []
    for number in range(4):
        if number == 2:
            checkpointer.save(2, saved, loader)
            checkpointer.close()
        saved, metrics, _ = train_step.step(saved, iter([volumes[number]]))
        losses.append(float(metrics["loss"]))
    train_step = four.train_step()
    restored = checkpoints(tmp_path).restore(train_step.abstract_state, loader)
    for number in (2, 3):
        restored, metrics, _ = train_step.step(restored, iter([volumes[number]]))
        assert float(metrics["loss"]) == pytest.approx(losses[number], abs=1e-5)
    assert int(restored["step"]) == 4


FULL_DISK = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from test_checkpoints import batches, checkpoints, state
from data_pipelines.errors import InputError, run_main

def main(argv):
    folder, then = Path(argv[1]), argv[2]
    checkpointer, loader = checkpoints(folder), batches()
    checkpointer.save(2, state(1, rows=8000), loader)
    if then == "save":
        checkpointer.save(3, state(1, rows=8), loader)
    checkpointer.close()

run_main(main)
"""


@pytest.mark.parametrize(
    "after",
    [
        "[os_error_code='27']",
        """[tensorstore_spec='{\\"create\\":true,\\"path\\":\\"k5/\\"}'] [os_error_code='27']""",
        """[os_error_code='27'] [tensorstore_spec='{\\"create\\":true}']""",
    ],
)
def test_the_cause_is_found_whatever_tensorstore_says_after_it(after):
    told = f'OUT_OF_RANGE: Error opening "zarr" driver: Failed to write: File too large {after}'
    assert one_line(ValueError(told)) == "File too large"


@pytest.mark.parametrize("then", ["save", "close"])
def test_a_full_disk_is_one_line_and_costs_no_checkpoint(then, full_disk, tmp_path):
    save(tmp_path, 1)
    command = [*full_disk(20), sys.executable, "-c", FULL_DISK, str(tmp_path), then]
    full = subprocess.run(command, cwd=Path(__file__).parents[2], capture_output=True, text=True)
    assert full.returncode == 2
    told = [line for line in full.stderr.splitlines() if line.startswith("error: ")]
    assert told == [
        f"error: {tmp_path}/2: not written (File too large);"
        " the checkpoints before it are as they were"
    ]
    assert restored_step(tmp_path) == 1
