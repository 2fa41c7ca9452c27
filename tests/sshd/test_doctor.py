"""`cronium doctor` on hosts that have something, and on hosts that lack it."""

import json
from collections.abc import Callable

import pytest

from cronium_controller.hosts import SSH
from kinds import BOTH
from openssh import reads_bashrc
from remote_host import RemoteHost

pytestmark = [pytest.mark.sshd, pytest.mark.frozen]
NewHost = Callable[..., RemoteHost]


def findings(host: RemoteHost, exit_status: int = 0) -> dict[str, dict[str, str]]:
    done = host.cronium("doctor", "--host", host.server.target, "--json")
    assert done.returncode == exit_status, done.stderr
    return {told["name"]: told for told in map(json.loads, done.stdout.splitlines())}


@BOTH
def test_a_usual_host_is_well_and_a_person_can_read_it(shared: RemoteHost) -> None:
    found = findings(shared)
    assert {name: told["level"] for name, told in found.items() if told["level"] == "bad"} == {}
    is_ssh = shared.connection == SSH
    assert found["connection"]["seen"].startswith("SSH-2.0-OpenSSH" if is_ssh else "by OpenSSH's own program")
    assert found["file transfer"]["seen"].startswith("SFTP" if is_ssh else "no SFTP")
    assert found["sessions"]["seen"] == "10 at once on one connection (MaxSessions)"
    assert found["forwarding"]["level"] == "ok"
    assert str(shared.state) in found["state directory"]["seen"]
    assert "python3" in found["interpreters"]["seen"]
    assert found["clock against ours"]["level"] == "ok"
    shown = shared.cronium("doctor", "--host", shared.server.target).stdout.decode()
    assert "ok    forwarding                   reverse forwarding of sockets\n" in shown


@pytest.mark.skipif(not reads_bashrc(), reason="the account's login shell reads no .bashrc")
def test_what_a_server_forbids_is_said_with_what_it_means(new_host: NewHost) -> None:
    host = new_host(options=["MaxSessions 2", "AllowStreamLocalForwarding no", "Subsystem sftp /nonexistent"])
    (host.home / ".bashrc").write_text("echo welcome\n")
    found = findings(host)
    assert found["file transfer"]["advice"] == "files go through the shell instead"
    assert found["sessions"]["seen"] == "2 at once on one connection (MaxSessions)"
    assert "AllowStreamLocalForwarding" in found["forwarding"]["seen"]
    assert "'welcome'" in found["login shell"]["seen"]


@BOTH
def test_forwarding_that_is_off(new_host: NewHost) -> None:
    found = findings(new_host(options=["DisableForwarding yes", "MaxSessions 1"]))
    assert "API mode needs" in found["forwarding"]["advice"]
    assert found["sessions"]["seen"].startswith("1 at once")


def test_a_state_directory_that_is_open_to_others_keeps_jobs_from_running(new_host: NewHost) -> None:
    host = new_host()
    host.state.mkdir(mode=0o755)
    found = findings(host, exit_status=1)
    assert found["state directory"]["level"] == "bad"
    assert "chmod 700" in found["state directory"]["seen"]
    host.state.rmdir()
