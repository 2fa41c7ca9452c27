"""`cronium uninstall` with the real binary behind real sshd: it removes itself, and nothing that runs."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from cronium_controller.deployments import Deployments
from remote_host import RemoteHost
from runner_process import is_running, wait_until

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]


@pytest.fixture
def host(new_host: Callable[..., RemoteHost], tmp_path: Path) -> RemoteHost:
    """A host whose runner would look at another root of this test's than the controller's, and at no real account's."""
    return new_host(root=tmp_path / "root", environment={"CRONIUM_INSTALL_DIR": str(tmp_path / "usual")})


def uninstall(host: RemoteHost, *words: str) -> tuple[dict[str, Any], int]:
    done = host.cronium("uninstall", "--host", host.server.target, "--json", *words)
    assert done.stdout, done.stderr
    report: dict[str, Any] = json.loads(done.stdout)
    assert report["host"] == host.host.name
    return report, done.returncode


def known(host: RemoteHost) -> list[str]:
    """The runners that the controller takes to be there."""
    return [one.folder for one in Deployments(host.store()).known(host.host, str(host.root))]


def test_the_runner_removes_itself(host: RemoteHost) -> None:
    assert host.run(host.script("true")).returncode == 0
    wait_until(lambda: not host.processes(), "the agent to end")
    [form] = host.root.iterdir()
    assert known(host) == [form.name]
    usual = Path(shutil.copytree(form, host.root.parent / "usual" / form.name, symlinks=True)) / "contents"
    usual.parent.parent.chmod(0o700)
    would, _ = uninstall(host, "--dry-run")
    assert would["removed"] == [str(form)]
    assert form.exists()
    report, status = uninstall(host)
    assert (report["removed"], report["kept"], status) == ([str(form)], {}, 0)
    assert not host.root.exists()
    assert len(host.executions()) == 1, "the records are not asked for"
    assert usual.exists(), "the root that was chosen stands alone"
    again = host.cronium("uninstall", "--host", host.server.target)
    assert (again.stdout, again.returncode) == (b"nothing is installed\n", 0)
    assert not host.root.exists(), "nothing was put there to find that out"
    assert known(host) == []


def test_the_runner_of_a_job_stays_and_its_records_are_refused(host: RemoteHost) -> None:
    started = host.run("--detach", "--execution-id", "runs", host.script("echo begun; sleep 600"))
    assert started.returncode == 0, started.stderr
    host.wait_output("runs", b"begun\n")
    [form] = host.root.iterdir()
    report, status = uninstall(host)
    assert (report["removed"], list(report["kept"]), status) == ([], [str(form)], 1)
    refused = host.cronium("uninstall", "--host", host.server.target, "--records")
    assert refused.returncode == 125
    said = refused.stderr.decode().rstrip()
    assert "1 not ended (runs); nothing was removed" in said
    assert said.endswith("[uninstall.refused]")
    assert form.exists()
    group = host.script_group("runs")
    report, status = uninstall(host, "--records", "--force")
    assert (report["removed"], report["records"]["running"], status) == ([str(form)], 1, 0)
    wait_until(lambda: not is_running(group), "the script's end")
    assert not host.state.exists()
    assert not host.root.exists()
