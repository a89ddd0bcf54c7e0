"""Versions in checkpoints: package, jax, git commit."""

import subprocess

from ctclip_jax.common import version


def test_all_names_of_the_package_can_be_imported():
    names: dict = {}
    exec("from ctclip_jax import *", names)
    assert {"LABELS", "Model", "__version__", "load"} == names.keys() - {"__builtins__"}
    assert names["__version__"] == version.__version__


def test_version_of_a_checkout_has_commit_and_uncommitted_changes(tmp_path, monkeypatch):
    file = tmp_path / "ctclip_jax" / "common" / "version.py"
    file.parent.mkdir(parents=True)
    file.write_text("")
    monkeypatch.setattr(version, "__file__", str(file))
    code = version.code_version()
    assert code["package"] == version.__version__
    assert code["commit"] is code["dirty"] is None

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    code = version.code_version()
    assert code["commit"] == git("rev-parse", "HEAD").stdout.strip()
    assert code["dirty"] is False
    file.write_text("changed")
    assert version.code_version()["dirty"] is True
