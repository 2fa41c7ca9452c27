"""What the tests need of the operating system: scripts/setup, and how a run names what was not there."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]

NEEDED = "objdump strip sshd ssh ssh-keygen sftp node shellcheck unshare strace sudo initdb"
"""Tools without which setup fails."""
OPTIONAL = {"busybox-static", "qemu-user-static"}
FAULTS = {"podman", "crun", "uidmap"}


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project on a machine whose tools and apt-get are stubs; `asked` has what apt-get was asked."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "setup", tmp_path / "scripts" / "setup")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    stub(tmp_path / ".venv" / "bin" / "python", "exit 0")
    for name in NEEDED.split():
        stub(tmp_path / "bin" / name, "exit 0")
    stub(tmp_path / "bin" / "apt-get", f"echo $* >>{tmp_path}/asked")
    for name in ("bash", "sh", "sha256sum", "dirname", "rm", "chmod"):
        (tmp_path / "bin" / name).symlink_to(str(shutil.which(name)))
    return tmp_path


def stub(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)


def set_up(project: Path, uid: int, *options: str) -> subprocess.CompletedProcess[str]:
    """Runs setup as it is for an account with that uid."""
    stub(project / "bin" / "id", f"echo {uid}")
    environment = {"PATH": str(project / "bin"), "PYTHON": sys.executable, "HOME": str(project)}
    words = ["bash", "scripts/setup", *options]
    return subprocess.run(words, cwd=project, env=environment, capture_output=True, text=True, check=False)


def test_ordinary_user_goes_on_without_optional_tools(project: Path) -> None:
    done = set_up(project, 1000, "--faults")
    assert done.returncode == 0, done.stderr
    assert named(done.stderr, "are skipped:") >= OPTIONAL | FAULTS
    assert not (project / "asked").exists()
    again = set_up(project, 1000)
    assert (again.returncode, again.stderr) == (0, "")


def test_root_installs_optional_tools(project: Path) -> None:
    assert set_up(project, 0).returncode == 0
    asked = set((project / "asked").read_text().split())
    assert asked >= OPTIONAL
    assert not asked & FAULTS
    assert set_up(project, 0, "--faults").returncode == 0
    assert set((project / "asked").read_text().split()) >= FAULTS


def test_setup_goes_on_when_optional_tools_cannot_be_had(project: Path) -> None:
    stub(project / "bin" / "apt-get", "exit 1")
    done = set_up(project, 0, "--faults")
    assert done.returncode == 0, done.stderr
    assert named(done.stderr, "are skipped:") >= OPTIONAL | FAULTS


def test_needed_tools_are_a_failure_of_setup(project: Path) -> None:
    (project / "bin" / "shellcheck").unlink()
    done = set_up(project, 1000)
    assert done.returncode == 1
    assert "shellcheck" in named(done.stderr, "are missing:")


def named(said: str, after: str) -> set[str]:
    """The words behind `after` in each line that has it."""
    return {word for line in said.splitlines() if after in line for word in line.partition(after)[2].split()}


def test_reasons_to_skip_are_listed_once(tmp_path: Path) -> None:
    (tmp_path / "conftest.py").write_text("from skips import pytest_terminal_summary\n")
    (tmp_path / "test_it.py").write_text(
        "import pytest\n"
        "@pytest.mark.parametrize('one', range(3))\n"
        "def test_a(one): pytest.skip('podman is not installed')\n"
        "@pytest.mark.skipif(True, reason='podman is not installed')\n"
        "def test_b(): pass\n"
        "@pytest.mark.skip(reason='another')\n"
        "def test_c(): pass\n"
    )
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "tests")}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True, check=True)
    assert "    4  podman is not installed\n    1  another\n" in done.stdout
