"""Checkpoints restore state and loader, onto any mesh; exports hold the weights."""

import grain
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from ctclip_jax.checkpoints import Checkpointer, load_export, save_export
from ctclip_jax.config import CheckpointConfig
from ctclip_jax.sharding import MeshConfig, make_mesh, state_shardings
from data_pipelines.errors import InputError

CONFIG = CheckpointConfig(every=1, keep=1)
LAYOUT = {"processes": 1, "workers": 0}


def batches() -> grain.DatasetIterator:
    dataset = grain.MapDataset.range(20).shuffle(seed=1).repeat().batch(4, drop_remainder=True)
    return iter(dataset.to_iter_dataset())


def state(fsdp: int, *, rows: int = 8) -> dict:
    kernel = jnp.arange(rows * 4.0).reshape(rows, 4)
    made = {"step": jnp.int32(0), "params": {"image_projection": {"kernel": kernel}}}
    return jax.device_put(made, state_shardings(made, make_mesh(MeshConfig(data=-1, fsdp=fsdp))))


def abstract(tree: dict) -> dict:
    return jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=leaf.sharding), tree
    )


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """A folder of checkpoints, and the batch that follows the newest."""
    folder = tmp_path_factory.mktemp("checkpoints")
    checkpointer, loader = Checkpointer(folder, CONFIG), batches()
    assert checkpointer.latest_step is None
    for step in (1, 2):
        next(loader)
        checkpointer.save(step, state(2), loader, layout=LAYOUT)
    following = next(loader)
    checkpointer.close()
    return folder, following


def test_state_and_loader_continue_on_another_mesh(saved):
    folder, following = saved
    checkpointer, loader = Checkpointer(folder, CONFIG), batches()
    restored = checkpointer.restore(abstract(state(4)), loader, layout=LAYOUT)
    kernel = restored["params"]["image_projection"]["kernel"]
    assert kernel.addressable_shards[0].data.shape == (2, 4)
    np.testing.assert_array_equal(kernel, np.arange(32.0).reshape(8, 4))
    np.testing.assert_array_equal(next(loader), following)


def test_only_the_newest_is_kept(saved):
    folder, _ = saved
    assert [path.name for path in folder.iterdir() if path.name.isdigit()] == ["2"]


def test_an_unfinished_save_is_not_seen(saved):
    folder, _ = saved
    (folder / "3.orbax-checkpoint-tmp-7").mkdir()
    assert Checkpointer(folder, CONFIG).latest_step == 2


def test_another_shape_is_refused_in_one_line(saved):
    folder, _ = saved
    message = r"^\S+/2: params/image_projection/kernel is \(8, 4\) in the checkpoint and \(6, 4\)"
    with pytest.raises(InputError, match=message):
        Checkpointer(folder, CONFIG).restore(abstract(state(1, rows=6)), batches(), layout=LAYOUT)


def test_another_number_of_workers_is_refused(saved):
    folder, _ = saved
    with pytest.raises(InputError, match="saved with workers=0, now 2"):
        Checkpointer(folder, CONFIG).restore(
            abstract(state(2)), batches(), layout={**LAYOUT, "workers": 2}
        )


def test_an_export_returns_what_was_saved(tmp_path):
    tokenizer = tmp_path / "vocab.txt"
    tokenizer.write_text("[PAD]\n")
    variables = {"params": state(2)["params"], "codebook": {"embed": jnp.ones((2, 3))}}
    for _ in range(2):
        save_export(tmp_path / "e", variables, config={"max_length": 7}, tokenizer=tokenizer)
    loaded, config = load_export(tmp_path / "e")
    assert config == {"max_length": 7, "tokenizer": "vocab.txt"}
    assert (tmp_path / "e" / "vocab.txt").read_text() == "[PAD]\n"
    assert jax.tree.all(jax.tree.map(np.array_equal, loaded, jax.device_get(variables)))
    assert all(isinstance(leaf, np.ndarray) for leaf in jax.tree.leaves(loaded))


def test_a_folder_that_is_no_export_is_named(tmp_path):
    with pytest.raises(InputError, match="not an export: no config.json in it"):
        load_export(tmp_path)


def test_a_checkpoint_without_its_run_is_named(saved):
    folder, _ = saved
    with pytest.raises(InputError, match="a checkpoint without its run: no .*config.json"):
        load_export(folder / "2")


def test_a_damaged_export_is_one_line(tmp_path):
    variables = {"params": state(2)["params"], "codebook": {"embed": jnp.ones((2, 3))}}
    save_export(tmp_path / "e", variables, config={"max_length": 7})
    (tmp_path / "e" / "config.json").write_text('{"model": ')
    with pytest.raises(InputError, match="config.json: cannot be read"):
        load_export(tmp_path / "e")
    save_export(tmp_path / "e", variables, config={"max_length": 7})
    for path in (tmp_path / "e" / "variables").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:20])
    with pytest.raises(InputError, match="e/variables: damaged") as error:
        load_export(tmp_path / "e")
    assert "\n" not in str(error.value)
