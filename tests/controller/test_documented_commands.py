"""Every command that the pages on raw commands, background jobs and files show, as it stands, in the order shown."""

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from cronium_controller.job import Job
from cronium_controller.payloads import load
from documented import OPTIONS
from openssh import sshd_path
from remote_host import RemoteHost
from runner_process import ROOT

pytestmark = pytest.mark.sshd
PATIENCE = 120.0


@pytest.fixture
def remote(tmp_path: Path, carrier: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RemoteHost]:
    """A host whose SFTP sessions begin in its home directory."""
    if sshd_path() is None:
        pytest.skip("openssh-server is not installed")
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    options = [f"Subsystem sftp internal-sftp -d {tmp_path / 'remote/home'}", *OPTIONS]
    with RemoteHost(tmp_path / "remote", carrier, tmp_path / "lib", options=options) as made:
        yield made


@pytest.mark.parametrize("page", ["commands.md", "background-jobs.md", "files.md"])
async def test_every_command_shown_runs(remote: RemoteHost, tmp_path: Path, page: str) -> None:
    async with remote.controller() as controller:  # the page on background jobs is about hosts with a runner
        await (await controller.submit(remote.host, Job(load(remote.script("true"))))).result()
    text = (ROOT / "docs" / page).read_text()
    shown = "\n".join(re.findall(r"```sh\n(.*?)```", text, re.DOTALL))
    folder = _folder(remote, tmp_path)
    for program in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        if "asyncio.run" in program:
            (folder / "background.py").write_text(program)
    programs = f"{folder}/bin:{os.path.dirname(sys.executable)}:{os.environ['PATH']}"
    environment = remote.environment | {"PATH": programs, "HOME": str(tmp_path)}
    done = subprocess.run(
        ["bash", "-c", f"trap 'echo failed: $BASH_COMMAND >&2' ERR\n{shown}"],
        cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    failed = [line for line in done.stderr.splitlines() if line.startswith("failed: ")]
    # A cancelled execution's exit status is 130, which is what the page is about.
    assert [line for line in failed if "cronium cancel" not in line] == [], done.stderr
    assert "Traceback" not in done.stderr


def _folder(remote: RemoteHost, tmp_path: Path) -> Path:
    """Where the commands are given: a hosts file, an alias of SSH's, and the files that are copied."""
    folder = tmp_path / "folder"
    (folder / "bin").mkdir(parents=True)
    (folder / "bin/python3").write_text(f'#!/bin/sh\nexec {sys.executable} "$@"\n')
    (folder / "bin/python3").chmod(0o700)
    (tmp_path / ".ssh").mkdir()
    (tmp_path / ".ssh/config").write_text(
        f"Host web01\n  HostName 127.0.0.1\n  Port {remote.server.port}\n  IdentityFile {remote.server.identity}\n"
    )
    how = f"port: {remote.server.port}, key_path: {remote.server.identity}"
    (folder / "hosts.yaml").write_text(
        f"hosts:\n  web01: {{host: 127.0.0.1, {how}}}\n  web02: {{host: 127.0.0.2, {how}}}\n"
        "groups:\n  web: [web01, web02]\n"
    )
    (folder / "site.tar.gz").write_bytes(b"words")
    (folder / "app.conf").write_text("words\n")
    return folder
