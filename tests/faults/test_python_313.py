"""The controller with Python 3.13, in a root directory of Debian 13, from the wheels of a release."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import host_roots as roots
from cronium_runner import __version__
from remote_host import RemoteHost
from runner_process import ROOT

pytestmark = [
    pytest.mark.full,
    pytest.mark.frozen,
    pytest.mark.sshd,
    pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to have another root directory"),
]

Run = Callable[..., subprocess.CompletedProcess[str]]

PLATFORMS = [f"--platform=manylinux_2_{glibc}_{os.uname().machine}" for glibc in (17, 28, 34)]
SCRIPT = 'echo "$(cronium.input word)"; cronium.output used 42; cronium.setVariable SEEN yes\n'
EVERY_MODULE = """
import importlib, pkgutil
import cronium_controller, cronium_helpers, cronium_runner
for package in (cronium_controller, cronium_helpers, cronium_runner):
    for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        if not module.name.endswith(("__main__", "sitecustomize")):
            importlib.import_module(module.name)
"""


@pytest.fixture
def debian(tmp_path: Path, binary: Path) -> Iterator[Path]:
    """Debian 13 with an empty folder `put`; it goes away with the test, as it has half a gigabyte."""
    root = tmp_path / "debian"
    root.mkdir()
    try:
        roots.distribution("trixie")(root)
        (root / "put").mkdir()
        yield root
    except roots.UnavailableError as error:
        pytest.skip(str(error))
    finally:
        shutil.rmtree(root)


@pytest.fixture
def inside(debian: Path) -> Run:
    """Runs words in Debian, without a variable of ours but those that are named."""

    def run(*words: str, **variables: str) -> subprocess.CompletedProcess[str]:
        known = {"PATH": "/put/venv/bin:/usr/bin:/bin:/usr/sbin:/sbin", "HOME": "/root", "LC_ALL": "C.UTF-8"}
        entering = ["unshare", "-m", "sh", "-ec", 'mount -t proc proc "$1/proc"; shift; exec "$@"', "sh", str(debian)]
        environment = ["env", "-i", *(f"{name}={value}" for name, value in (known | variables).items())]
        command = [*entering, roots.tool("chroot"), str(debian), *environment, *words]
        done = subprocess.run(command, cwd="/", stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{words}\n{done.stdout}\n{done.stderr}"
        return done

    return run


@pytest.fixture
def installed(debian: Path, inside: Run) -> Run:
    """With the wheels in a virtual environment. This machine's pip, which has its settings, fetches what they need."""
    wheels = debian / "put" / "wheels"
    subprocess.run([sys.executable, ROOT / "build/wheels.py", wheels], cwd=ROOT, capture_output=True, check=True)
    for_debian = ["--only-binary=:all:", "--python-version=3.13", *PLATFORMS]
    words = [
        "--quiet",
        "--dest",
        str(wheels),
        "--find-links",
        str(wheels),
        *for_debian,
        f"cronium-runner=={__version__}",
    ]
    done = subprocess.run(
        [sys.executable, "-m", "pip", "download", *words], capture_output=True, text=True, check=False
    )
    if done.returncode != 0:
        pytest.skip(f"pip cannot fetch wheels for Python 3.13: {done.stderr.strip().splitlines()[-1]}")
    inside("python3", "-m", "venv", "/put/venv")
    inside("pip", "install", "--quiet", "--no-index", "--find-links=/put/wheels", "cronium-runner")
    return inside


def test_job_runs_with_the_controller_of_python_313(
    installed: Run, debian: Path, new_host: Callable[..., RemoteHost]
) -> None:
    """On an OpenSSH server outside and as a local job, with warnings as errors; the script has its helpers."""
    assert installed("python", "--version").stdout.startswith("Python 3.13.")
    installed("python", "-W", "error", "-c", EVERY_MODULE)
    remote = new_host()
    shutil.copy(remote.server.identity, debian / "put" / "key")
    (debian / "put" / "job.sh").write_text(SCRIPT)
    variables = {"CRONIUM_KNOWN_HOSTS": "/put/known_hosts", "CRONIUM_TRACEBACK": "1", "PYTHONWARNINGS": "error"}
    for host, root in ((remote.server.target, str(remote.root)), ("local:", "/put/root")):
        words = [
            "run",
            "--host",
            host,
            "--identity",
            "/put/key",
            "--json",
            "--input",
            '{"word": "words"}',
            "/put/job.sh",
        ]
        result = json.loads(installed("cronium", *words, CRONIUM_RUNNER_ROOT=root, **variables).stdout)
        assert (result["exitCode"], result["stdout"]["text"]) == (0, "words\n")
        assert (result["output"], result["variables"]) == ({"used": "42"}, {"SEEN": "yes"})
        assert result["runnerVersion"] == __version__
