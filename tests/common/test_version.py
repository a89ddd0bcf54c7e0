"""The code of a checkpoint is told by version and commit."""

import subprocess

from ctclip_jax.common import version


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(tmp_path, monkeypatch):
    package = tmp_path / "ctclip_jax"
    package.mkdir()
    (package / "version.py").write_text("")
    monkeypatch.setattr(version, "__file__", str(package / "version.py"))
    told = version.code_version()
    assert told["package"] == version.__version__
    assert told["commit"] is told["dirty"] is None

    def git(*arguments):
        command = ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments]
        return subprocess.run(command, cwd=tmp_path, check=True, capture_output=True, text=True)

    git("init")
    git("add", ".")
    git("commit", "-m", "first")
    told = version.code_version()
    assert told["commit"] == git("rev-parse", "HEAD").stdout.strip()
    assert told["dirty"] is False
    (package / "version.py").write_text("changed")
    assert version.code_version()["dirty"] is True
