"""A host behind a real OpenSSH server whose runner runs from this checkout, so that no binary has to be built first."""

import os
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import ROOT


@pytest.fixture(scope="session")
def carrier(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What is deployed: a script by the binary's name that installs itself and starts the runner from source."""
    path = tmp_path_factory.mktemp("carrier") / f"cronium-runner-0.0.0-linux-{os.uname().machine}"
    folders = os.pathsep.join(str(ROOT / name) for name in ("runner", "helpers"))
    path.write_text(
        "#!/bin/sh\n"
        'if [ "$1" = install ]; then mkdir -m 700 "$2" && cp "$0" "$2/cronium-runner"; exit; fi\n'
        f'PYTHONPATH={shlex.quote(folders)} exec {shlex.quote(sys.executable)} -m cronium_runner "$@"\n'
    )
    return path


@pytest.fixture
def remote(
    tmp_path: Path, carrier: Path, install_directory: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[RemoteHost]:
    """A host of this test's own, its server running."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    made = RemoteHost(
        tmp_path / "remote",
        carrier,
        tmp_path / "lib",
        environment={"CRONIUM_INSTALL_DIR": str(install_directory)},
    )
    # The API runs in this process: the real account's SSH configuration and agent must not play a part.
    monkeypatch.setenv("HOME", str(made.home))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    with made:
        yield made
