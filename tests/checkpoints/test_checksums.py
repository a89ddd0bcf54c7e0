"""SHA256SUMS of checkpoints and exports: a changed bit is damage."""

import hashlib
import shutil
import subprocess
from pathlib import Path

import jax
import numpy as np
import pytest

from ctclip_jax.checkpoints.exports import load_export, save_export
from ctclip_jax.checkpoints.tensor_files import read_tensors, write_tensors
from ctclip_jax.inference import calibration
from data_pipelines.errors import InputError
from data_pipelines.files import CHECKSUMS, read_checksums, renewing_checksums
from tests.checkpoints.test_run import batches, checkpoints, restored_step, save, state


def flip_bit(path: Path, *, position: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(position * (len(content) - 1))] ^= 4
    path.write_bytes(content)


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    """A folder with checkpoints of two steps, the newest with an evaluation."""
    folder = tmp_path_factory.mktemp("two")
    save(folder, 1)
    checkpointer, loader = checkpoints(folder), batches()
    checkpointer.save(2, state(2, step=2), loader)
    checkpointer.record_evaluation(2, 0.75)
    checkpointer.close()
    return folder


def test_sha256sum_finds_every_file_of_a_checkpoint(two):
    for step in ("1", "2"):
        folder = two / step
        files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
        assert read_checksums(folder).keys() == files - {CHECKSUMS}
        command = ["sha256sum", "--check", "--strict", "--quiet", CHECKSUMS]
        subprocess.run(command, cwd=folder, check=True)


@pytest.mark.parametrize("file", ["state/d/*", "loader/*.json", "run/metadata", "evaluation.json"])
def test_a_run_continues_from_the_checkpoint_before_a_flipped_bit(file, two, tmp_path, capfd):
    folder = shutil.copytree(two, tmp_path / "copy")
    (path, *_) = (folder / "2").glob(file)
    flip_bit(path)
    assert restored_step(folder) == 1
    assert f"{path}: changed since it was written" in capfd.readouterr().err


def test_a_checkpoint_without_checksums_is_sound(two, tmp_path):
    """A run that was killed just after a save."""
    folder = shutil.copytree(two, tmp_path / "copy")
    (folder / "2" / CHECKSUMS).unlink()
    assert restored_step(folder) == 2


def test_an_export_with_a_flipped_bit_is_one_line(tmp_path):
    variables = {"params": state(1)["params"], "codebook": {"embed": np.ones((2, 3))}}
    save_export(tmp_path / "sound", variables, config={"max_length": 7})
    calibration.save(tmp_path / "sound", calibration.Calibration("zero_shot", {}, "no volumes"))
    load_export(tmp_path / "sound")
    files = [path for path in (tmp_path / "sound").rglob("*") if path.is_file()]
    assert {"config.json", "calibration.json"} <= {path.name for path in files}
    for number, file in enumerate(files):
        if file.name == CHECKSUMS:
            continue
        export = shutil.copytree(tmp_path / "sound", tmp_path / str(number))
        flip_bit(export / file.relative_to(tmp_path / "sound"), position=0.9)
        with pytest.raises(InputError, match=f"{export}/.*(changed since|cannot be read)"):
            load_export(export)


def test_a_failed_export_leaves_the_older_one(tmp_path):
    variables = {"params": state(1)["params"], "codebook": {"embed": np.ones((2, 3))}}
    save_export(tmp_path, variables, config={"max_length": 7})
    calibration.save(tmp_path, calibration.Calibration("zero_shot", {}, "no volumes"))
    files = sorted(tmp_path.rglob("*"))
    changed = jax.tree.map(lambda array: array + 1, variables)
    with pytest.raises(InputError, match="cannot be saved"):
        save_export(tmp_path, changed, config={"max_length": 8}, tokenizer=tmp_path / "absent.txt")
    assert sorted(tmp_path.rglob("*")) == files
    loaded, config = load_export(tmp_path)
    assert config["max_length"] == 7 and loaded["codebook"]["embed"].max() == 1


@pytest.mark.parametrize("name", ["weights.safetensors", "weights.pt"])
def test_a_weight_file_is_compared_with_the_checksums_beside_it(name, tmp_path):
    path = tmp_path / name
    if path.suffix == ".pt":
        pytest.importorskip("torch")
    with renewing_checksums(tmp_path, name):
        write_tensors(path, {"kernel": np.arange(512.0)})
    read_tensors(path)
    flip_bit(path)
    with pytest.raises(InputError, match=f"{path}: changed since it was written"):
        read_tensors(path)


def test_lines_about_other_files_stay(tmp_path):
    """Also those in forms that are not compared, such as that of `sha256sum --binary`."""
    others = f"# downloads\n{'0' * 64} *scan.zip\n{'1' * 64}  b\n"
    (tmp_path / CHECKSUMS).write_text(others + f"{'2' * 64} *a\n")
    (tmp_path / "a").write_text("a")
    with renewing_checksums(tmp_path, "a"):
        pass
    digest = hashlib.sha256(b"a").hexdigest()
    assert (tmp_path / CHECKSUMS).read_text() == f"{others}{digest}  a\n"


def test_a_file_that_is_half_rewritten_has_no_checksum(tmp_path):
    (tmp_path / "a").write_text("a")
    with renewing_checksums(tmp_path, "a"):
        pass
    with pytest.raises(KeyboardInterrupt), renewing_checksums(tmp_path, "a"):
        (tmp_path / "a").write_text("b")
        raise KeyboardInterrupt
    assert read_checksums(tmp_path) == {}
